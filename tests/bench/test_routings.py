"""Routings: who uses what, and a router that is made to choose so."""

import pytest
import torch

from bench.routings import ROUTINGS, counts, routing, steer
from dexcore.ops import route


@pytest.mark.parametrize("name", ROUTINGS)
@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_every_image_has_distinct_experts_and_gates_that_are_far_from_zero(name, top_k):
    gates, indices = routing(name, 50, 8, top_k)
    assert indices.shape == gates.shape == (50, top_k)
    assert indices.is_contiguous()
    assert gates.is_contiguous()
    assert all(len(set(chosen)) == top_k for chosen in indices.tolist())
    torch.testing.assert_close(gates.sum(1), torch.ones(50))
    assert gates.min() > 0.2


def test_routings_use_experts_as_their_names_say():
    uniform, zipf, two = (torch.tensor(counts(name, 2000, 8, 2)) for name in ROUTINGS)
    assert uniform.min() > 0.9 * 500
    assert uniform.max() < 1.1 * 500
    assert zipf.tolist() == sorted(zipf.tolist(), reverse=True)
    assert zipf[0] > 3 * zipf[7] > 0
    assert two.tolist() == [2000, 2000, 0, 0, 0, 0, 0, 0]


def test_a_routing_is_the_same_at_every_call():
    for first, second in zip(routing("zipf", 20, 8, 2), routing("zipf", 20, 8, 2), strict=True):
        assert torch.equal(first, second)


def test_an_unknown_routing_is_named():
    with pytest.raises(ValueError, match="uniform, zipf, two"):
        routing("even", 4, 8, 2)


@pytest.mark.parametrize("name", ROUTINGS)
def test_a_steered_router_chooses_the_routing(name):
    x, weight = torch.randn(30, 3, 24), torch.empty(8, 24)
    others = x[:, 1:].clone()
    steer(x, weight, name, 2)
    gates, indices, _ = route(x, weight, 2)
    wanted_gates, wanted_indices = routing(name, 30, 8, 2)
    assert torch.equal(indices, wanted_indices)
    torch.testing.assert_close(gates, wanted_gates)
    assert torch.equal(x[:, 1:], others)


def test_steering_needs_a_width_of_at_least_the_experts():
    with pytest.raises(ValueError, match="at least the number of experts, 8, got 7"):
        steer(torch.randn(2, 3, 7), torch.empty(8, 7), "uniform", 2)
