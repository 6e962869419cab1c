"""A training step by its parts, in a real run: what is not the model, as a share of the step.

    python -m bench.trainer

The masked autoencoder of a DEX ViT-S, batch 8, one process, on a store of synthetic images, with journal and display as
in any run. A part's seconds are those of metrics.jsonl, medians over steps: waiting for images (which a process without
workers prepares itself), forward, backward, update (norm of the gradient, optimizer, directors), what the ranks tell
each other; the rest is bookkeeping. Of a checkpoint there count what training waits for it, and what the thread that
writes it computes, spread over the cores; one part in 200, as often as one is written.
"""

import contextlib
import io
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from bench.command import Ceilings, Goal, Line, Options, Refused, judged, run, table_row
from bench.timing import machine
from dexcore.data.store import write_store
from dexcore.data.synthetic import SyntheticMVU
from dexcore.engine.stop import StopRequest
from dexcore.report.files import METRICS_FILE
from dexcore.report.history import SECONDS
from dexcore.train.config import DataConfig, ModelConfig, OptimizerConfig, PretrainConfig, RunConfig
from dexcore.train.loop import Pretraining
from dexcore.train.run.folder import open_run_folder

GOAL = 0.03  # of a step's time
_EVERY = 200  # steps between two checkpoints
_MODEL = ("forward", "backward", "update")
_WARM_UP = 3  # steps


def _config(options: Options, folder: Path) -> PretrainConfig:
    size, batch, steps = (32, 4, 6) if options.quick else (224, 8, 16)
    patch, dim, depth, heads = (8, 16, 2, 2) if options.quick else (16, 384, 12, 6)
    decoder = {"decoder_dim": dim, "decoder_depth": 1 if options.quick else 4, "decoder_heads": heads}
    images = SyntheticMVU(size=size)
    records = (images.record(index) for index in range(4 * batch))
    write_store(records, folder / "store", name="trainer")
    return PretrainConfig(
        out=str(folder / "run"),
        model=ModelConfig(image_size=size, patch_size=patch, dim=dim, depth=depth, heads=heads, **decoder),
        data=DataConfig(store=str(folder / "store"), batch_size=batch, epoch_size=batch),
        optimizer=OptimizerConfig(warmup_epochs=1.0),
        run=RunConfig(epochs=float(steps), device=str(options.device), checkpoint_every=10**6, evaluate_images=1),
    )


def check(options: Options) -> Refused | None:
    """Nothing: the steps are a run's own."""
    return None


def measure(options: Options, ceilings: Ceilings, refused: Refused) -> list[Line]:
    """One table: a step's parts."""
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stderr(io.StringIO()):
        config = _config(options, Path(name))
        with open_run_folder(config) as folder, StopRequest() as stop:
            training = Pretraining(config, folder)
            training.train(stop)
            (newest,) = (folder / "checkpoints").glob("step-*")
            newest.rename(newest.with_name("written"))
            with training.checkpoint_writer() as writer:
                began = time.perf_counter()
                training.save(writer)
                checkpoint = time.perf_counter() - began
                computing = time.process_time()
                writer.wait()
                written = time.perf_counter() - began
                # On cores that training keeps busy the thread that writes takes its time from it.
                checkpoint_beside = (time.process_time() - computing) / torch.get_num_threads()
            lines = [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()][_WARM_UP:]
    batch = config.data.batch_size
    whole = median(batch / line["images_per_second"] for line in lines)
    parts = {part.removeprefix("seconds_"): median(line.get(part, 0.0) for line in lines) for part in SECONDS}
    parts["bookkeeping"] = max(0.0, whole - sum(parts.values()))
    parts["checkpoint"] = (checkpoint + checkpoint_beside) / _EVERY
    share = 1 - sum(parts[part] for part in _MODEL) / (whole + parts["checkpoint"])
    print(f"DEX ViT-S, batch {batch}, {config.model.image_size} px: {whole:.3f} s a step")
    for part, seconds in parts.items():
        print(table_row(part, f"{seconds:.4f}", f"{seconds / whole:.2%}"), flush=True)
    print(f"a checkpoint is on the disk after {written:.3f} s; training waits {checkpoint:.3f} s of them")
    print(f"writing it computes for {checkpoint_beside:.3f} s on all cores together")
    line: Line = {"bench": "trainer", **machine(options.device), "batch": batch, "step": whole, "parts": parts}
    return [line | judged(Goal("of a step that is not the model", share, GOAL, at_most=True))]


if __name__ == "__main__":
    run(__doc__, {"trainer": sys.modules[__name__]})
