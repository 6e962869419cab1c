"""What one layer's training step asks of a GPU: our launches, and PyTorch's kernels on more than B R elements.

Counted under the interpreter, where the launches and the ATen calls are those of a GPU.
"""

from collections import Counter

import pytest
import torch
from timm.layers import SwiGLUPacked
from torch import nn

from dexcore.kernels import cast, tables
from dexcore.nn import DEXMlp, set_noise_std
from nn.calls import Calls, note_launches

pytestmark = pytest.mark.usefixtures("no_shards")
B, N, D, H, R = 3, 7, 32, 64, 4  # D and H of whole steps, so that operands have descriptors
GATED = {"director_layer": SwiGLUPacked, "act_layer": nn.SiLU}


@pytest.fixture
def launched(monkeypatch):
    """The names of the kernels launched, in order."""
    layer_step(False)  # imports all that is launched
    return note_launches(monkeypatch)


def layer_step(autocast, keep="both", noise=0.0, only=None, **settings):
    """A training step of a layer; gradients reach x and all parameters, or those of ``only``, and both losses count."""
    layer = DEXMlp(D, H, num_experts=R, top_k=2, keep=keep, backend="triton", **settings).train()
    if only is not None:
        layer.requires_grad_(False)
        layer.get_submodule(only).requires_grad_(True)
    set_noise_std(layer, noise)
    x = torch.randn(B, N, D, requires_grad=only is None)
    dy = torch.randn(B, N, D)
    one = torch.ones(())
    calls = Calls(B * R)
    with calls, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = layer(x)
        losses = layer.routing.align_loss, layer.routing.balance_loss
    dy = dy.to(y.dtype)
    with calls:
        wanted = [(y, dy), *((loss, one) for loss in losses if loss.requires_grad)]
        torch.autograd.backward(*map(list, zip(*wanted, strict=True)))
    return calls.names


FORWARD = ["_route_forward_kernel", "_plan_kernel", "_expert_order_kernel", "_expert_up_kernel", "_grouped_rows_kernel"]
BACKWARD = [
    "_expert_order_kernel",
    "_expert_dact_kernel",
    "_gate_and_bias_kernel",
    "_route_backward_kernel",
    "_grouped_rows_kernel",
    "_sum_slots_kernel",
    "_expert_wgrad_kernel",
]


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("settings", [{}, {"pool": "mean"}, GATED], ids=["cls", "mean", "SwiGLU"])
def test_a_layers_step_is_few_launches_and_nothing_large_of_pytorchs(launched, autocast, settings):
    large = layer_step(autocast, noise=1.0, **settings)
    pool = settings.get("pool", "cls")
    extra = ["_cast_all_kernel"] * autocast + ["_token_mean_kernel"] * (pool == "mean")
    assert Counter(launched) == Counter([*FORWARD, "_align_kernel", *BACKWARD, *extra])
    assert len(launched) <= 14 + (pool == "mean")
    assert not large


def test_a_captured_step_casts_each_weight_once(launched, monkeypatch):
    monkeypatch.setattr(tables, "is_capturing", lambda device: True)
    monkeypatch.setattr(cast, "is_known", lambda *_: False)  # a graph's memory is elsewhere
    large = layer_step(True)
    assert large == ["_to_copy"] * 4, "the director's and the experts'; the backward has the forward's"
    assert Counter(launched) == Counter([*FORWARD, "_align_kernel", *BACKWARD])


@pytest.mark.parametrize(("keep", "made_again"), [("both", []), ("z", ["_expert_dact_kernel"])])
def test_the_second_layers_gradients_alone_go_through_no_activation(launched, keep, made_again):
    layer_step(False, keep=keep, only="experts.fc2")
    backward = ["_expert_order_kernel", "_gate_and_bias_kernel", "_expert_wgrad_kernel", *made_again]
    assert Counter(launched) == Counter([*FORWARD, "_align_kernel", *backward])


def test_without_z_it_is_made_again_by_one_more(launched):
    layer_step(False, keep="none")
    assert len(launched) == 14
