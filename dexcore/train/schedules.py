"""What changes from step to step, as pure functions of the step (method sections 2 to 4)."""

import math
from dataclasses import dataclass

from dexcore.train.config import PretrainConfig


def half_cosine(start: float, end: float, progress: float) -> float:
    """From ``start`` at progress 0 to ``end`` at progress 1, flat at both ends."""
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * progress))


def learning_rate(step: int, total_steps: int, warmup_steps: int, peak: float, floor: float = 0.0) -> float:
    """Linear warm-up to ``peak`` at step ``warmup_steps``, then a half cosine to ``floor`` at
    ``total_steps``.

    The first step already moves: step s of the warm-up has ``peak * (s + 1) / (warmup_steps + 1)``.
    """
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    return half_cosine(peak, floor, (step - warmup_steps) / (total_steps - warmup_steps))


@dataclass(frozen=True)
class StepValues:
    """The scheduled values of one step."""

    lr: float
    momentum: float
    noise_std: float
    lambda_balance: float


@dataclass(frozen=True)
class Schedule:
    """The run's length in steps and its values at each.

    Batches run across the borders of epochs, so lengths given in epochs are rounded to whole steps.

    Args:
        config: the run.
        epoch_size: images an epoch.
    """

    config: PretrainConfig
    epoch_size: int

    @property
    def total_steps(self) -> int:
        """Steps of the whole run, at least 1."""
        return max(1, round(self.config.run.epochs * self.epoch_size / self.config.data.batch_size))

    @property
    def warmup_steps(self) -> int:
        """Steps of the warm-up, fewer than `total_steps`."""
        steps = round(self.config.optimizer.warmup_epochs * self.epoch_size / self.config.data.batch_size)
        return min(steps, self.total_steps - 1)

    def at(self, step: int) -> StepValues:
        """The values of step ``step``, counted from 0."""
        config, dex = self.config, self.config.dex
        progress = step / self.total_steps
        lambda_end = 0.0 if dex.balance_schedule == "cosine" else dex.lambda_balance
        return StepValues(
            lr=learning_rate(step, self.total_steps, self.warmup_steps, config.peak_lr, config.optimizer.min_lr),
            momentum=half_cosine(dex.momentum_start, dex.momentum_end, progress),
            noise_std=half_cosine(dex.noise_start, 0.0, progress),
            lambda_balance=half_cosine(dex.lambda_balance, lambda_end, progress),
        )
