"""Formulas of schedules at the steps where their values are known."""

import pytest

from dexcore.engine.schedules import half_cosine, learning_rate


def test_the_learning_rate_rises_in_a_line_and_falls_on_a_cosine():
    rates = [learning_rate(step, total_steps=14, warmup_steps=4, peak=1.0, floor=0.2) for step in range(15)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[9] == pytest.approx(0.6)  # half way
    assert rates[14] == pytest.approx(0.2)
    assert rates[4:] == sorted(rates[4:], reverse=True)


def test_without_warmup_the_first_step_has_the_peak():
    assert learning_rate(0, total_steps=10, warmup_steps=0, peak=3.0) == 3.0


def test_a_half_cosine_is_flat_at_its_ends():
    assert [half_cosine(2.0, 1.0, p) for p in (0.0, 0.5, 1.0)] == pytest.approx([2.0, 1.5, 1.0])
    assert 2.0 - half_cosine(2.0, 1.0, 0.01) < 0.001 > half_cosine(2.0, 1.0, 0.99) - 1.0
