"""What a run ends with: a few lines for a person, and the same numbers as JSON."""

import json
import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dexcore.checks import check_kind
from dexcore.files import write_whole
from dexcore.report.geometry import NEIGHBORS, Neighbors
from dexcore.report.measures import (
    PERMUTATIONS,
    Specialization,
    SplitVariance,
    Variance,
    specialization,
    variance_explained,
)
from dexcore.report.model_measures import Conflict, Likeness, Separation, conflicts, likeness, separation
from dexcore.report.numbers import RunNumbers
from dexcore.report.routes import STARVING, Hunger, hunger

_WIDTH = 100  # columns of a terminal


@dataclass(frozen=True, eq=False)
class Summary:
    """The measures of a run.

    Attributes:
        steps: done, skipped ones included.
        skipped: steps whose loss or gradient was not finite.
        training: variance explained on training images.
        heldout: variance explained on images the model never saw.
        blocks: modality and expert, an entry a DEX block.
        hunger: use of the experts, an entry a DEX block; () where no load was recorded.
        likeness: of the experts' outputs, an entry a DEX block.
        separation: what nearest neighbors tell, in experts and in director mode.
        conflicts: of the modalities' gradients, in the shared weights and in the experts.
        files: where things are, by what they are.
    """

    steps: int
    skipped: int
    training: SplitVariance
    heldout: SplitVariance
    blocks: tuple[Specialization, ...]
    hunger: tuple[Hunger, ...]
    likeness: tuple[Likeness, ...]
    separation: tuple[Separation, ...]
    conflicts: tuple[Conflict, ...]
    files: Mapping[str, str]

    def lines(self) -> list[str]:
        """Plain text, aligned, at most 100 columns (paths are never cut)."""
        return [*self._variance_lines(), "", *self._specialization_lines(), *self._model_lines(), *self._file_lines()]

    def save(self, path: str | Path) -> None:
        """Write JSON, whole or not at all; numbers that do not exist are null."""
        content = json.dumps(self.as_dict(), indent=2, allow_nan=False, ensure_ascii=False)
        write_whole(Path(path), content.encode() + b"\n")

    def as_dict(self) -> dict[str, Any]:
        """The content of summary.json."""
        return {
            "steps": {"done": self.steps, "skipped": self.skipped},
            "variance_explained": {
                "training": _split_dict(self.training),
                "heldout": _split_dict(self.heldout),
            },
            "specialization": [
                {
                    "block": number,
                    "experts": block.shares_mr.shape[1],
                    "nmi": _number(block.nmi),
                    "null_mean": _number(block.null_mean),
                    "null_95": _number(block.null_95),
                    "p_value": _number(block.p_value),
                }
                for number, block in enumerate(self.blocks, start=1)
            ],
            "load": [
                {"block": number, "share": _rounded(block.share_r), "starving": list(block.starving)}
                for number, block in enumerate(self.hunger, start=1)
            ],
            "expert_similarity": [
                {
                    "block": number,
                    "mean": _number(block.mean),
                    "lowest": _number(block.lowest),
                    "director": _number(block.director),
                }
                for number, block in enumerate(self.likeness, start=1)
            ],
            "nearest_neighbors": [
                {
                    "mode": one.mode,
                    "modality": _neighbors_dict(one.modality),
                    "label": _neighbors_dict(one.label),
                    "label_across_modalities": _neighbors_dict(one.label_across),
                }
                for one in self.separation
            ],
            "gradient_cosines": [
                {
                    "part": one.part,
                    "between_modalities": _number(one.between),
                    "between_halves": _number(one.ceiling),
                    "most_opposed": {"modalities": one.opposed[:2], "cosine": _number(one.opposed[2])},
                }
                for one in self.conflicts
            ],
            "files": dict(self.files),
        }

    def table(self) -> list[tuple[str, Variance | None, Variance | None]]:
        """Rows (label, on training images, on held-out images); None where a split has no image."""
        splits = (self.training, self.heldout)
        labels: dict[tuple[str, bool], list[Variance | None]] = {}
        for column, split in enumerate(splits):
            for row in split.rows:
                labels.setdefault((row.modality, row.synthetic), [None, None])[column] = row.variance
        rows = [
            (modality + (" (synthetic)" if synthetic else ""), training, heldout)
            for (modality, synthetic), (training, heldout) in labels.items()
        ]
        rows.append(("mean over modalities", *_present(self.training.mean, self.heldout.mean)))
        real = self.training.mean_real, self.heldout.mean_real
        if any(part.images for part in real) and any(row.synthetic for split in splits for row in split.rows):
            rows.append(("mean over modalities, real images", *_present(*real)))
        rows.append(("all real images pooled", *_present(self.training.pooled_real, self.heldout.pooled_real)))
        return rows

    def notes(self) -> list[str]:
        """What a reader of the table must know about held-out images that are missing."""
        if not self.heldout.mean.images:
            return ["no image was held out: nothing here says how the model does on new images"]
        seen = {(row.modality, row.synthetic) for row in self.heldout.rows}
        missing = [row.modality for row in self.training.rows if (row.modality, row.synthetic) not in seen]
        if not missing:
            return []
        number = self.heldout.mean.modalities
        return [f"held out: mean over {number} modalities; none held out of {', '.join(missing)}"]

    def _variance_lines(self) -> list[str]:
        lines = [
            "Share of masked-patch variance explained",
            "(1 is perfect, 0 is predicting every patch as its own mean colour)",
            f"  {'':<34}{'training':>10}{'images':>8}{'held out':>12}{'images':>8}",
        ]
        for label, training, heldout in self.table():
            value, images = _cells(training)
            value_heldout, images_heldout = _cells(heldout)
            lines.append(f"  {label:<34}{value:>10}{images:>8}{value_heldout:>12}{images_heldout:>8}")
        return lines + [f"  {note}" for note in self.notes()]

    def _specialization_lines(self) -> list[str]:
        if not self.blocks:
            return ["Modality and expert: no DEX block was evaluated"]
        if len(self.blocks[0].modalities) < 2:
            return ["Modality and expert: nothing to tell apart, the images are of one modality"]
        lines = [
            "Normalized mutual information of modality and expert (0 unrelated, 1 one determines the other)",
            f"(null: modality labels permuted by file, volume or patient, {PERMUTATIONS} times)",
            f"  {'block':<10}{'experts':>9}{'NMI':>9}{'null mean':>12}{'null 95 %':>12}{'p':>9}",
        ]
        for number, block in enumerate(self.blocks, start=1):
            lines.append(
                f"  {number:<10}{block.shares_mr.shape[1]:>9}{block.nmi:>9.3f}{block.null_mean:>12.3f}"
                f"{block.null_95:>12.3f}{block.p_value:>9.3f}"
            )
        return lines

    def _model_lines(self) -> list[str]:
        lines = []
        if self.skipped:
            lines.append(f"Skipped steps (loss or gradient not finite): {self.skipped} of {self.steps}")
        if self.hunger:
            told = f"Starving experts (under {STARVING:g} of an even share at the end): {self.starving()}"
            lines += textwrap.wrap(told, _WIDTH, subsequent_indent="  ")
        for one in self.conflicts:
            lines.append(
                f"Gradient cosine, {one.part}: {one.between:.2f} between modalities, {one.ceiling:.2f} between halves "
                "of one"
            )
        for sep in self.separation:
            known = {"modality": sep.modality, "label": sep.label, "label across modalities": sep.label_across}
            numbers = [
                f"{name} {found.accuracy:.2f} (chance {found.chance:.2f})"
                for name, found in known.items()
                if math.isfinite(found.accuracy)
            ]
            if numbers:
                lines.append(f"{NEIGHBORS} nearest neighbors ({sep.mode} mode) tell")
                lines.append(f"  {', '.join(numbers)}")
        return ["", *lines] if lines else []

    def starving(self) -> str:
        """Which experts starve, in words: "none", or "2 of 16 (block 1: 3; block 4: 7)"."""
        named = [
            f"block {number}: {', '.join(map(str, block.starving))}"
            for number, block in enumerate(self.hunger, start=1)
            if block.starving
        ]
        if not named:
            return "none"
        experts = sum(len(block.share_r) for block in self.hunger)
        return f"{sum(len(block.starving) for block in self.hunger)} of {experts} ({'; '.join(named)})"

    def _file_lines(self) -> list[str]:
        if not self.files:
            return []
        width = max(len(name) for name in self.files)
        return ["", "Files", *(f"  {name:<{width}}  {path}" for name, path in self.files.items())]


