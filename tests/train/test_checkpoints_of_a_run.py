"""Checkpoints that are written while a run goes on: of the run itself nothing changes, whatever happens meanwhile."""

import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from runs import ends, flags, metrics, start_ranks, state, tiny
from several_ranks import alone, shared_run

from dexcore.train.config import ParallelConfig

KILLED = """
import os, signal, sys, threading, time
from pathlib import Path
from dexcore.train.command import main

run, written, until = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
fsync = os.fsync

def killed(descriptor):
    "While a checkpoint is written, some steps after it began."
    if threading.current_thread().name.startswith("checkpoint") and any(run.glob(f"checkpoints/.saving-{written}-*")):
        while (run / "metrics.jsonl").read_bytes().count(b"\\n") < until:
            time.sleep(0.002)
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(descriptor)

os.fsync = killed
raise SystemExit(main(sys.argv[4:]))
"""

FULL = """
import resource, sys
from dexcore.engine import checkpoint_writer
from dexcore.engine.ranks import environment_rank
from dexcore.train.command import main

write, (rank, step) = checkpoint_writer.write_checkpoint, map(int, sys.argv[1:3])

def on_a_full_disk(folder, state, progress, *more):
    if (environment_rank()[0], progress.step) == (rank, step):
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    return write(folder, state, progress, *more)

checkpoint_writer.write_checkpoint = on_a_full_disk
raise SystemExit(main(sys.argv[3:]))
"""


def _checkpoints(out: str) -> list[str]:
    return sorted(path.name for path in (Path(out) / "checkpoints").iterdir())


def test_steps_are_done_while_the_disk_works_and_the_run_is_the_one_that_waits(store, tmp_path, monkeypatch):
    config = tiny(store, tmp_path / "behind", epochs=12 * 8 / 20, keep_checkpoints=3)
    waits = replace(config, out=str(tmp_path / "waits"), run=replace(config.run, checkpoint_async=False))
    expected = alone(waits)
    fsync, deadline = os.fsync, time.monotonic() + 100

    def slow(descriptor):
        """Nothing is on the disk before two more steps are done."""
        if threading.current_thread().name.startswith("checkpoint"):
            while len(metrics(config.out)) in (5, 6, 10, 11):
                assert time.monotonic() < deadline
                time.sleep(0.002)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", slow)
    found = alone(config)
    assert metrics(config.out) == metrics(waits.out)
    assert _checkpoints(config.out) == _checkpoints(waits.out)
    for name in ("step-00000005", "step-00000010", "step-00000012"):
        one, other = (Path(out) / "checkpoints" / name / "__0_0.distcp" for out in (config.out, waits.out))
        assert one.read_bytes() == other.read_bytes()
    weights = state(expected.model)
    assert all(np.array_equal(value, weights[name]) for name, value in state(found.model).items())


@pytest.mark.parametrize(
    ("written", "until", "before"),
    [
        pytest.param("step-00000005", 8, [], marks=pytest.mark.slow, id="first"),
        pytest.param("step-00000010", 13, ["step-00000005"], id="second"),
    ],
)
def test_a_run_killed_some_steps_after_a_checkpoint_began_goes_on_from_the_one_before(
    store, whole_run, tmp_path, written, until, before
):
    config = tiny(store, tmp_path / "killed")
    ((code,), _, (said,)) = ends(
        start_ranks(1, ["-c", KILLED, config.out, written, str(until), *flags(config, tmp_path)])
    )
    assert code == -9, said
    assert len(metrics(config.out)) >= until
    (saving,) = (Path(config.out) / "checkpoints").glob(".saving-*")
    assert _checkpoints(config.out) == [saving.name, *before]
    alone(replace(config, resume=True))
    assert metrics(config.out) == metrics(whole_run.out)


@pytest.mark.parametrize(
    ("kind", "rank"),
    [("fsdp", 1), pytest.param("fsdp", 0, marks=pytest.mark.slow), pytest.param("ddp", 0, marks=pytest.mark.slow)],
)
def test_a_disk_that_is_full_on_one_rank_ends_all_with_the_checkpoint_before(store, tmp_path, kind, rank):
    config = shared_run(store, tmp_path / "run")
    config = replace(config, parallel=ParallelConfig(kind), run=replace(config.run, checkpoint_every=4))
    codes, _, said = ends(start_ranks(2, ["-c", FULL, str(rank), "8", *flags(config, tmp_path)]))
    assert codes == [2, 2], said
    assert "step-00000008: the checkpoint cannot be written" in said[0]
    assert "older checkpoints are untouched" in said[0]
    assert _checkpoints(config.out) == ["step-00000004"]
