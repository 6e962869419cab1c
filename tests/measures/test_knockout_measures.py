"""Specificity and own damage: hand-made numbers, and how often they see what is not there."""

import numpy as np
import pytest

from dexcore.measures.bootstrap import drawn_numbers
from dexcore.measures.effects import effect
from dexcore.measures.knockout import (
    MEAN,
    KnockOut,
    damage_bounds,
    own_damage,
    specificity,
    specificity_statistic,
)

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
    nothing = specificity(found(load, worth_to_all), 20, 20)
    assert nothing.value.value == pytest.approx(0, abs=1e-12)
    assert np.isnan(nothing.correlation)
    tilted = load + 0.05 * (np.eye(3) - 1 / 3)
    random = np.random.default_rng(0)
    noisy = worth_to_all + random.normal(0, 0.1, (30, 3))
    assert abs(specificity(found(tilted, noisy), 20, 100).value.value) < 0.003
    told = specificity(found(tilted, noisy + 0.5 * np.eye(3)[LABEL]), 100, 100)
    # 0.5 of the loss, where two in 60 more use the own expert.
    assert told.value.value == pytest.approx(0.5 * 0.05 * 2 / 3, rel=0.15)
    assert told.value.low > 0
    assert told.correlation > 0.8
    assert told.p_value < 0.02


def test_damage_against_use_is_negative():
    told = specificity(found(np.eye(3), -np.eye(3)[LABEL]), 20, 20)
    assert told.value.value == pytest.approx(-2 / 3)
    assert told.correlation == pytest.approx(-1)


def test_specificity_is_as_large_as_what_is_lost():
    # Each modality has an expert, and loses so much without it; of an expert drawn as all use them, a third.
    for lost in (0.3, 1e-7):
        told = specificity(found(np.eye(3), lost * np.eye(3)[LABEL], loss=1.0), 20, 20)
        assert told.value.value == pytest.approx(lost * 2 / 3)
        assert told.correlation == pytest.approx(1)


def test_an_expert_that_all_use_most_and_all_need_is_not_specific():
    use = np.array([[0.50, 0.4, 0.1], [0.5, 0.35, 0.15], [0.5, 0.45, 0.05]])
    needed = found(use, np.tile([5.0, 1.0, 1.0], (30, 1)))
    assert own_damage(needed, 20)[MEAN].own_minus_matched.value == pytest.approx(4)  # it is of use, to all
    assert specificity(needed, 20, 20).value.value == pytest.approx(0, abs=1e-12)


def test_where_nothing_varies_specificity_is_zero():
    copies = specificity(found(np.eye(3), np.zeros((30, 3))), 20, 20)
    collapsed = specificity(found(np.full((3, 3), 1 / 3), np.eye(3)[LABEL]), 20, 20)
    for told in (copies, collapsed):
        assert told.value.value == pytest.approx(0, abs=1e-12)
        assert told.p_value == 1
        assert np.isnan(told.correlation)


def follows_a_tag(random, modalities, cases, experts=8, seeds=5):
    """Knock-outs of seeds whose routers all follow one tag of the images, of which no modality has more."""
    label = np.repeat(np.arange(modalities), cases)
    held, train = random.integers(experts, size=(2, len(label)))
    for _ in range(seeds):
        gained, shares = [], []
        for _ in range(2):
            to_expert = np.eye(experts)[random.permutation(experts)]
            gained.append(to_expert[held] * (0.1 + 0.03 * random.normal(size=(len(label), 1))))
            shares.append(np.stack([to_expert[train[label == m]].mean(axis=0) for m in range(modalities)]))
        names = tuple(map(str, range(modalities)))
        yield KnockOut(names, label, np.ones(len(label)), np.ones(len(label)), tuple(gained), tuple(shares), "reroute")


def share_above_zero(studies, modalities, cases, draws):
    """How often an experiment of five seeds sees specificity where routers follow what is not the modality."""
    random, seen, values, errors = np.random.default_rng(0), [], [], []
    for _ in range(studies):
        told = [
            (*drawn_numbers([specificity_statistic(one)], one.label_g, draws), len(one.label_g))
            for one in follows_a_tag(random, modalities, cases)
        ]
        of_seeds, drawn, groups = zip(*told, strict=True)
        study = effect(np.concatenate(of_seeds), np.concatenate(drawn, axis=1), groups[0])
        seen.append(study.p_above() < 0.025)
        values.append(study.value)
        errors.append(study.deviation_cases)
    return np.mean(seen), np.mean(errors) / np.std(values)


def test_draws_of_cases_spread_as_far_as_other_cases_move_specificity():
    seen, spread = share_above_zero(60, 4, 24, 60)
    assert 0.8 < spread < 1.25  # 0.7 of a correlation
    assert seen <= 5 / 60


@pytest.mark.slow
@pytest.mark.parametrize(("modalities", "studies"), [(4, 400), (10, 150)])
def test_seeds_that_follow_one_tag_look_specific_as_rarely_as_stated(modalities, studies):
    seen, spread = share_above_zero(studies, modalities, 64, 200)
    assert 0.9 < spread < 1.15
    assert seen < 0.025 + 3 * (0.025 * 0.975 / studies) ** 0.5


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
