"""How a training step and its memory grow with experts, chosen experts and processes: ``python -m bench.growth``.

One thing is varied at a time around a small DEX autoencoder (8 experts, 2 an image, one process), each in new processes
and a real run. An image uses top_k experts whatever their number: the forward must not grow with the pool. The backward
writes a gradient for every expert, zeros for those without images, and the optimizer and the directors touch every
weight: they must grow. Seconds are medians of metrics.jsonl over steps; with shards the blocks are gathered within
forward and backward. Memory is what a process took at its peak beyond what it had before the run, of several processes
the main one's.
"""

import io
import json
import multiprocessing
import os
import resource
import sys
import tempfile
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bench.command import Ceilings, Goal, Line, Options, Refused, judged, run, table_row
from bench.kills import meeting
from bench.timing import machine
from dexcore.data.store import write_store
from dexcore.data.synthetic import SyntheticMVU
from dexcore.engine.ranks import join_ranks
from dexcore.engine.stop import StopRequest
from dexcore.report.files import METRICS_FILE
from dexcore.train.config import (
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    PretrainConfig,
    RunConfig,
)
from dexcore.train.loop import Pretraining
from dexcore.train.run.folder import open_run_folder

MOST = 1.25  # times the forward of the smallest pool, of the largest
_EXPERTS, _CHOSEN = (2, 4, 8, 16, 32), (1, 2, 4, 8)
_PROCESSES = (("ddp", 1), ("ddp", 2), ("fsdp", 2))
_PARTS = ("forward", "backward", "communication", "update")
_WARM_UP = 3  # steps
_MIB = 2**20
_CHILDREN = multiprocessing.get_context("forkserver")


def check(options: Options) -> Refused | None:
    """Nothing: the steps are a run's own."""
    return None


def measure(options: Options, ceilings: Ceilings, refused: Refused) -> list[Line]:
    """Three tables: against the experts, the chosen ones, and the processes."""
    _CHILDREN.set_forkserver_preload([__name__])
    with tempfile.TemporaryDirectory() as name:
        usual = _config(options, Path(name))
        lines = []
        for varied, cases in _varied(usual, options.quick).items():
            print(table_row(varied, *(f"{part[:7]} s" for part in _PARTS), "MiB", width=18))
            lines += [_measured(varied, value, *case) for value, case in cases.items()]
    pools = [line["seconds"] for line in lines if line["varied"] == "experts"]
    forwards = [pool["forward"] for pool in pools]
    grown = Goal("forward of the largest pool, over the smallest's", forwards[-1] / forwards[0], MOST, True)
    return [line | {"bench": "growth", **machine(options.device)} for line in [*lines[:-1], lines[-1] | judged(grown)]]


def _varied(usual: PretrainConfig, quick: bool) -> dict[str, dict[str, tuple[PretrainConfig, int]]]:
    """By what is varied, and its value: the run, and its processes."""

    def models(field: str, values: tuple[int, ...]) -> dict[str, tuple[PretrainConfig, int]]:
        made = {value: replace(usual.model, **{field: value}) for value in values[: 2 if quick else None]}
        return {str(value): (replace(usual, model=model), 1) for value, model in made.items()}

    processes = {
        f"{count} {kind}" if count > 1 else "1": (replace(usual, parallel=ParallelConfig(kind)), count)
        for kind, count in _PROCESSES[:: 2 if quick else 1]
    }
    return {
        "experts": models("num_experts", _EXPERTS),
        "chosen experts": models("top_k", _CHOSEN),
        "processes": processes,
    }


def _config(options: Options, folder: Path) -> PretrainConfig:
    size, dim, depth, steps = (32, 24, 2, 5) if options.quick else (96, 192, 6, 13)
    batch, heads = 8, 2 if options.quick else 3
    images = SyntheticMVU(size=size)
    write_store((images.record(index) for index in range(4 * batch)), folder / "store", name="growth")
    model = ModelConfig(image_size=size, patch_size=8, dim=dim, depth=depth, heads=heads)
    model = replace(model, decoder_dim=dim, decoder_depth=1 if options.quick else 2, decoder_heads=heads)
    return PretrainConfig(
        out=str(folder / "run"),
        model=model,
        data=DataConfig(store=str(folder / "store"), batch_size=batch, epoch_size=batch, workers=0),
        optimizer=OptimizerConfig(warmup_epochs=1.0),
        run=RunConfig(epochs=float(steps), device="cpu", precision="fp32", checkpoint_every=10**6, evaluate_images=1),
    )


def _measured(varied: str, value: str, usual: PretrainConfig, count: int) -> Line:
    """Train in ``count`` new processes; prints a row."""
    out = f"{usual.out}-{varied}-{value}".replace(" ", "-")
    config = replace(usual, out=out)
    threads = max(1, torch.get_num_threads() // count)
    processes = [_CHILDREN.Process(target=_train, args=(config, place, threads)) for place in meeting(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        sys.exit(f"growth: {varied} {value}: exit codes {[process.exitcode for process in processes]}")
    steps = [json.loads(text) for text in (Path(out) / METRICS_FILE).read_text().splitlines()][_WARM_UP:]
    seconds = {part: median(step.get(f"seconds_{part}", 0.0) for step in steps) for part in _PARTS}
    memory = json.loads(Path(f"{out}.json").read_text())
    print(table_row(value, *(f"{each:.4f}" for each in seconds.values()), f"{memory['mib']:.0f}", width=18), flush=True)
    return {"varied": varied, "value": value, "seconds": seconds, **memory}


def _train(config: PretrainConfig, environment: dict[str, str], threads: int) -> None:
    """Train as the process that ``environment`` says; the main one leaves what memory it took."""
    os.environ.update(environment)
    torch.set_num_threads(threads)
    before = _resident()
    with redirect_stderr(io.StringIO()), join_ranks("cpu") as ranks, StopRequest() as stop:
        if ranks.main:
            with open_run_folder(config) as folder:
                _run(config, folder, ranks, stop)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            Path(f"{config.out}.json").write_text(json.dumps({"mib": (peak - before) / _MIB}))
        else:
            _run(config, Path(config.out), ranks, stop)


def _run(config: PretrainConfig, folder: Path, ranks: Any, stop: StopRequest) -> None:
    Pretraining(config, folder, ranks).train(stop)


def _resident() -> int:
    """Bytes of memory that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    run(__doc__, {"growth": sys.modules[__name__]})
