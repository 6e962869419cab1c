"""Switches over all layers of a model."""

import pytest
import torch
from torch import nn

from dexcore.nn import DEXMlp, set_mode, set_noise_std, set_router_noise


def model():
    return nn.Sequential(DEXMlp(8, 12, num_experts=4), nn.LayerNorm(8), DEXMlp(8, 12, num_experts=3))


def test_sigma_and_mode_reach_every_layer():
    net = model()
    set_noise_std(net, 0.25)
    set_mode(net, "director")
    assert [(net[i].noise_std, net[i].mode) for i in (0, 2)] == [(0.25, "director")] * 2
    assert {name for name, p in net.named_parameters() if p.requires_grad} == {
        name for name, _ in net.named_parameters() if "director" in name or name.startswith("1.")
    }
    set_mode(net, "experts")
    assert not net[0].director.fc1.weight.requires_grad


def test_given_noise_reaches_its_own_layer():
    net = model()
    with torch.no_grad():
        net[0].router.weight.zero_()
        net[2].router.weight.zero_()
    set_noise_std(net, 1.0)
    push = [torch.zeros(2, 4), torch.zeros(2, 3)]
    push[0][:, 3] = 5
    push[1][:, 1] = 5
    set_router_noise(net, push)
    net(torch.randn(2, 3, 8))
    assert (net[0].routing.indices[:, 0] == 3).all()
    assert (net[2].routing.indices[:, 0] == 1).all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda net: set_noise_std(net, -1.0), ValueError, "sigma must be finite in float32 and at least 0, got -1.0"),
        (lambda net: set_noise_std(net, 1e300), ValueError, "sigma must be finite in float32"),
        (lambda net: set_noise_std(net, float("inf")), ValueError, "sigma must be finite"),
        (lambda net: set_noise_std(net, float("nan")), ValueError, "sigma must be finite"),
        (lambda net: set_noise_std(net, None), TypeError, "sigma must be a number, got None"),
        (lambda net: set_router_noise(net, 0.5), TypeError, "noise must be one tensor"),
        (lambda net: set_mode(net, "dense"), ValueError, "mode must be one of"),
        (lambda net: set_router_noise(net, [torch.zeros(2, 4)]), ValueError, "each of the 2 DEX layers, got 1"),
        (
            lambda net: set_router_noise(net, [torch.zeros(2, 4)] * 2),
            ValueError,
            r"noise\[1\] must have shape \[B, 3\]",
        ),
        (lambda net: set_mode(nn.Linear(2, 2), "director"), ValueError, "no DEX layer"),
    ],
)
def test_bad_calls_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call(model())
