"""Runs that are killed at random moments, and what they end as: ``python -m bench.kills --kills 200 --out DIR``.

A small run is trained once undisturbed, then again and again with SIGKILL at a moment drawn anew: while it begins, in a
step, while a checkpoint is written, while it ends. Of several processes one is killed, and the others have to end by
themselves. Each goes on with --resume. When a run comes to its end,

- every line of metrics.jsonl is the undisturbed run's, and every weight is, bit for bit;
- each epoch has shown every image exactly once.

DIR/kills.jsonl has a line a kill and a line a run that ended; the same command with more kills goes on after them.
"""

import argparse
import json
import multiprocessing
import os
import signal
import socket
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.killed_run import WEIGHTS, train
from dexcore.data.store import write_store
from dexcore.data.synthetic import SyntheticMVU
from dexcore.files import write_whole
from dexcore.report.history import MEASURED
from dexcore.train.config import (
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    PretrainConfig,
    RunConfig,
)

IMAGES, BATCH, EPOCHS = 24, 12, 4
STEPS = EPOCHS * IMAGES // BATCH
LOG = "kills.jsonl"
_PATIENCE = 200.0  # seconds in which ranks have to end that wait for a killed one
_CHILDREN = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Kind:
    """How many processes share a run, and how they hold its model."""

    processes: int
    parallel: ParallelConfig


KINDS = {
    "alone": Kind(1, ParallelConfig()),
    "ddp": Kind(2, ParallelConfig("ddp")),
    "fsdp": Kind(2, ParallelConfig("fsdp")),
}


class KillsError(Exception):
    """A run did not survive; the message says how, and where it lies."""


def config_of(kind: str, store: Path, out: Path) -> PretrainConfig:
    """A run of eight steps with a checkpoint every other, whose model can be cut in two."""
    return PretrainConfig(
        out=str(out),
        model=ModelConfig(
            image_size=32,
            patch_size=8,
            dim=16,
            depth=2,
            heads=2,
            num_experts=4,
            decoder_dim=16,
            decoder_depth=1,
            decoder_heads=2,
        ),
        data=DataConfig(store=str(store), batch_size=BATCH, workers=0, balance=0.0),
        optimizer=OptimizerConfig(base_lr=0.05, warmup_epochs=1.0),
        parallel=KINDS[kind].parallel,
        run=RunConfig(epochs=EPOCHS, device="cpu", precision="fp32", checkpoint_every=2, evaluate_images=2),
    )


def write_images(folder: Path) -> Path:
    """The store of the runs, none held out."""
    source = SyntheticMVU(size=32)
    write_store([replace(source.record(index), split="train") for index in range(IMAGES)], folder, name="kills")
    return folder


def meeting(processes: int) -> list[dict[str, str]]:
    """What torchrun puts into the environment of each of so many processes on this machine; nothing of one alone."""
    if processes == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    return [{**shared, "RANK": rank, "LOCAL_RANK": rank} for rank in map(str, range(processes))]


def start(config: PretrainConfig, processes: int) -> list[Any]:
    """The run's processes, forked from one that has imported everything."""
    started = [_CHILDREN.Process(target=train, args=(config, place)) for place in meeting(processes)]
    for process in started:
        process.start()
    return started


def trained(config: PretrainConfig, processes: int) -> float:
    """Train a run undisturbed; the seconds that it takes.

    Raises:
        KillsError: a process failed.
    """
    began = time.monotonic()
    started = start(config, processes)
    for process in started:
        process.join()
    if any(process.exitcode for process in started):
        raise KillsError(f"{config.out}: exit codes {[p.exitcode for p in started]}, see {config.out}.log")
    return time.monotonic() - began


def kill_at(config: PretrainConfig, processes: int, steps: float, seconds: float, victim: int) -> dict[str, Any]:
    """Go on with a run and kill one of its processes some seconds after it has done so many steps in all, unless it has
    ended by then.

    Returns:
        Of a killed one ``steps`` done and the ``seconds`` after which the others had ended; else nothing.

    Raises:
        KillsError: a process that was not killed failed, or another waits for the killed one for ever.
    """
    run = Path(config.out)
    before = len(steps_of(run))
    started = start(config, processes)
    until = time.monotonic() + seconds if steps <= before else float("inf")
    while time.monotonic() < until and any(process.is_alive() for process in started):
        if any(process.exitcode for process in started):
            break
        if until == float("inf") and len(steps_of(run)) >= steps:
            until = time.monotonic() + seconds
        time.sleep(0.002)
    if all(process.exitcode == 0 for process in started):
        return {}
    if any(process.exitcode for process in started):
        codes = [process.exitcode for process in started]
        for process in started:
            process.kill()
        raise KillsError(f"{config.out}: failed by itself, exit codes {codes}")
    if started[victim].exitcode is None:
        os.kill(started[victim].pid, signal.SIGKILL)
    killed = time.monotonic()
    for process in started:
        process.join(max(0.0, killed + _PATIENCE - time.monotonic()))
    left = [rank for rank, process in enumerate(started) if process.exitcode is None]
    for rank in left:
        started[rank].kill()
    codes = [process.exitcode for process in started]
    expected = all(code in (0, 2, -signal.SIGKILL) for code in codes)  # 0: it was through when another was killed
    if left or not expected:
        raise KillsError(f"{config.out}: rank {victim} was killed; ranks {left} hang, exit codes {codes}")
    if codes[victim] == 0 and not any(codes):
        return {}
    return {"steps": len(steps_of(run)), "seconds": round(time.monotonic() - killed, 2)}


