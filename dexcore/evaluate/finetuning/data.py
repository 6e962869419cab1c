"""What a fine-tuning step is given: images of a task changed at random, and their masks by the same geometry.

Every draw is keyed on (seed, epoch, image), as in pre-training. Masks stay whole numbers: each output pixel takes the
label of the nearest one, and what a rotation brings in from outside does not count.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate, get_worker_info

from dexcore.data.feed.augment import Augmentation, draw
from dexcore.data.feed.cache import DecodedCache
from dexcore.data.feed.keyed import Stream, generator
from dexcore.data.feed.order import SampleKey
from dexcore.evaluate.embedding import Preprocessing
from dexcore.evaluate.losses import UNKNOWN
from dexcore.evaluate.prediction.images import task_image
from dexcore.evaluate.tasks import Row, Task
from dexcore.extras import require
from dexcore.view import Box, resample, resample_labels, to_tensor

_LARGEST = 65535  # images are kept in 16 bits: all that a store of them has
_GRID = 256  # the whole image as crops are drawn on it


def sorted_rows(task: Task, split: str) -> list[Row]:
    """The rows of a split by the names of their images: whatever their order in the table, draws are the same."""
    return sorted((row for row in task.rows if row.split == split), key=lambda row: row.image)


class TaskImages:
    """Images and labels of rows as training reads them, kept in memory while there is room.

    Args:
        task: of the rows.
        rows: some of the task's; of the test split a task gives no labels.
        size: bytes of memory; 0: nothing is kept.
    """

    def __init__(self, task: Task, rows: Sequence[Row], size: int = 0) -> None:
        self.task, self.rows = task, tuple(rows)
        self._kept = DecodedCache(2 * len(self.rows), size) if size else None  # an image, then its mask

    def __len__(self) -> int:
        return len(self.rows)

    def image(self, number: int) -> np.ndarray:
        """uint16 [H, W] or [H, W, 3], at the size of its mask; of a classification with square pixels."""
        return self._once(2 * number, lambda: in_16_bits(task_image(self.task, self.rows[number])))

    def pixels(self, number: int) -> np.ndarray:
        """The same, or in [0, 1] as it was read where nothing is kept."""
        if self._kept is None:
            return task_image(self.task, self.rows[number])
        return self.image(number)

    def target(self, number: int) -> np.ndarray:
        """The mask: unsigned [H, W], or [channels, H, W]; or the label, 0-dim or [classes]."""
        row = self.rows[number]
        if not self.task.spec.is_segmentation:
            return np.asarray(self.task.label(row), np.int64)
        return self._once(2 * number + 1, lambda: _plain(self.task.mask(row)))

    def _once(self, place: int, read: Any) -> np.ndarray:
        kept = self._kept.get(place) if self._kept is not None else None
        if kept is None:
            kept = read()
            if self._kept is not None and kept.dtype.itemsize <= 2:
                self._kept.put(place, kept)
        return kept


def in_16_bits(image: np.ndarray) -> np.ndarray:
    """float32 in [0, 1] as uint16: 8 and 16 bits stay what they are."""
    return np.round(image * np.float32(_LARGEST)).astype(np.uint16)


def _plain(mask: np.ndarray) -> np.ndarray:
    return mask.astype(np.uint8) if mask.dtype == bool else mask


class TrainingView(Dataset[dict[str, Any]]):
    """The network's inputs and targets by `SampleKey`: an item depends on its key alone.

    - ``image`` float32 [channels, size, size];
    - ``target``: int64 [size, size] or [channels, size, size], `UNKNOWN` where a pixel does not count; or the label;
    - ``number`` int: of the row.

    An image or a mask that cannot be read is an item ``error``: what workers raise loses its kind.

    Args:
        images: of train.
        view: what the network is shown.
        seed: of all draws.
        augmentation: how images are changed at random.
    """

    def __init__(self, images: TaskImages, view: Preprocessing, seed: int, augmentation: Augmentation) -> None:
        self.images, self.view, self.seed, self.augmentation = images, view, seed, augmentation
        self._ignore = images.task.spec.ignore

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: SampleKey | tuple[int, int]) -> dict[str, Any]:
        if get_worker_info() is not None:
            require("cv2", "train").setNumThreads(0)  # workers run side by side
        try:
            return self._item(*key)
        except (OSError, ValueError, TypeError) as error:
            return {"error": error}

    def _item(self, epoch: int, number: int) -> dict[str, Any]:
        pixels, target = self.images.image(number), self.images.target(number)
        rng = generator(self.seed, epoch, number, Stream.AUGMENT)
        size = self.view.size[0]
        if self.images.task.spec.is_segmentation:
            box, flip, angle, gamma = draw_whole(pixels, size, rng, self.augmentation)
            labels, inside = resample_labels(target, box, size, flip, angle)
            labels = labels.astype(np.int64)
            labels[..., ~inside] = UNKNOWN
            if self._ignore is not None:
                labels[labels == self._ignore] = UNKNOWN
            target = labels
        else:
            box, flip, angle, gamma = draw(pixels, size, rng, self.augmentation)
        square = resample(pixels, box, size, flip, angle)
        if gamma != 1:
            square = np.clip(square, 0, 1, out=square) ** np.float32(gamma)
        image = to_tensor(square, self.view.mean, self.view.std)
        return {"image": image, "target": torch.from_numpy(np.asarray(target, np.int64)), "number": number}


def draw_whole(image: np.ndarray, size: int, rng: np.random.Generator, settings: Augmentation) -> Any:
    """`draw` for a view of the whole image, squeezed into a square: crops are drawn on that square.

    So a crop that is the whole is what the network is shown in a test, whatever the sides of the image.
    """
    height, width = image.shape[:2]
    rows, columns = ((np.arange(_GRID) * side + side // 2) // _GRID for side in (height, width))
    square = image[rows][:, columns]
    # Of the output's pixels a crop has at least a share, counted in the image's own.
    output = max(1, round(_GRID * size / math.sqrt(height * width)))
    box, flip, angle, gamma = draw(square, min(output, 2 * _GRID), rng, settings)
    top, left = box.top * height // _GRID, box.left * width // _GRID
    bottom, right = -(-(box.top + box.height) * height // _GRID), -(-(box.left + box.width) * width // _GRID)
    return Box(top, left, max(bottom - top, 1), max(right - left, 1)), flip, angle, gamma


def collate(items: list[dict[str, Any]]) -> Any:
    """Stack a batch; the first error in its place, where there is one."""
    errors = [item["error"] for item in items if "error" in item]
    return errors[0] if errors else default_collate(items)


def sound(batches: Any) -> Iterator[dict[str, Any]]:
    """The batches, until one holds an error, which is raised here."""
    for batch in batches:
        if isinstance(batch, Exception):
            raise batch
        yield batch


class Shown(NamedTuple):
    """An image as the network is shown it, unchanged.

    Attributes:
        number: of its row.
        image: the network's input.
        size: native height and width, before it.
        reference: the mask, where it was asked for.
    """

    number: int
    image: Tensor
    size: tuple[int, int]
    reference: np.ndarray | None


class TestView(Dataset[Shown | Exception]):
    """The network's inputs by number, unchanged; of an image or a mask that cannot be read the error.

    Args:
        images: to be shown; of train or val they may be kept in memory.
        view: what the network is shown.
        references: whether masks come along, which a task does not give of test.
    """

    __test__ = False  # no test of pytest's

    def __init__(self, images: TaskImages, view: Preprocessing, references: bool = False) -> None:
        self.images, self.view, self.references = images, view, references

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> Shown | Exception:
        try:
            pixels = self.images.pixels(number)
            reference = self.images.target(number) if self.references else None
            return Shown(number, self.view(pixels), (pixels.shape[0], pixels.shape[1]), reference)
        except (OSError, ValueError, TypeError) as error:
            return error
