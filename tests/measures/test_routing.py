"""Routing against its nulls: by case, over depth, against random routers, from seed to seed."""

import numpy as np
import pytest
import torch

from dexcore import ops
from dexcore.measures.routing import control, over_depth, random_routers, stability, top_k_gates

LABEL = np.repeat(np.arange(3), 12)  # 36 cases


def routed(random, follows, experts=4, slices=6):
    """The mass of each case: its slices go to its modality's expert, or all to one that is drawn for the case."""
    own = LABEL if follows else random.integers(experts, size=len(LABEL))
    return slices * np.eye(experts)[own]


def test_p_of_per_volume_random_routing_is_even_by_case_and_tiny_by_slice():
    by_case, by_slice = [], []
    for seed in range(40):
        mass = routed(np.random.default_rng(seed), follows=False)
        by_case.append(over_depth([mass], LABEL, draws=100, permutations=100, seed=seed).blocks[0].p_value)
        slices, label = np.repeat(mass / 6, 6, axis=0), np.repeat(LABEL, 6)
        by_slice.append(over_depth([slices], label, draws=100, permutations=100, seed=seed).blocks[0].p_value)
    assert 0.35 < np.mean(by_case) < 0.65
    assert 0.1 < np.mean(np.array(by_case) < 0.25) < 0.4
    assert np.median(by_slice) < 0.02


def test_routing_by_modality_is_near_its_most_and_random_routing_near_nothing():
    random = np.random.default_rng(0)
    found = over_depth([routed(random, True), routed(random, False)], LABEL, draws=200, permutations=200)
    first, second = found.blocks
    assert first.nmi == pytest.approx(1)
    assert first.p_value == pytest.approx(1 / 201)
    assert first.value.value == pytest.approx(1 - first.null_mean)
    assert first.value.low > 0.8
    assert second.value.low < 0 < second.value.high
    assert found.mean.value == pytest.approx((first.value.value + second.value.value) / 2)
    assert found.slope.value == pytest.approx(second.value.value - first.value.value)
    assert found.slope.high < 0
    assert found.slope.groups == 36


def test_the_slope_is_that_of_least_squares_and_one_block_has_none():
    random = np.random.default_rng(1)
    masses = [routed(random, follows) for follows in (True, False, True, False)]
    found = over_depth(masses, LABEL, draws=20, permutations=20)
    values = [one.value.value for one in found.blocks]
    assert found.slope.value == pytest.approx(np.polyfit(np.linspace(0, 1, 4), values, 1)[0])
    assert np.isnan(over_depth(masses[:1], LABEL, draws=20, permutations=20).slope.value)


def test_a_router_is_compared_with_others_on_the_same_draws():
    random = np.random.default_rng(2)
    others = [routed(random, False) for _ in range(5)]
    found = control(routed(random, True), others, LABEL, draws=200)
    assert found.minus.value > 0.8
    assert found.minus.low > 0.6
    assert found.mean <= found.highest < 0.2
    same = control(others[0], [others[0]] * 3, LABEL, draws=50)
    assert (same.minus.value, same.minus.low, same.minus.high) == pytest.approx((0, 0, 0), abs=1e-12)


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_gates_are_those_of_the_routing_op(top_k):
    x, weight = torch.randn(7, 1, 5, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    gates, indices, _ = ops.route(x, weight, top_k, 0.5)
    expected = torch.zeros(7, 4, dtype=torch.float64).scatter(1, indices, gates)
    np.testing.assert_allclose(top_k_gates((x[:, 0] @ weight.T).numpy(), top_k, 0.5), expected, atol=1e-12)


def test_random_routers_are_as_sharp_as_asked_differ_and_are_drawn_by_their_seed():
    features = np.random.default_rng(0).normal(3, 2, (50, 6))
    first, again, other = (list(random_routers(features, 1.5, 4, 2, 0.5, 3, seed)) for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])
    assert not np.array_equal(first[0], first[1])
    for gates in first:
        assert ((gates > 0).sum(axis=1) == 2).all()
        assert np.allclose(gates.sum(axis=1), 1)
    (soft,), (sharp,) = (list(random_routers(features, spread, 4, 2, 0.5, 1)) for spread in (0.01, 10))
    assert soft.max() < 0.52
    assert np.median(sharp.max(axis=1)) > 0.99
    (constant,) = random_routers(np.ones((3, 2)), 1.0, 4, 2, 0.5, 1)
    assert (constant[:, :2] == 0.5).all()


def test_renamed_experts_are_stable_and_random_ones_are_not():
    pytest.importorskip("scipy")
    random = np.random.default_rng(3)
    by_modality = routed(random, True)
    found = stability([by_modality, by_modality[:, [2, 3, 0, 1]], by_modality[:, ::-1]], LABEL, 50, 50)
    assert found.value.value == pytest.approx(1)
    assert found.p_value == pytest.approx(1 / 51)
    assert found.null_95 < 0.98
    drawn = stability([routed(random, False) for _ in range(3)], LABEL, 50, 50)
    assert drawn.value.value < found.value.value
    assert drawn.p_value > 0.05


def test_stability_of_one_seed_is_refused():
    with pytest.raises(ValueError, match="masses: expected those of two seeds or more"):
        stability([np.ones((36, 4))], LABEL)
    with pytest.raises(ValueError, match=r"got \(36, 4\), \(36, 3\)"):
        stability([np.ones((36, 4)), np.ones((36, 3))], LABEL)
