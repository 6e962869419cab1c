"""The images whose features are asked for: their names, what each one's features are found again by, and pixels."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dexcore.data.feed.dataset import MVUDataset, open_mvu
from dexcore.data.feed.own import OwnImages
from dexcore.evaluate.embedding.table import FeaturesError
from dexcore.evaluate.tasks import Row, Task
from dexcore.evaluate.tasks.content import file_hash, pixels_hash
from dexcore.evaluate.tasks.places import located


class ImageSource(Protocol):
    """Images by number."""

    names: tuple[str, ...]

    def row_key(self, number: int) -> str:
        """SHA-256 of all that decides the image's pixels."""

    def image(self, number: int) -> np.ndarray:
        """The image, as `dexcore.view.as_pixels` takes it."""

    def modality(self, number: int) -> str:
        """The name of the image's modality."""


class TaskImages:
    """Those of a task, with square pixels, as a store would hold them."""

    def __init__(self, task: Task, rows: Sequence[Row] | None = None) -> None:
        self.task, self.rows = task, tuple(task.rows if rows is None else rows)
        self.names = tuple(row.image for row in self.rows)

    def row_key(self, number: int) -> str:
        row, spec = self.rows[number], self.task.spec
        file, inside, index = located(spec.located(row.image))
        try:
            digest = file_hash(file)
        except OSError as error:
            raise FeaturesError(f"task {self.task.name}: line {row.line}: {file}: {error.strerror or error}") from error
        if digest is None:
            return pixels_hash(self.image(number))
        told = [digest, inside, index, row.modality.value, spec.normalization, spec.units, spec.range, row.spacing]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()

    def image(self, number: int) -> np.ndarray:
        return self.task.record(self.rows[number]).image

    def modality(self, number: int) -> str:
        return self.rows[number].modality.value


def content_of(task: Task) -> str:
    """SHA-256 of all that decides the pixels of a task's images, in whatever order its table has them.

    Raises:
        FeaturesError, TaskError: an image is missing or cannot be read.
    """
    images = TaskImages(task)
    keys = sorted((name, images.row_key(number)) for number, name in enumerate(images.names))
    return hashlib.sha256(json.dumps(keys).encode()).hexdigest()


class StoreImages:
    """Those of a store; a name is the path in the source, behind the source's where two would be one."""

    def __init__(self, dataset: MVUDataset, rows: Sequence[int] | np.ndarray | None = None) -> None:
        self.dataset = dataset
        self.rows = np.arange(len(dataset)) if rows is None else np.asarray(rows)
        paths = dataset.path.tolist()
        if len(set(paths)) < len(paths):
            paths = [f"{source}/{path}" for source, path in zip(dataset.source, paths, strict=True)]
        self.names = tuple(paths[row] for row in self.rows)

    def row_key(self, number: int) -> str:
        return self.dataset.content_hash(int(self.rows[number]))

    def image(self, number: int) -> np.ndarray:
        return self.dataset.read(int(self.rows[number]))

    def modality(self, number: int) -> str:
        return self.dataset.modality_names[int(self.dataset.modality[self.rows[number]])]


class GivenImages:
    """Those of a data set of the user's, or of a list of arrays; a name is the number."""

    def __init__(self, images: OwnImages) -> None:
        self.images = images
        self.names = tuple(map(str, range(len(images))))

    def row_key(self, number: int) -> str:
        return pixels_hash(self.images.read(number))

    def image(self, number: int) -> np.ndarray:
        return self.images.read(number)

    def modality(self, number: int) -> str:
        return self.images.modality_names[int(self.images.modality[number])]


def images_of(given: Any, channels: int = 3, slices: int = 1) -> ImageSource:
    """The images of a task, a store, a map-style data set or a list of arrays; or of the path of a task or a store.

    Args:
        given: any of these.
        channels: that arrays may have beside 1 and 3.
        slices: neighbouring slices of a volume that are the model's channels: a store's images alone can show them.

    Raises:
        FeaturesError: its images show another number of slices.
        TypeError, ValueError, TaskError, StoreError: it is none of these.
    """
    if isinstance(given, str | os.PathLike):
        given = Task.open(given) if Path(given).suffix in (".yaml", ".yml") else open_mvu(given, slices)
    dataset = given.dataset if isinstance(given, StoreImages) else given
    found = dataset.slices if isinstance(dataset, MVUDataset) else 1
    if found != slices:
        raise FeaturesError(
            f"the images show slices = {found} of a volume, the model's channels are {slices}: expected "
            f"open_mvu(store, slices={slices}), or a model of single images; from_pretrained(folder, in_chans=1) makes "
            "one of any"
        )
    if isinstance(given, Task):
        return TaskImages(given)
    if isinstance(given, MVUDataset):
        return StoreImages(given)
    if isinstance(given, TaskImages | StoreImages | GivenImages):
        return given
    return GivenImages(given if isinstance(given, OwnImages) else OwnImages(given, channels))
