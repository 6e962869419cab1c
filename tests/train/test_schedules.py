"""Schedules at the steps where their values are known."""

from dataclasses import replace

import pytest

from dexcore.train.config import DataConfig, DexConfig, OptimizerConfig, PretrainConfig, RunConfig
from dexcore.train.schedules import Schedule

_CONFIG = PretrainConfig(
    data=DataConfig(batch_size=10),
    optimizer=OptimizerConfig(base_lr=0.512, warmup_epochs=2, min_lr=0.001),
    run=RunConfig(epochs=10),
)


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
