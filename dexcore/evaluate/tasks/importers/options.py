"""What importers are told beside the files, and what they share."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dexcore.data.record import AXES
from dexcore.evaluate.tasks.pixels import PixelsError, places_in
from dexcore.evaluate.tasks.spec import TaskError
from dexcore.evaluate.tasks.task import Task

_SPLIT_WORDS = {
    "train": ("train", "training", "tr"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "ts"),
}


@dataclass(frozen=True)
class Options:
    """What a user says of the data.

    Attributes:
        modality: of all images.
        name: of the task; None: that of what is imported.
        kind: None: what the format holds.
        classes: their names by index; none: as the format has them.
        case: a regular expression over an image's path: its groups together, else all of it, are its case.
        fractions, seed: of a split that is drawn where the format has none.
        mask_values: of the YAML.
        normalization, units: of the YAML.
        axis: across which volumes are cut; None: that of their acquisition.
        columns: of a table: ours -> theirs.
        root: where the paths of a table, or the images of COCO, begin; None: at the table, in SRC.
        channel: of nnU-Net's, which is the image.
        images, mask: of NIfTI pairs: a glob of the images, and (A, B): the last A in an image's path becomes B.
    """

    modality: str
    name: str | None = None
    kind: str | None = None
    classes: tuple[str, ...] = ()
    case: str | None = None
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
    seed: int = 0
    mask_values: dict[str, Any] = field(default_factory=dict)
    normalization: str | None = None
    units: str | None = None
    axis: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    root: Path | None = None
    channel: int = 0
    images: str | None = None
    mask: tuple[str, str] | None = None

    @property
    def drawn(self) -> dict[str, Any]:
        """The split of the YAML, where it is drawn by case."""
        return {"by": "case", "fractions": list(self.fractions), "seed": self.seed}


@dataclass(frozen=True)
class Imported:
    """A task that was written, and files that were left out, with the reasons."""

    task: Task
    left: Sequence[tuple[str, str]] = ()


def split_word(name: str) -> str | None:
    """train, val or test, in whatever word of theirs; None for any other."""
    for split, words in _SPLIT_WORDS.items():
        if name.lower() in words:
            return split
    return None


def case_of(pattern: str | None, path: str) -> str | None:
    """The case that an expression finds in a path; None without an expression.

    Raises:
        TaskError: it is none, or does not match.
    """
    if pattern is None:
        return None
    try:
        match = re.search(pattern, path)
    except re.error as error:
        raise TaskError(f"the expression for cases {pattern!r} is none: {error}") from error
    if match is None:
        raise TaskError(f"{path}: no match of {pattern!r}, which tells its case")
    return "/".join(group for group in match.groups() if group is not None) or match.group()


def plane_rows(file: Path, image: str, said: dict[str, Any], masks: dict[str, str], axis: str | None) -> list[dict]:
    """The rows of a file: one of a picture, one a slice of a volume, with its spacing.

    Args:
        file: it.
        image: its path in the table.
        said: what stands in all of its rows.
        masks: the columns of masks; their files are cut as the image's.
        axis: across which a volume is cut.

    Raises:
        TaskError: it cannot be read.
    """
    try:
        places = places_in(file, None if axis is None else AXES.index(axis))
    except PixelsError as error:
        raise TaskError(str(error)) from error
    rows = []
    for place, spacing in places:
        row = {"image": image + place} | said | {column: mask + place if mask else "" for column, mask in masks.items()}
        if place:
            row |= {"volume": image, "slice": int(place.rpartition("=")[2].lstrip("#"))}
        if spacing is not None:
            row |= {"spacing_y": f"{spacing[0]:.6g}", "spacing_x": f"{spacing[1]:.6g}"}
        rows.append(row)
    return rows
