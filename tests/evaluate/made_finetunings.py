"""Small fine-tunings: a model of two blocks, pictures of 20 x 24 pixels, a few steps."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from made_tasks import SPLITS, save, write
from torch import nn

from dexcore.evaluate import FinetuneConfig, RunResult, finetune
from dexcore.evaluate.finetuning.data import sound
from dexcore.evaluate.finetuning.training import Finetuning
from dexcore.evaluate.tasks import Task
from dexcore.models import DEXVisionTransformer
from dexcore.report.history import MEASURED

SIZE = 16


def small_model(folder: Path) -> Path:
    """A saved model of dexcore's."""
    torch.manual_seed(0)
    model = DEXVisionTransformer(
        img_size=SIZE, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=0, num_experts=3
    )
    model.set_preprocessing((0.5,) * 3, (0.25,) * 3)
    model.save_pretrained(folder)
    return folder


def spots(folder: Path, images: int = 12, name: str = "spots", **keys: object) -> Path:
    """Gray pictures, of other sides each, with a bright square: masks of it, and whether it lies left or right."""
    rows = []
    for number in range(images):
        random = np.random.default_rng(number)
        height, width = 20 + number % 3, 24
        pixels = random.integers(40, 80, (height, width)).astype(np.uint8)
        top, left = int(random.integers(0, 12)), int(random.integers(0, 7)) + 9 * (number // 6 % 2)
        pixels[top : top + 8, left : left + 8] += 140
        mask = np.zeros((height, width), np.uint8)
        mask[top : top + 8, left : left + 8] = 1
        save(folder / f"{number}.png", pixels)
        save(folder / f"{number}_mask.png", mask)
        row = {"image": f"{number}.png", "mask": f"{number}_mask.png", "label": ("left", "right")[left > 7]}
        rows.append(row | {"split": SPLITS[number % len(SPLITS)], "case": f"p{number}"})
    said = {"kind": "segmentation", "classes": ["background", "spot"]} | keys
    return write(folder, rows, name=name, **said)


def sides(folder: Path, **keys: object) -> Path:
    """The same pictures with labels in place of masks."""
    return spots(folder, name="sides", **({"kind": "classification", "classes": ["left", "right"]} | keys))


def tiny(task: Path, model: Path, out: Path, **changes: object) -> FinetuneConfig:
    """Three steps of four images."""
    given = {"img_size": SIZE, "batch_size": 4, "steps": 3, "device": "cpu", "workers": 0, "validations": 1}
    given["precision"] = "fp32"
    return FinetuneConfig(**{"task": str(task), "model": str(model), "out": str(out)} | given | changes)


def begun(config: FinetuneConfig, folder: Path) -> Finetuning:
    """One before its first step."""
    folder.mkdir(parents=True, exist_ok=True)
    return Finetuning(config, config.seed, Task.open(config.task), folder)


def losses(folder: Path) -> list[dict]:
    """The steps of a training, without what a clock measured."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in MEASURED} for line in lines]


def place_of_tasks(folder: Path, images: int = 12) -> Path:
    """The folder with a model (mine), a task of masks (spots) and one of labels (sides)."""
    small_model(folder / "mine")
    spots(folder / "spots", images)
    sides(folder / "sides", images=images)
    return folder


def config_of(place: Path, task: str = "spots", **changes: object) -> FinetuneConfig:
    """A fine-tuning of the model on one of the tasks of `place_of_tasks`."""
    return replace(tiny(place / task / f"{task}.yaml", place / "mine", place / "other"), **changes)


def ended_in(place: Path) -> dict[str, RunResult]:
    """A fine-tuning of masks and one of labels in the folder ``out`` of `place_of_tasks`, by the name of their task."""
    return {task: finetune(config_of(place, task, out=str(place / "out"))) for task in ("spots", "sides")}


def step(training: Finetuning) -> dict:
    """Take one step; what it tells."""
    training.model.train()
    return training.step(next(sound(training.batches(workers=0))))


def parts(model: nn.Module) -> dict[str, dict[str, torch.Tensor]]:
    """A copy of the tensors of experts and routers, of directors, and of all else."""
    found: dict[str, dict[str, torch.Tensor]] = {"experts": {}, "director": {}, "rest": {}}
    for name, parameter in model.named_parameters():
        part = (
            "experts" if ".experts." in name or ".router." in name else "director" if ".director." in name else "rest"
        )
        found[part][name] = parameter.detach().clone()
    return found