def summarize(numbers: RunNumbers, files: Mapping[str, str | Path] | None = None) -> Summary:
    """Measure a run; ``files`` (name -> path) is carried along for the reader.

    Raises:
        TypeError: ``numbers`` is something else, say, the folder's path.
    """
    check_kind("numbers", numbers, RunNumbers, "a RunNumbers, such as RunNumbers.read(folder)")
    return Summary(
        steps=len(numbers.history.step),
        skipped=int(numbers.history.skipped.sum()),
        training=variance_explained(numbers.evaluation, heldout=False),
        heldout=variance_explained(numbers.evaluation, heldout=True),
        blocks=specialization(numbers.evaluation),
        hunger=hunger(numbers.history),
        likeness=likeness(numbers.analysis.expert_similarity),
        separation=separation(numbers.evaluation, numbers.analysis),
        conflicts=conflicts(numbers.analysis),
        files={name: str(path) for name, path in (files or {}).items()},
    )


def _present(training: Variance, heldout: Variance) -> tuple[Variance | None, Variance | None]:
    return training if training.images else None, heldout if heldout.images else None


def _cells(variance: Variance | None) -> tuple[str, str]:
    return ("-", "-") if variance is None else (f"{variance.value:.3f}", str(variance.images))


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _rounded(values: np.ndarray) -> list[float]:
    return [round(value, 6) for value in values.tolist()]


def _neighbors_dict(found: Neighbors) -> dict[str, Any]:
    return {
        "accuracy": _number(found.accuracy),
        "chance": _number(found.chance),
        "classes": found.classes,
        "images": found.images,
    }


def _variance_dict(variance: Variance) -> dict[str, Any]:
    return {
        "value": _number(variance.value),
        "images": variance.images,
        "modalities": variance.modalities,
    }


def _split_dict(split: SplitVariance) -> dict[str, Any]:
    return {
        "modalities": [
            {
                "modality": row.modality,
                "synthetic": row.synthetic,
                "value": _number(row.variance.value),
                "images": row.variance.images,
            }
            for row in split.rows
        ],
        "mean": _variance_dict(split.mean),
        "mean_real": _variance_dict(split.mean_real),
        "pooled_real": _variance_dict(split.pooled_real),
    }
