"""Specificity and own damage: hand-made numbers, and how often they see what is not there."""

import numpy as np
import pytest

from dexcore.measures.knockout import MEAN, KnockOut, damage_bounds, own_damage, specificity

LABEL = np.repeat(np.arange(3), 10)


def found(shares_mr, gained_gr, loss=1.0):
    """One layer; a case is an image."""
    names = tuple("abc"[: len(shares_mr)])
    ones = np.ones(len(gained_gr))
    return KnockOut(names, LABEL[: len(gained_gr)], ones, loss * ones, (gained_gr,), (shares_mr,), "reroute")


def test_damage_is_a_share_of_the_modalitys_own_loss():
    made = found(np.eye(3), np.eye(3)[LABEL], loss=4.0)
    assert np.allclose(made.damage[0], np.eye(3) / 4)


def test_each_damage_has_an_interval_over_cases():
    gained = np.random.default_rng(0).normal(1, 0.5, (30, 3))
    made = found(np.eye(3), gained)
    (low,), (high,) = damage_bounds(made, 500)
    assert (low < made.damage[0]).all()
    assert (made.damage[0] < high).all()
    assert (high - low).mean() == pytest.approx(2 * 1.96 * 0.5 / 10**0.5, rel=0.2)
    (same,), _ = damage_bounds(found(np.eye(3), np.eye(3)[LABEL]), 20)
    assert np.allclose(same, np.eye(3))


def test_an_experts_load_and_its_worth_to_all_are_no_specificity():
    load = np.tile([0.6, 0.3, 0.1], (3, 1))
    worth_to_all = np.tile([3.0, 2.0, 1.0], (30, 1))
    assert np.isnan(specificity(found(load, worth_to_all), 20, 20).value.value)
    tilted = load + 0.05 * (np.eye(3) - 1 / 3)
    random = np.random.default_rng(0)
    noisy = worth_to_all + random.normal(0, 0.1, (30, 3))
    assert abs(specificity(found(tilted, noisy), 20, 100).value.value) < 0.9
    told = specificity(found(tilted, noisy + 0.5 * np.eye(3)[LABEL]), 100, 100)
    assert told.value.low > 0.8
    assert told.p_value < 0.02


def test_damage_against_use_is_negative():
    assert specificity(found(np.eye(3), -np.eye(3)[LABEL]), 20, 20).value.value == pytest.approx(-1)


def test_routing_by_nothing_is_seen_as_specific_no_more_often_than_stated():
    p_values = []
    for seed in range(100):
        random = np.random.default_rng(seed)
        train, held = (np.eye(4)[random.integers(4, size=30)] for _ in range(2))
        shares = np.stack([train[LABEL == m].mean(axis=0) for m in range(3)])
        damage = held * random.gamma(2, 1, (30, 1))  # who uses the expert loses, more or less
        p_values.append(specificity(found(shares, damage), 2, 60, seed).p_value)
    assert np.mean(np.array(p_values) < 0.05) < 0.12
    assert 0.4 < np.mean(p_values) < 0.6


def test_own_experts_are_compared_with_those_of_equal_load():
    shares = np.array([[0.5, 0.1, 0.4], [0.1, 0.5, 0.4], [0.3, 0.3, 0.4]])  # loads 0.3, 0.3, 0.4
    gained = np.array([[3.0, 1.0, 9.0], [1.0, 3.0, 9.0], [0.0, 0.0, 5.0]])[LABEL]
    own = own_damage(found(shares, gained), 50)
    assert (own["a"].own.value, own["a"].matched.value, own["a"].random.value) == pytest.approx((3, 1, 5))
    assert own["a"].own_minus_matched.low == pytest.approx(2)
    assert own["c"].own.value == pytest.approx(5)  # it uses the third most
    assert own[MEAN].own.value == pytest.approx(11 / 3)
    assert own[MEAN].own_minus_random.value == pytest.approx(11 / 3 - (5 + 5 + 0) / 3)
