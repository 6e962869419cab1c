"""Intervals: whom they count, how often they hold, what is not defined."""

import math

import numpy as np
import pytest

from dexcore.measures.bootstrap import bootstrap, mean_statistic, resamples

RANDOM = np.random.default_rng(0)


def interval(values, **options):
    """Of the mean of values [g]."""
    strata = np.zeros(len(values), int)
    return bootstrap({"mean": mean_statistic(np.asarray(values, float)[:, None])}, strata, **options)["mean"]


def test_each_stratum_is_drawn_as_often_as_it_has_groups_and_no_draw_is_another():
    strata = np.array([0, 1, 1, 0, 2, 1])
    weights = np.concatenate(list(resamples(strata, 250)))
    assert len(weights) == 250
    for stratum in range(3):
        assert (weights[:, strata == stratum].sum(axis=1) == (strata == stratum).sum()).all()
    assert weights.mean(axis=0) == pytest.approx(np.ones(6), abs=0.2)
    assert len(np.unique(weights, axis=0)) == 3 * 10 * 1  # all that there are


def test_a_seed_acts_and_fixes_the_draws():
    first, again, other = (np.concatenate(list(resamples(np.zeros(9), 130, seed))) for seed in (0, 0, 1))
    assert first.tobytes() == again.tobytes()
    assert not np.array_equal(first, other)


def test_the_interval_of_a_mean_is_that_of_the_normal_law_where_cases_are_many():
    values = RANDOM.normal(size=4000)
    found = interval(values)
    error = values.std() / math.sqrt(len(values))
    assert found.value == pytest.approx(values.mean())
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.05)
    assert found.deviation == pytest.approx(error, rel=0.05)
    assert (found.undefined, found.groups) == (0, 4000)


def test_values_that_are_not_defined_take_no_part_and_columns_weigh_the_same():
    values = np.array([[1.0, math.nan, math.nan], [0.0, math.nan, math.nan], [0.5, 0.2, math.nan]])
    found = bootstrap({"mean": mean_statistic(values)}, np.zeros(3, int))["mean"]
    assert found.value == pytest.approx((0.5 + 0.2) / 2)
    # The second column has a value in one case: a draw without it has no mean, and says so.
    assert found.undefined / 2000 == pytest.approx((2 / 3) ** 3, abs=0.05)
    assert math.isnan(bootstrap({"m": mean_statistic(np.full((3, 2), math.nan))}, np.zeros(3, int))["m"].value)


def test_one_case_has_a_value_and_no_interval():
    found = interval([0.7])
    assert (found.value, math.isnan(found.low), found.groups) == (0.7, True, 1)
    assert str(found) == "0.700 [no interval]"
    assert str(interval([math.nan, math.nan])) == "not defined"


def test_all_statistics_see_the_same_draws():
    values = RANDOM.normal(size=(30, 1))
    one, other = mean_statistic(values), mean_statistic(values + 1)
    found = bootstrap({"difference": lambda w: other(w) - one(w)}, np.zeros(30, int))["difference"]
    assert (found.low, found.high) == pytest.approx((1, 1))


def _coverage(cases, slices, simulations):
    """How often intervals over cases and over slices hold the truth, 0, and how wide they are."""
    random = np.random.default_rng(0)
    held, width = np.zeros(2), np.zeros(2)
    for seed in range(simulations):
        case = random.normal(size=cases)
        values = case[:, None] + 0.5 * random.normal(size=(cases, slices))
        for index, one in enumerate((values.mean(axis=1), values.ravel())):
            found = interval(one, draws=1000, seed=seed)
            held[index] += found.low <= 0 <= found.high
            width[index] += found.high - found.low
    return held / simulations, width


def test_an_interval_over_slices_is_a_third_as_wide_as_one_over_cases():
    _, width = _coverage(cases=20, slices=50, simulations=4)
    assert width[0] >= 3 * width[1]


@pytest.mark.slow
def test_the_interval_holds_the_truth_over_cases_and_not_over_slices():
    held, width = _coverage(cases=20, slices=50, simulations=400)
    assert 0.90 <= held[0] <= 0.97
    assert held[1] < 0.5
    assert width[0] >= 3 * width[1]
