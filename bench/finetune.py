"""A fine-tuning step beside the same model in a bare loop: what losses, clipping and bookkeeping cost.

    python -m bench.finetune

bare        forward, cross-entropy, backward, PyTorch's AdamW: ten lines
dexcore     `dexcore.evaluate.finetuning.training.Finetuning.step`, as `dexcore finetune` runs it

timm's ViT-S at 224 with a classification head, from the same weights on the same batch, which lies ready; by turns. In
float32 on a CPU and under bf16 autocast on a GPU. How images are prepared is not measured: workers do it meanwhile.
"""

import copy
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from bench.command import Ceilings, Goal, Line, Options, Refused, judged, run, table_row
from bench.contenders import WrongResultError
from bench.timing import interleaved, machine
from dexcore.evaluate import FinetuneConfig
from dexcore.evaluate.finetuning.data import sound
from dexcore.evaluate.finetuning.training import Finetuning
from dexcore.evaluate.tasks.importers.synthetic import synthetic_tasks
from dexcore.models.precision import autocast, compute_dtype
from dexcore.nn import fast_layers

GOAL = 1.15  # of the bare loop's time
_CLOSE = {"fp32": 1e-4, "bf16": 2e-2}


def _precision(options: Options) -> str:
    return "bf16" if options.on_gpu else "fp32"


def _training(options: Options, folder: Path) -> Finetuning:
    batch_size = 4 if options.quick else 128 if options.on_gpu else 16
    _, findings = synthetic_tasks(folder / "task", max(2 * batch_size, 32), 64)
    config = FinetuneConfig(
        task=str(findings.spec.path),
        model="test_vit" if options.quick else "vit_small_patch16_224",
        weights="random",
        img_size=32 if options.quick else 224,
        batch_size=batch_size,
        steps=10**6,
        device=str(options.device),
        precision=_precision(options),
        workers=0,
    )
    training = Finetuning(config, 0, findings, folder)
    training.model.train()
    return training


def _bare(training: Finetuning, batch: dict[str, Any]) -> Callable[[], torch.Tensor]:
    """The step of a loop that anybody would write."""
    model, config = copy.deepcopy(training.model), training.config
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    images, labels = (batch[name].to(training.device) for name in ("image", "target"))

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        with autocast(training.device, config.precision):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def check(options: Options) -> Refused:
    """Both have the same loss, from the same weights on the same batch."""
    with tempfile.TemporaryDirectory() as folder:
        training = _training(Options(options.device, quick=True), Path(folder))
        batch = next(sound(training.batches(workers=0)))
        expected = _bare(training, batch)().item()
        found = training.step(batch)["loss"]
        if not abs(found - expected) <= _CLOSE[_precision(options)] * abs(expected):
            raise WrongResultError(f"the fine-tuning's loss is {found:.6g}, the bare loop's {expected:.6g}")
    return {}


def measure(options: Options, ceilings: Ceilings, refused: Refused) -> list[Line]:
    """One table: both by turns."""
    with tempfile.TemporaryDirectory() as folder:
        training = _training(options, Path(folder))
        batch = next(sound(training.batches(workers=0)))
        bare = _bare(training, batch)
        with fast_layers(training.model, compute_dtype(training.device, _precision(options))):
            calls: dict[str, Callable[[], object]] = {"bare": bare, "dexcore": lambda: training.step(batch)}
            times = interleaved(calls, options.seconds, options.device)
        size = len(batch["image"])
    name = training.config.model
    print(f"{name} at {training.config.img_size}, {_precision(options)}, {size} images a step")
    print(table_row("", "s", "p20", "p80", "images/s"))
    lines = []
    for contender, timing in times.items():
        cells = [f"{seconds:.4f}" for seconds in vars(timing).values()]
        print(table_row(contender, *cells, f"{size / timing.median:.1f}"), flush=True)
        line: Line = {"bench": "finetune", **machine(options.device), "contender": contender, "model": name}
        line |= {"batch": size, "precision": _precision(options), **vars(timing)}
        if contender == "dexcore":
            line |= judged(Goal("of the bare loop's time", timing.median / times["bare"].median, GOAL, at_most=True))
        lines.append(line)
    return lines


if __name__ == "__main__":
    run(__doc__, {"finetune": sys.modules[__name__]})
