"""Schedules at the steps where their values are known."""

from dataclasses import replace

import pytest

from dexcore.engine.schedules import half_cosine, learning_rate
from dexcore.train.config import DataConfig, DexConfig, OptimizerConfig, PretrainConfig, RunConfig
from dexcore.train.schedules import Schedule

_CONFIG = PretrainConfig(
    data=DataConfig(batch_size=10),
    optimizer=OptimizerConfig(base_lr=0.512, warmup_epochs=2, min_lr=0.001),
    run=RunConfig(epochs=10),
)


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


def test_epochs_become_steps_of_the_whole_run():
    schedule = Schedule(_CONFIG, epoch_size=25)
    assert (schedule.total_steps, schedule.warmup_steps) == (25, 5)
    assert Schedule(_CONFIG, epoch_size=1).total_steps == 1


def test_every_schedule_has_its_ends_and_its_middle():
    schedule = Schedule(_CONFIG, epoch_size=20)  # 20 steps, 4 of warm-up
    first, middle = schedule.at(0), schedule.at(10)
    assert (first.momentum, first.noise_std, first.lambda_balance) == pytest.approx((0.99, 1.0, 0.001))
    assert (middle.momentum, middle.noise_std, middle.lambda_balance) == pytest.approx((0.9945, 0.5, 0.0005))
    assert schedule.at(4).lr == pytest.approx(0.01)
    end = schedule.at(20)
    assert (end.lr, end.momentum) == pytest.approx((0.001, 0.999))
    assert (end.noise_std, end.lambda_balance) == pytest.approx((0, 0))


def test_a_constant_balance_weight_stays():
    schedule = Schedule(replace(_CONFIG, dex=DexConfig(lambda_balance=0.01, balance_schedule="constant")), 20)
    assert schedule.at(0).lambda_balance == schedule.at(19).lambda_balance == 0.01
