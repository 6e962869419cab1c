"""Evaluations and run folders with known content."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dexcore.report import Analysis, Evaluation, Examples, RunNumbers
from dexcore.report.history import History, SimilarityCourse

NAMES = ("CT", "MR", "Photo")


def make_examples(modality: Sequence[int], synthetic: Sequence[bool], heldout: Sequence[bool]) -> Examples:
    """Random images, one an entry; the left two thirds of each are hidden."""
    images = np.random.default_rng(0).random((3, len(modality), 24, 24, 3))
    hidden = np.tile(np.arange(24) < 16, (len(modality), 24, 1))
    return Examples(modality, synthetic, heldout, images[0], hidden, *images[1:])


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


def make_analysis(evaluation: Evaluation, experts: Sequence[int] = (), **changes: object) -> Analysis:
    """Random features of width 6; the modalities with several images were compared; half of the labels known."""
    rng = np.random.default_rng(1)
    n, m = len(evaluation), len(evaluation.examples)
    compared = [
        name for index, name in enumerate(evaluation.modality_names) if (evaluation.modality == index).sum() > 1
    ]
    cosines = np.clip(rng.normal(0, 0.4, (2, len(compared), len(compared))), -1, 1)
    blocks = [np.clip(rng.random((count + 1, count + 1)), 0, 1) for count in experts]
    for block in blocks:
        np.fill_diagonal(block, 1)
    fields = {
        "label_names": ("healthy", "ill"),
        "label": np.arange(n) % 4 % 3 - 1,
        "features": rng.normal(size=(2, n, 6)),
        "patches": rng.normal(size=(2, m, 3, 3, 3)),
        "patch_variance": [0.5, 0.3, 0.1],
        "gradient_modalities": compared,
        "gradient_images": [2] * len(compared),
        "gradient_cosines": (cosines + cosines.transpose(0, 2, 1)) / 2,
        "expert_similarity": [(block + block.T) / 2 for block in blocks],
    }
    return Analysis(**(fields | changes))


def make_numbers(evaluation: Evaluation, **changes: object) -> RunNumbers:
    """A run's numbers around an evaluation; ``changes`` are its other parts."""
    experts = [gates.shape[1] for gates in evaluation.gates]
    load = tuple(np.full((4, count), 1 / count) for count in experts)
    history = History(np.arange(4), {}, load, np.zeros(4, bool))
    parts = {
        "config": {},
        "history": history,
        "analysis": make_analysis(evaluation, experts),
        "similarity": SimilarityCourse(np.zeros(0, np.int64), ()),
    }
    return RunNumbers(evaluation=evaluation, **(parts | changes))


def one_hot(experts: Sequence[int], total: int) -> np.ndarray:
    """Gates that give each image to one expert."""
    return np.eye(total)[np.asarray(experts)]


def write_run(
    folder: Path,
    evaluation: Evaluation,
    steps: int = 6,
    load: Sequence[int] = (),
    nan_steps: Sequence[int] = (),
    analysis: Analysis | None = None,
    moments: Sequence[int] = (),
    step0: Evaluation | None = None,
) -> Path:
    """A run folder as a trainer leaves it; its experts were compared at ``moments``, if at any.

    Without ``step0`` it is one of an older version, which measured nothing before the first step.
    """
    folder.mkdir(parents=True, exist_ok=True)
    evaluation.save(folder / "evaluation.npz")
    analysis = analysis or make_analysis(evaluation, [gates.shape[1] for gates in evaluation.gates])
    analysis.save(folder / "analysis.npz")
    if step0 is not None:
        step0.save(folder / "evaluation_step0.npz")
        make_analysis(step0, [gates.shape[1] for gates in step0.gates]).save(folder / "analysis_step0.npz")
    (folder / "config.yaml").write_text("out: runs/x\nmodel:\n  dim: 192\n  note: <b>&\n", encoding="utf-8")
    lines = [json.dumps(step_record(step, load, lost=step in nan_steps)) for step in range(steps)]
    (folder / "metrics.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    if moments:
        experts = [gates.shape[1] for gates in evaluation.gates]
        lines = [json.dumps(similarity_record(step, experts)) for step in moments]
        (folder / "similarity.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return folder


def similarity_record(step: int, experts: Sequence[int]) -> dict[str, object]:
    """One line of similarity.jsonl: experts that part from 1 on, half as far from the director as from one another."""
    blocks = []
    for count in experts:
        block = np.full((count + 1, count + 1), 1 / (1 + step))
        block[-1] = block[:, -1] = (1 + block[0, 0]) / 2
        np.fill_diagonal(block, 1)
        blocks.append(block.tolist())
    align = {"kind": "kd", "loss": [5 + 1 / (1 + step)] * len(experts), "floor": [5.0] * len(experts)}
    return {"step": step, "blocks": blocks, "align": align}


def step_record(step: int, load: Sequence[int] = (), lost: bool = False) -> dict[str, object]:
    """One line of metrics.jsonl; a lost step's losses are null, and it is skipped."""
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
        "skipped": lost,
    }
