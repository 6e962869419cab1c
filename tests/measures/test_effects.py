"""Effects over seeds and cases: how often intervals hold, and whether the smallest effect is shown as often as said."""

import math

import numpy as np
import pytest

from dexcore.measures.bootstrap import estimate, two_level
from dexcore.measures.effects import (
    PILOT_CONFIDENCE,
    POWER,
    effect,
    smallest_effect,
    two_level_error,
    upper_deviation,
)
from dexcore.measures.verdicts import Verdict, judge

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


@pytest.mark.parametrize(("own", "shared"), [(0.0, 0.0), (0.0, 1.0), (0.7, 0.3)])
def test_two_level_intervals_hold_the_truth_where_percentiles_of_five_seeds_do_not(own, shared):
    random = np.random.default_rng(1)
    found = [study(random, 0.3, own=own, shared=shared) for _ in range(400)]
    held = np.mean([one.interval[0] < 0.3 < one.interval[1] for one in found])
    assert 0.935 <= held <= 0.985
    if not own and not shared:
        drawn = [np.tile(one.of_seeds, (200, 1)) for one in found[:200]]
        naive = [estimate(one.value, two_level(d), CASES) for one, d in zip(found[:200], drawn, strict=True)]
        assert np.mean([one.low < 0.3 < one.high for one in naive]) < 0.88


@pytest.mark.parametrize(("between", "shared"), [(1.0, 0.0), (1.0, 0.6)])
def test_the_smallest_effect_is_supported_as_often_as_stated_and_none_at_most_at_alpha(between, shared):
    random = np.random.default_rng(2)
    least = smallest_effect(between, SEEDS, shared, CASES)

    def supported(shift):
        verdicts = [
            judge({"c": study(random, shift, between, shared=shared)}, {"c": least / 2})["c"].verdict
            for _ in range(400)
        ]
        return np.mean([one is Verdict.SUPPORTED for one in verdicts])

    assert supported(least) == pytest.approx(POWER, abs=0.06)
    assert supported(0.0) <= 0.04  # one side of 0.05
    assert supported(least / 2) < POWER - 0.2


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
