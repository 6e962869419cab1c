"""Effects over seeds and cases: how often intervals hold, and whether the smallest effect is shown as often as said."""

import math

import numpy as np
import pytest

from dexcore.measures.bootstrap import estimate
from dexcore.measures.effects import (
    PILOT_CONFIDENCE,
    POWER,
    effect,
    smallest_effect,
    stratified_freedom,
    two_level_error,
    upper_deviation,
)
from dexcore.measures.verdicts import Verdict, judge, support_power

SEEDS, CASES = 5, 60
WEIGHTS = np.random.default_rng(0).multinomial(CASES, np.full(CASES, 1 / CASES), size=100) / CASES


def study(random, shift, between=1.0, own=0.0, shared=0.0, seeds=SEEDS):
    """The effect that a simulated experiment finds: seeds differ, and cases differ for all seeds and for each."""
    value_gs = (
        shift
        + between * random.normal(size=seeds)
        + shared * math.sqrt(CASES) * random.normal(size=(CASES, 1))
        + own * math.sqrt(CASES) * random.normal(size=(CASES, seeds))
    )
    return effect(value_gs.mean(axis=0), WEIGHTS @ value_gs, CASES)


def seeds_drawn(drawn_ds):
    """The mean over trainings, which are drawn with replacement in each draw of cases."""
    chosen = np.random.default_rng([0, 1]).integers(0, drawn_ds.shape[1], drawn_ds.shape)
    return np.take_along_axis(drawn_ds, chosen, axis=1).mean(axis=1)


@pytest.mark.parametrize(("own", "shared"), [(0.0, 0.0), (0.0, 1.0), (0.7, 0.3)])
def test_two_level_intervals_hold_the_truth_where_percentiles_of_five_seeds_do_not(own, shared):
    random = np.random.default_rng(1)
    found = [study(random, 0.3, own=own, shared=shared) for _ in range(400)]
    held = np.mean([one.interval[0] < 0.3 < one.interval[1] for one in found])
    assert 0.935 <= held <= 0.985
    if not own and not shared:
        drawn = [np.tile(one.of_seeds, (200, 1)) for one in found[:200]]
        naive = [estimate(one.value, seeds_drawn(d), CASES) for one, d in zip(found[:200], drawn, strict=True)]
        assert np.mean([one.low < 0.3 < one.high for one in naive]) < 0.88


@pytest.mark.parametrize(("between", "shared"), [(1.0, 0.0), (1.0, 0.6)])
def test_the_smallest_effect_is_supported_as_often_as_stated_and_none_at_most_at_alpha(between, shared):
    random = np.random.default_rng(2)
    least = smallest_effect(between, SEEDS, shared, CASES - 1)

    def supported(shift):
        verdicts = [
            judge({"c": study(random, shift, between, shared=shared)}, {"c": least / 2})["c"].verdict
            for _ in range(400)
        ]
        return np.mean([one is Verdict.SUPPORTED for one in verdicts])

    assert supported(least) == pytest.approx(POWER, abs=0.06)
    assert supported(0.0) <= 0.04  # one side of 0.05
    assert supported(least / 2) < POWER - 0.2


@pytest.mark.parametrize("times", [0.5, 1.0, 2.0, 4.0])
def test_a_claim_is_supported_as_often_as_its_power_says_given_its_margin(times):
    random = np.random.default_rng(8)
    spread = (1.0, SEEDS, 0.6, CASES - 1)
    least = smallest_effect(*spread)
    margin = times * least

    def supported(shift):
        found = [judge({"c": study(random, shift, shared=0.6)}, {"c": margin})["c"].verdict for _ in range(400)]
        return np.mean([one is Verdict.SUPPORTED for one in found])

    for shift in (least, margin):
        assert supported(shift) == pytest.approx(support_power(shift, margin, *spread), abs=0.07)
    if times == 4:
        assert support_power(least, margin, *spread) < 0.1  # there, and too small to matter
        assert support_power(margin, margin, *spread) > 0.95


