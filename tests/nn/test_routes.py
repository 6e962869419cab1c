"""Experts that are given in the place of the router's, and the rules that give them."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from dexcore.models import DEXVisionTransformer
from dexcore.nn import (
    DEXMlp,
    RoutingRule,
    aux_losses,
    route_by_rule,
    rule_of,
    set_expert_mask,
    set_mode,
    set_noise_std,
    set_routes,
    set_rule,
    update_directors,
)
from dexcore.nn.rules import oracle_experts


def pair() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(DEXMlp(8, 12, num_experts=4), DEXMlp(8, 12, num_experts=3, top_k=1))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return net


def test_given_experts_run_with_equal_gates_whatever_the_router_says():
    net, x = pair(), torch.randn(3, 5, 8)
    set_noise_std(net, 5.0)
    routes = [torch.tensor([[3, 0], [1, 2], [2, 3]]), torch.tensor([[2], [0], [1]])]
    set_routes(net, routes)
    for training in (True, False):
        net.train(training)
        y = net(x)
        for layer, chosen in zip(net, routes, strict=True):
            assert torch.equal(layer.routing.indices.sort().values, chosen.sort().values)
            assert torch.equal(layer.routing.gates, torch.full(chosen.shape, 1 / layer.top_k))
        hidden = x
        for layer, chosen in zip(net, routes, strict=True):
            hidden = torch.stack([by_hand(layer, hidden[b], chosen[b]) for b in range(3)])
        torch.testing.assert_close(y, hidden)


def by_hand(layer: DEXMlp, x: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """The mean of the chosen experts' outputs for one image's tokens."""
    outputs = []
    for e in chosen.tolist():
        fc1, fc2 = layer.experts.fc1, layer.experts.fc2
        inner = nn.functional.gelu(x @ fc1.weight[e].T + fc1.bias[e])
        outputs.append(inner @ fc2.weight[e].T + fc2.bias[e])
    return torch.stack(outputs).mean(0)


def test_every_parameter_has_a_gradient_and_directors_follow_the_given_experts():
    net = pair()
    set_routes(net, [torch.tensor([[3, 0]] * 4), torch.tensor([[2]] * 4)])
    before = copy.deepcopy(net)
    loss = net(torch.randn(4, 5, 8)).square().mean() + aux_losses(net).align
    loss.backward()
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)  # or DDP would wait for ever
    assert not net[0].router.weight.grad.any()
    assert not net[0].experts.fc1.weight.grad[[1, 2]].any()
    assert net[0].experts.fc1.weight.grad[[0, 3]].abs().amin((1, 2)).gt(0).all()
    update_directors(net, 0.5)
    then = before[0].director.fc1.weight * 0.5 + before[0].experts.fc1.weight[[0, 3]].mean(0) * 0.5
    torch.testing.assert_close(net[0].director.fc1.weight, then)


def test_without_routes_the_router_chooses_again():
    net, x = pair().eval(), torch.randn(2, 3, 8)
    expected = net(x)
    set_routes(net, [torch.tensor([[0, 1]] * 2), torch.tensor([[0]] * 2)])
    assert not torch.equal(net(x), expected)
    set_routes(net, None)
    assert torch.equal(net(x), expected)


def test_routes_of_another_batch_are_refused():
    net = pair()
    set_routes(net, [torch.tensor([[0, 1]] * 2), torch.tensor([[0]] * 2)])
    with pytest.raises(ValueError, match="routes are given for 2 images, x holds 3"):
        net(torch.randn(3, 5, 8))


@pytest.mark.parametrize(
    ("routes", "error", "message"),
    [
        (3, TypeError, "one tensor"),
        ([torch.zeros(2, 2, dtype=torch.int64)], ValueError, "each of the 2 DEX layers, got 1"),
        ([torch.zeros(2, 2), torch.zeros(2, 1)], TypeError, r"routes\[0\]"),
        ([torch.tensor([[0, 1]]), torch.tensor([[0, 1]])], ValueError, r"routes\[1\] must have shape"),
        ([torch.tensor([[0, 4]]), torch.tensor([[0]])], ValueError, r"routes\[0\] must be experts 0..3"),
        ([torch.tensor([[1, 1]]), torch.tensor([[0]])], ValueError, "different experts"),
    ],
)
def test_routes_that_do_not_fit_are_named(routes, error, message):
    net = pair()
    with pytest.raises(error, match=message):
        set_routes(net, routes)
    assert net[0].routes is None


def test_a_model_with_a_rule_does_not_run_before_it_is_told_the_images():
    net = pair()
    set_rule(net, {"kind": "fixed", "seed": 3})
    with pytest.raises(RuntimeError, match="call route_by_rule"):
        net(torch.randn(2, 3, 8))
    set_mode(net, "director")
    net(torch.randn(2, 3, 8))  # needs no experts


def test_fixed_routing_depends_on_name_and_seed_alone():
    layers = [(8, 2), (8, 2), (4, 1)]
    names = [str(i) for i in range(400)]
    chosen = RoutingRule("fixed", seed=1).choose(layers, names, ["CT"] * 400)
    again = RoutingRule("fixed", seed=1).choose(layers, names[::-1], ["MR"] * 400)
    for here, there, (experts, k) in zip(chosen, again, layers, strict=True):
        assert here.shape == (400, k)
        assert np.array_equal(here, there[::-1])
        assert all(len(set(row)) == k for row in here.tolist())
        share = np.bincount(here.ravel(), minlength=experts) / here.size
        assert abs(share - 1 / experts).max() < 0.05  # even: no expert is anybody's
    assert not np.array_equal(chosen[0], chosen[1])
    assert not np.array_equal(chosen[0], RoutingRule("fixed", seed=2).choose(layers, names, ["CT"] * 400)[0])


def test_ten_modalities_have_ten_pairs_of_eight_experts_and_as_much_of_each():
    pairs = oracle_experts(10, 8, 2)
    assert pairs[:4].tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert len({tuple(pair) for pair in pairs.tolist()}) == 10
    assert set(np.bincount(pairs.ravel(), minlength=8)) == {2, 3}
    assert oracle_experts(3, 2, 2).tolist() == [[0, 1]] * 3  # all of them: nothing to choose


def test_oracle_routing_follows_modalities_and_refuses_others():
    rule = RoutingRule("oracle", modalities=("CT", "MR", "PET"))
    (chosen,) = rule.choose([(8, 2)], ["1", "2", "3"], ["PET", "CT", "PET"])
    assert chosen.tolist() == [[4, 5], [0, 1], [4, 5]]
    with pytest.raises(ValueError, match="'OCT' is none of those whose experts the model has: CT, MR, PET"):
        rule.choose([(8, 2)], ["1"], ["OCT"])
    with pytest.raises(ValueError, match="modalities must be names with the rule oracle alone"):
        RoutingRule("oracle")


@pytest.mark.parametrize("rule", [RoutingRule("fixed", seed=5), RoutingRule("oracle", modalities=("CT", "MR"))])
def test_a_rule_is_saved_with_its_model(rule, tmp_path):
    model = DEXVisionTransformer(16, 8, num_classes=0, embed_dim=16, depth=2, num_heads=2, num_experts=3, rule=rule)
    model.eval()
    model.save_pretrained(tmp_path)
    loaded = DEXVisionTransformer.from_pretrained(tmp_path)
    assert rule_of(loaded) == rule
    images = torch.randn(2, 3, 16, 16)
    for one in (model, loaded):
        route_by_rule(one, ["a", "b"], ["MR", "CT"])
    assert torch.equal(model(images), loaded(images))


@pytest.mark.slow
def test_a_compiled_layer_takes_routes_without_compiling_again():
    layer = DEXMlp(8, 12, num_experts=4).eval()
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    x = torch.randn(2, 3, 8)
    torch._dynamo.reset()
    with torch.compiler.set_stance("default"):
        for chosen in ([[0, 1], [2, 3]], [[1, 3], [0, 2]]):
            set_routes(layer, [torch.tensor(chosen)])
            assert torch.equal(compiled(x), layer(x))
            assert sorted(layer.routing.indices[0].tolist()) == chosen[0]
    set_routes(layer, [torch.tensor([[0, 1], [0, 2]])])
    with torch.compiler.set_stance("fail_on_recompile"):
        compiled(x)


def test_a_mask_acts_on_given_experts_too():
    net = pair().eval()
    layer, x = net[0], torch.randn(2, 3, 8)
    set_routes(net, [torch.tensor([[0, 1], [2, 3]]), torch.tensor([[0], [1]])])
    with set_expert_mask(net, [torch.tensor([True, False, True, True]), torch.ones(3, dtype=torch.bool)]):
        net(x)
        dense = torch.zeros(2, 4).scatter(1, layer.routing.indices, layer.routing.gates)
        assert torch.equal(dense, torch.tensor([[1.0, 0, 0, 0], [0, 0, 0.5, 0.5]]))
    net(x)
    assert torch.equal(layer.routing.gates, torch.full((2, 2), 0.5))
