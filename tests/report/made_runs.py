"""Evaluations and run folders with known content."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dexcore.report import Evaluation, Examples

NAMES = ("CT", "MR", "Photo")


def make_examples(modality: Sequence[int], synthetic: Sequence[bool], heldout: Sequence[bool]) -> Examples:
    """Random images, one an entry."""
    images = np.random.default_rng(0).random((4, len(modality), 24, 24, 3))
    return Examples(modality, synthetic, heldout, *images)


def make_evaluation(
    modality: Sequence[int] = (0, 0, 0, 1, 1, 1, 2, 2),
    gates: Sequence[np.ndarray] = (),
    names: Sequence[str] = NAMES,
    **changes: object,
) -> Evaluation:
    """Every image its own group; Photo is synthetic; the last image of a modality is held out."""
    modality = np.asarray(modality, dtype=int)
    n = len(modality)
    fields = {
        "heldout": [index == n - 1 or modality[index + 1] != modality[index] for index in range(n)],
        "synthetic": modality == 2,
        "group": [f"file {index}" for index in range(n)],
        "sample_id": range(n),
        "squared_error": np.full(n, 0.5),
        "total": np.ones(n),
        "examples": make_examples([0, 0, 2], [False, False, True], [False, True, False])
        if len(names) == 3
        else make_examples([], [], []),
    }
    return Evaluation(modality_names=names, modality=modality, gates=gates, **(fields | changes))


def one_hot(experts: Sequence[int], total: int) -> np.ndarray:
    """Gates that give each image to one expert."""
    return np.eye(total)[np.asarray(experts)]


def write_run(
    folder: Path,
    evaluation: Evaluation,
    steps: int = 6,
    load: Sequence[int] = (),
    nan_steps: Sequence[int] = (),
) -> Path:
    """A run folder as a trainer leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    evaluation.save(folder / "evaluation.npz")
    (folder / "config.yaml").write_text("out: runs/x\nmodel:\n  dim: 192\n  note: <b>&\n", encoding="utf-8")
    lines = [json.dumps(step_record(step, load, lost=step in nan_steps)) for step in range(steps)]
    (folder / "metrics.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return folder


def step_record(step: int, load: Sequence[int] = (), lost: bool = False) -> dict[str, object]:
    """One line of metrics.jsonl; a lost step's losses are null."""
    loss = None if lost else 1 / (step + 1)
    return {
        "step": step,
        "epoch": 0,
        "loss": loss,
        "loss_self": loss,
        "loss_align": loss,
        "loss_balance": loss,
        "lr": 1e-3,
        "momentum": 0.99,
        "noise_std": 0.5,
        "lambda_balance": 1e-3,
        "grad_norm": loss,
        "images_per_second": 100.0,
        "load": [[1 / experts] * experts for experts in load],
    }
