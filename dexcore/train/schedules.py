"""What changes from step to step of pre-training, as a function of the step (method sections 2 to 4)."""

from dataclasses import dataclass

from dexcore.engine.config import check_field
from dexcore.engine.schedules import half_cosine, learning_rate
from dexcore.train.config import PretrainConfig


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

    def moments(self, every: float, name: str) -> frozenset[int]:
        """Numbers of steps done: none, those after every so many epochs, and all.

        Args:
            every: epochs.
            name: of the field that says so.

        Raises:
            ConfigError: less than a step is between two moments.
        """
        batch_size = self.config.data.batch_size
        least = batch_size / self.epoch_size
        check_field(
            every >= least * (1 - 1e-6),  # roundings of a tenth of ten steps, say
            name,
            f"at least a step, {least:.3g} epochs of {self.epoch_size} images in steps of {batch_size}",
            every,
        )
        steps = every / least
        between = {round(number * steps) for number in range(int(self.total_steps / steps) + 1)}
        return frozenset({step for step in between if step < self.total_steps} | {self.total_steps})

    def at(self, step: int) -> StepValues:
        """The values of step ``step``, counted from 0; without a router there is neither noise nor balance loss."""
        config, dex = self.config, self.config.dex
        progress = step / self.total_steps
        noise, balance = (dex.noise_start, dex.lambda_balance) if config.model.mlp == "dex" else (0.0, 0.0)
        balance_end = 0.0 if dex.balance_schedule == "cosine" else balance
        return StepValues(
            lr=learning_rate(step, self.total_steps, self.warmup_steps, config.peak_lr, config.optimizer.min_lr),
            momentum=half_cosine(dex.momentum_start, dex.momentum_end, progress),
            noise_std=half_cosine(noise, 0.0, progress),
            lambda_balance=half_cosine(balance, balance_end, progress),
        )
