"""The card of a run's model: its images by modality, its training, what was measured, what it is for and is not."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dexcore.data.feed.augment import channel_statistics
from dexcore.data.feed.pretrain_view import Images
from dexcore.models.card import model_card
from dexcore.models.objective import Objective
from dexcore.report.comparison import KINDS
from dexcore.report.objectives import OBJECTIVES
from dexcore.report.summary import Summary
from dexcore.train.config import PretrainConfig

_USE = "Features of medical images for research: to fine-tune for a task, to probe, to search by likeness."
_LIMITS = (
    "- It is no medical device and was not tested on patients' outcomes: no diagnosis may rest on it.\n"
    "- It was trained without labels; what its features tell of a disease must be measured for each task.\n"
    "- It knows the modalities in the table above, normalized as stated there, and no others.\n"
    "- Images are seen as one square of {size} x {size} pixels: what is smaller than a few pixels of it is lost.\n"
    "- Nothing was measured by the age or sex of patients, by site or by device."
)
_SYNTHETIC = "\n- Images marked synthetic were drawn by a program: numbers on them say nothing about patients' images."
_LICENSE = (
    "Not chosen (`license: unknown` above): set it before the model is published. The licences of the images may bind "
    "what is made from them."
)


def note_inputs(model: Objective, images: Images, rows: np.ndarray, config: PretrainConfig) -> None:
    """Note on the model how its images (``rows`` of the store) were made, for its config.json."""
    mean, std = channel_statistics(config.data.statistics, config.model.in_chans)
    model.set_preprocessing(mean, std, normalizations(images, rows), config.data.slices)


def normalizations(images: Images, rows: np.ndarray) -> dict[str, list[str]]:
    """Modality -> what brought its raw pixels to [0, 1], the most frequent first."""
    found = {}
    for index, modality in enumerate(images.modality_names):
        chosen = rows[images.modality[rows] == index]
        if len(chosen):
            names, counts = np.unique(images.normalization[chosen].astype(str), return_counts=True)
            found[modality] = names[np.argsort(-counts, kind="stable")].tolist()
    return found


def run_card(
    model: Objective,
    images: Images,
    config: PretrainConfig,
    summary: Summary,
) -> str:
    """The text of the model's README.md."""
    synthetic = bool(images.synthetic.any())
    limits = _LIMITS.format(size=config.model.image_size) + (_SYNTHETIC if synthetic else "")
    sections = [
        ("Data", _data(images)),
        ("Training", _training(config, summary)),
        ("Measured", _measured(summary)),
        ("Intended use", _USE),
        ("Limits", limits),
        ("Licence", _LICENSE),
    ]
    return model_card(model.encoder, type(model).__name__, sections)


def _data(images: Images) -> str:
    lines = ["| modality | training images | held out | normalization |", "|---|---:|---:|---|"]
    training = images.split == "train"
    methods = normalizations(images, np.arange(len(images)))
    for index, modality in enumerate(images.modality_names):
        for synthetic in (False, True):
            chosen = (images.modality == index) & (images.synthetic == synthetic)
            if chosen.any():
                name = modality + (" (synthetic)" if synthetic else "")
                counts = f"{(chosen & training).sum()} | {(chosen & ~training).sum()}"
                lines.append(f"| {name} | {counts} | {', '.join(methods[modality])} |")
    return "\n".join([f"Images of `{images.name}`, fingerprint `{images.fingerprint}`.", "", *lines])


def _training(config: PretrainConfig, summary: Summary) -> str:
    seen = summary.steps * config.data.batch_size
    told: Mapping[str, Any] = {
        "model": KINDS[config.model.mlp],
        "begun with": Path(config.model.init).name or "new weights",
        "steps": f"{summary.steps:,} of {config.data.batch_size} images, {seen:,} views in all"
        + (f"; {summary.skipped:,} were skipped, their loss or gradient not finite" if summary.skipped else ""),
        "objective": _objective(config),
        "peak learning rate": f"{config.peak_lr:g}",
        "seed": config.run.seed,
    }
    return "\n".join(f"- {name}: {value}" for name, value in told.items())


def _objective(config: PretrainConfig) -> str:
    if config.objective.kind == "mae":
        return f"masked autoencoder, {config.model.mask_ratio:.0%} of the patches hidden"
    weights = Path(config.objective.weights).name
    teacher = Path(config.objective.teacher).name + (f" ({weights})" if weights else "")
    return f"{OBJECTIVES[config.objective.kind].what}: {teacher}"


def _measured(summary: Summary) -> str:
    lines = replace(summary, files={}).lines()
    return "\n".join(["The summary of the run:", "", "```text", *lines, "```"])
