"""A run on several real processes, and the same run on one to compare it with."""

import math
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from runs import ends, flags, metrics, similarities, start_ranks, tiny

from dexcore.engine.stop import EXIT_STOPPED, StopRequest
from dexcore.train.config import DexConfig, PretrainConfig
from dexcore.train.loop import Pretraining
from dexcore.train.run.folder import open_run_folder

RANK_RUN = str(Path(__file__).with_name("rank_run.py"))
BATCH = 12
FEW_STEPS = 12


def shared_run(store: Path, out: Path, steps: int = FEW_STEPS, accumulate: int = 1) -> PretrainConfig:
    """A run for one to three ranks in float32, all noise and all losses on."""
    config = tiny(store, out, precision="fp32", epochs=steps * BATCH / 20)
    data = replace(config.data, batch_size=BATCH, accumulate=accumulate)
    return replace(config, data=data, dex=DexConfig(lambda_align=0.1, lambda_balance=0.1))


class Disturbed(Pretraining):
    """A run that is sent a signal, or one of whose ranks is given a NaN.

    Attributes:
        until: the last rank gets a SIGTERM in the step before; 0: it does not.
        poison: a rank and a step, from 0.
    """

    until = 0
    poison = (-1, -1)

    def batches(self, workers, start_step=None):
        first = self.step_done if start_step is None else start_step
        for step, batch in enumerate(super().batches(workers, start_step), start=first):
            if (self.ranks.rank, step) == self.poison:
                batch["image"][0, 0, 3, 3] = math.nan
            if (self.ranks.rank, step) == (self.ranks.count - 1, self.until - 1):
                signal.raise_signal(signal.SIGTERM)
            yield batch


def alone(config: PretrainConfig, until: int = 0, poison: tuple[int, int] = (-1, -1)) -> Pretraining:
    """The run in this process."""
    with open_run_folder(config) as folder, StopRequest() as stop:
        run = Disturbed(config, folder)
        run.until, run.poison = until, poison
        run.resume()
        run.train(stop)
    return run


def on_ranks(count: int, config: PretrainConfig, *more: str, fresh: bool = False) -> list[dict[str, np.ndarray]]:
    """What `rank_run` left on every rank, in ``fresh`` interpreters or forked ones."""
    file, states = Path(config.out).with_suffix(".yaml"), Path(config.out).with_suffix(".states")
    states.mkdir(exist_ok=True)
    flags(config, file.parent)
    codes, _, errors = ends(start_ranks(count, [RANK_RUN, str(file), str(states), *more], fresh))
    assert codes == [EXIT_STOPPED if "--until" in more else 0] * count, errors
    return [dict(np.load(states / f"rank{rank}.npz")) for rank in range(count)]


def assert_same_run(one: str | Path, other: str | Path) -> None:
    """Equal to float noise in every number of every step."""
    assert len(metrics(one)) == len(metrics(other))
    for a, b in zip(metrics(one), metrics(other), strict=True):
        assert (a["step"], a["epoch"], a["skipped"]) == (b["step"], b["epoch"], b["skipped"])
        for name in ("loss", "loss_self", "loss_align", "loss_balance", "grad_norm", "lr", "noise_std"):
            assert a[name] == pytest.approx(b[name], rel=2e-5, abs=1e-7), (a["step"], name)
        for block, other_block in zip(a["load"], b["load"], strict=True):
            assert block == pytest.approx(other_block, abs=1e-4), a["step"]
    assert len(similarities(one)) == len(similarities(other))
    for a, b in zip(similarities(one), similarities(other), strict=True):
        assert a["step"] == b["step"]
        for block, other_block in zip(a["blocks"], b["blocks"], strict=True):
            np.testing.assert_allclose(block, other_block, rtol=0, atol=1e-3)


def assert_bit_identical(ranks: list[dict[str, np.ndarray]]) -> None:
    for rank in ranks[1:]:
        assert rank.keys() == ranks[0].keys()
        assert all(np.array_equal(rank[name], value) for name, value in ranks[0].items())


def without_balance(config: PretrainConfig) -> PretrainConfig:
    return replace(config, dex=replace(config.dex, lambda_balance=0.0))


def assert_same_but_for_balance(one: str | Path, other: str | Path) -> None:
    """The balance loss is each part's own."""
    for a, b in zip(metrics(one), metrics(other), strict=True):
        for name in ("loss", "loss_self", "loss_align", "grad_norm"):
            assert a[name] == pytest.approx(b[name], rel=2e-5), (a["step"], name)
        for block, other_block in zip(a["load"], b["load"], strict=True):
            assert block == pytest.approx(other_block, abs=1e-4), a["step"]
