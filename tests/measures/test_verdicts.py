"""The rule of verdicts."""

import numpy as np
import pytest

from dexcore.measures.effects import effect
from dexcore.measures.verdicts import Verdict, judge


def shown(value, spread=0.01, seeds=5):
    return effect(value + spread * np.linspace(-1, 1, seeds), np.zeros((0, seeds)), 40)


@pytest.mark.parametrize(
    ("value", "spread", "verdict"),
    [
        (0.30, 0.01, Verdict.SUPPORTED),
        (0.00, 0.01, Verdict.REFUTED),
        (-0.30, 0.01, Verdict.REFUTED),
        (0.05, 0.01, Verdict.REFUTED),  # above zero, and too small to matter
        (0.05, 0.50, Verdict.NOT_DECIDED),
        (0.30, 0.50, Verdict.NOT_DECIDED),
    ],
)
def test_the_interval_is_held_against_zero_and_against_what_would_matter(value, spread, verdict):
    assert judge({"c": shown(value, spread)}, {"c": 0.1})["c"].verdict is verdict


def test_one_claim_alone_is_judged_by_its_interval():
    for value in np.linspace(0.01, 0.3, 30):
        found = shown(value, 0.1)
        low, high = found.interval
        verdict = judge({"c": found}, {"c": 0.2})["c"].verdict
        expected = Verdict.REFUTED if high < 0.2 else Verdict.SUPPORTED if low > 0 else Verdict.NOT_DECIDED
        assert verdict is expected


def test_a_claim_among_many_needs_more():
    one = shown(0.1, 0.08)
    alone = judge({"c": one}, {"c": 0.05})["c"]
    many = judge(
        {"c": one} | {f"other {n}": shown(0.0, 0.3) for n in range(9)},
        dict.fromkeys(["c", *(f"other {n}" for n in range(9))], 0.05),
    )["c"]
    assert alone.verdict is Verdict.SUPPORTED
    assert many.verdict is Verdict.NOT_DECIDED
    assert many.p_above == pytest.approx(10 * alone.p_above)


def test_one_seed_decides_nothing():
    assert judge({"c": shown(5.0, 0.0, seeds=1)}, {"c": 0.1})["c"].verdict is Verdict.NOT_DECIDED


def test_a_margin_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"margins\['c'\] is 0"):
        judge({"c": shown(1.0)}, {"c": 0})