def steps_of(run: Path) -> list[dict[str, Any]]:
    """Whole lines of a run's metrics, without what a clock measured."""
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.is_file() else []
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return [{name: value for name, value in line.items() if name not in MEASURED} for line in found]


def check_run(run: Path, undisturbed: Path) -> None:
    """Raise KillsError where a run has not ended as the undisturbed one."""
    if steps_of(run) != steps_of(undisturbed):
        raise KillsError(f"{run}: metrics.jsonl is not the undisturbed run's")
    found, expected = (dict(np.load(folder / WEIGHTS)) for folder in (run, undisturbed))
    wrong = [name for name in expected if name not in found or not np.array_equal(found[name], expected[name])]
    if wrong or found.keys() != expected.keys():
        raise KillsError(f"{run}: {len(wrong)} tensors are not the undisturbed run's: {', '.join(wrong[:3])}")
    shown: dict[int, list[int]] = {}
    for line in map(json.loads, run.with_suffix(".seen").read_text().splitlines()):
        if shown.setdefault(line["step"], line["images"]) != line["images"]:
            raise KillsError(f"{run}: step {line['step']} has shown other images than before a kill")
    order = [image for step in range(STEPS) for image in shown[step]]
    for epoch in range(EPOCHS):
        if sorted(order[epoch * IMAGES : (epoch + 1) * IMAGES]) != list(range(IMAGES)):
            raise KillsError(f"{run}: epoch {epoch} has not shown every image exactly once")


def survive(kind: str, kills: int, seed: int, out: Path) -> list[dict[str, Any]]:
    """Kill runs of a kind until there are so many kills and the last one has ended; the log's lines of it.

    Raises:
        KillsError: a run did not survive.
    """
    processes = KINDS[kind].processes
    store = out / "store"
    if not store.is_dir():
        write_images(store)
    undisturbed, clock = out / f"{kind}-undisturbed", out / f"{kind}-seconds.json"
    if not clock.is_file():
        seconds = trained(replace(config_of(kind, store, undisturbed), resume=undisturbed.is_dir()), processes)
        write_whole(clock, json.dumps(seconds).encode())
    usual = json.loads(clock.read_text())
    log = out / LOG
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    lines = [line for line in lines if line["kind"] == kind]
    number = sum("killed" in line for line in lines)
    lives = len({line["run"] for line in lines})
    open_run = bool(lines) and "ended" not in lines[-1]
    while number < kills or open_run:
        run = out / f"{kind}-{lives if not open_run else lives - 1}"
        lives, open_run = lives + (not open_run), True
        draw = np.random.default_rng([seed, list(KINDS).index(kind), len(lines)])
        before = len(steps_of(run))
        victim, steps = int(draw.integers(processes)), float(draw.integers(before, max(before + 1, STEPS)))
        after = draw.uniform(0, usual / 2 if steps == before else usual / STEPS)  # while it begins, or after a step
        if number >= kills:  # the run is let go on to its end
            steps = float("inf")
        config = replace(config_of(kind, store, run), resume=run.is_dir())
        told = kill_at(config, processes, steps, after, victim)
        line: dict[str, Any] = {"kind": kind, "seed": seed, "run": run.name}
        if told:
            number += 1
            line |= {"killed": victim, "after": round(after, 3), **told}
        else:
            check_run(run, undisturbed)
            line |= {"ended": STEPS, "as undisturbed": True}
            open_run = False
        with open(log, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        lines.append(line)
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Kill runs of each kind, and say how many came to their end as if nothing had been."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, metavar="N", help="of all kinds together (default: 20)")
    parser.add_argument("--kind", action="append", default=[], choices=KINDS, help="may be given again (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="of the runs and the log")
    given = parser.parse_args(arguments)
    kinds = given.kind or list(KINDS)
    given.out.mkdir(parents=True, exist_ok=True)
    _CHILDREN.set_forkserver_preload([train.__module__])
    first = _CHILDREN.Process(target=int)  # waits for the imports, which no run's time should hold
    first.start()
    first.join()
    for place, kind in enumerate(kinds):
        kills = given.kills // len(kinds) + (place < given.kills % len(kinds))
        lines = survive(kind, kills, given.seed, given.out)
        killed, ended = (sum(name in line for line in lines) for name in ("killed", "ended"))
        print(f"{kind}: {killed} kills, {ended} runs ended as the undisturbed one", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