def test_an_experiment_that_a_pilots_upper_deviation_planned_keeps_its_promise_as_often_as_said():
    random = np.random.default_rng(3)
    deviations = random.normal(size=(4000, 3)).std(axis=1, ddof=1)
    upper = np.array([upper_deviation(one, 3) for one in deviations])
    assert np.mean(upper >= 1.0) == pytest.approx(PILOT_CONFIDENCE, abs=0.03)
    assert np.mean(deviations >= 1.0) < 0.45  # what a pilot finds is too small more often than not


def test_more_seeds_more_cases_and_fewer_claims_show_smaller_effects():
    known = smallest_effect(1.0, 5, 0.1, 100)
    assert smallest_effect(1.0, 10, 0.1, 100) < known
    assert smallest_effect(1.0, 5, 0.5, 100) > known
    assert smallest_effect(1.0, 5, 0.1, 100, alpha=0.05 / 7) > known
    assert smallest_effect(2.0, 5, 0.2, 100) == pytest.approx(2 * known)


def test_seeds_and_cases_stand_apart():
    random = np.random.default_rng(4)
    found = study(random, 0.0, between=0.0, shared=1.0)
    assert found.deviation_seeds < 1e-12
    assert found.deviation_cases == pytest.approx(1.0, rel=0.4)
    widths = [high - low for low, high in (found.interval, found.seeds_interval, found.cases_interval)]
    assert widths[0] >= widths[2] > widths[1]


def test_one_seed_has_an_interval_of_cases_and_no_other():
    random = np.random.default_rng(5)
    found = study(random, 1.0, shared=0.1, seeds=1)
    assert all(map(math.isnan, (*found.interval, *found.seeds_interval, found.p_above())))
    assert found.cases_interval[0] < found.value < found.cases_interval[1]
    assert math.isnan(smallest_effect(math.nan, 1, 0.1, 50))
    assert two_level_error(0.0, 5, 0.0, 10) == (0.0, 4.0)


def test_a_small_stratum_that_carries_the_variance_lends_its_freedom_alone():
    random = np.random.default_rng(6)
    stratum = np.repeat([0, 1, 2], [3, 80, 80])
    change = random.normal(size=len(stratum))
    alike = np.where(stratum == 0, 0.0, change)
    assert stratified_freedom(alike, stratum) == pytest.approx(158, rel=0.1)
    assert stratified_freedom(np.where(stratum == 0, 30 * change, change), stratum) == pytest.approx(2, abs=0.1)
    assert stratified_freedom(change, np.zeros(len(stratum))) == len(stratum) - 1
    assert stratified_freedom(np.ones(3), np.arange(3)) == 0


def test_intervals_over_strata_of_few_cases_hold_the_truth_where_all_cases_as_freedom_do_not():
    # A mean over two modalities: 4 cases of one, which differ much, and 96 of the other.
    random = np.random.default_rng(7)
    stratum = np.repeat([0, 1], [4, 96])
    weight_gs = np.stack([(stratum == m) / (stratum == m).sum() / 2 for m in (0, 1)], axis=1).sum(axis=1)
    held = {"own": [], "all": []}
    for _ in range(600):
        value_g = random.normal(size=100) * np.where(stratum == 0, 1.0, 0.5)
        changes = weight_gs * (value_g - np.array([value_g[stratum == m].mean() for m in (0, 1)])[stratum])
        deviation = math.sqrt(sum((changes[stratum == m] ** 2).sum() for m in (0, 1)))
        for name, freedom in (("own", stratified_freedom(changes, stratum)), ("all", None)):
            drawn = deviation * np.array([[-1.0], [1.0]]) + np.zeros(2)
            found = effect([float(weight_gs @ value_g)] * 2, drawn, 100, freedom)
            held[name].append(found.cases_interval[0] < 0 < found.cases_interval[1])
    assert np.mean(held["all"]) < 0.88
    assert np.mean(held["own"]) > 0.92


def test_cases_without_freedom_give_no_interval_and_undrawn_ones_do_not_count():
    assert all(map(math.isnan, two_level_error(1.0, 5, 0.1, 0.0)))
    assert two_level_error(1.0, 5, 0.0, 0.0) == pytest.approx((1 / math.sqrt(5), 4.0))
