"""The dense linear probe: a 1 x 1 convolution on frozen patch tokens, its logits enlarged to each image's own size.

Axes: b images, c classes, d width, y and x rows and columns of pixels, p and q those of patches.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dexcore.evaluate.embedding import FeaturesError, FeatureTable
from dexcore.evaluate.losses import UNKNOWN, segmentation_losses
from dexcore.evaluate.prediction.native import at_size, decided
from dexcore.evaluate.probes.splits import Probed
from dexcore.evaluate.scores import Predictions, write_mask
from dexcore.evaluate.tasks import Row, Task, TaskError

STEPS = 500
BATCH = 8
RATE = 1e-2
DECAY = 1e-4
LARGEST = 256  # pixels: masks are thinned to it where the head is trained, never where it predicts
TOKENS = "patch tokens"  # the layer that it takes
_TOGETHER = 64  # images whose tokens are read at once


def dense_probe(
    task: Task,
    table: FeatureTable,
    folder: str | os.PathLike[str],
    model: str = "",
    seed: int = 0,
    steps: int = STEPS,
) -> Probed:
    """Segment the test images by a linear head on patch tokens, and save the masks at the images' own size.

    The tokens are standardized by those of train. The head is trained on train and val by Dice + cross-entropy (of
    channels: binary), with AdamW and a rate that falls to 0; the last state predicts. Nothing is chosen.

    Args:
        task: of segmentation.
        table: features of its images, with patch tokens of the whole image (``crop="whole", tokens=True``).
        folder: where the masks are written.
        model: the features' name.
        seed: of the first weights and the order of images: the same one gives the same bytes.
        steps: of `BATCH` images each.

    Raises:
        TaskError: the task has no masks or no training images, or a mask cannot be read.
        FeaturesError: an image is not in the table, or it has no patch tokens, or they are of a part of the image.
        OSError: a mask cannot be written.
    """
    head = fit_dense(task, table, seed, steps)
    return Probed(head.predictions(table, folder, model, seed), head.choice, ())


@dataclass(frozen=True, eq=False)
class DenseHead:
    """A dense probe that is fitted.

    Attributes:
        task: that it segments.
        test: its test images, sorted by name.
        mean, scale: of the tokens of train, float32 [d].
        weight_cd, bias_c: of the head.
        choice: how it was made.
    """

    task: Task
    test: tuple[Row, ...]
    mean: Tensor
    scale: Tensor
    weight_cd: Tensor
    bias_c: Tensor
    choice: dict[str, Any]

    def predictions(
        self, table: FeatureTable, folder: str | os.PathLike[str], model: str = "", seed: int | None = None
    ) -> Predictions:
        """Segment the test images by their tokens, and write the masks into ``folder``.

        Raises:
            FeaturesError: a test image is not in the table, or it has no patch tokens.
            OSError: a mask cannot be written.
        """
        Path(folder).mkdir(parents=True, exist_ok=True)
        of_test, paths = table.of([row.image for row in self.test]), []
        for number, row in enumerate(self.test):
            tokens = _tokens(of_test, [number], self.mean, self.scale)
            height, width = self.task.image(row).shape[:2]
            logits = at_size(_logits(tokens, self.weight_cd, self.bias_c), height, width)[0]
            paths.append(write_mask(folder, row.image, decided(self.task.spec.kind, logits)))
        return Predictions.of(self.task, "mask", [row.image for row in self.test], paths, model, seed)


def check_dense(task: Task) -> None:
    """Refuse what `fit_dense` could not be fitted to or tested on.

    Raises:
        TaskError: the task has no masks, or no image of train or test.
    """
    if not task.spec.is_segmentation:
        raise TaskError(f"task {task.name}: is of kind {task.kind}: the dense probe is for masks")
    if not task.split("train") or not task.split("test"):
        raise TaskError(f"task {task.name}: has no image of train or of test: there is nothing to probe")


def fit_dense(task: Task, table: FeatureTable, seed: int = 0, steps: int = STEPS) -> DenseHead:
    """Train the head of `dense_probe`, which has the arguments and errors; no mask of test is read."""
    check_dense(task)
    if table.crop != "whole":
        raise FeaturesError(
            f"the tokens are of the crop {table.crop or 'that nobody said'}, and would be spread over the whole image: "
            'expected features(..., crop="whole", tokens=True)'
        )
    known = _sorted(task, "train") + _sorted(task, "val")
    of_known = table.of([row.image for row in known])
    mean, scale = _standard(of_known, len(_sorted(task, "train")))
    masks = [_thinned(_target(task, row)) for row in known]
    weight_cd, bias_c = _trained(task, of_known, masks, mean, scale, seed, steps)
    choice = {
        "probe": "dense",
        "layer": TOKENS,
        "chosen_on": "nothing is chosen",
        "steps": steps,
        "batch": BATCH,
        "rate": RATE,
        "decay": DECAY,
        "seed": seed,
        "grid": list(of_known.grid or ()),
    }
    return DenseHead(task, tuple(_sorted(task, "test")), mean, scale, weight_cd, bias_c, choice)


def majority_masks(task: Task, folder: str | os.PathLike[str]) -> Predictions:
    """The class that most training pixels have, everywhere: what a number must beat."""
    count, pixels = np.zeros(len(task.classes)), 0
    for row in task.split("train"):
        target = _target(task, row)
        if target.ndim == 3:
            count, pixels = count + target.sum(axis=(1, 2)), pixels + target[0].size
        else:
            count += np.bincount(target[target >= 0], minlength=len(task.classes))
    test = _sorted(task, "test")
    paths = []
    for row in test:
        shape = task.image(row).shape[:2]
        constant: np.ndarray = np.full(shape, int(count.argmax()), np.uint8)
        if task.kind == "multilabel_segmentation":
            constant = np.broadcast_to((count * 2 > pixels)[:, None, None], (len(count), *shape)).copy()
        paths.append(write_mask(folder, row.image, constant))
    return Predictions.of(task, "mask", [row.image for row in test], paths, "majority")


def _sorted(task: Task, split: str) -> list[Row]:
    return sorted((row for row in task.rows if row.split == split), key=lambda row: row.image)


def _target(task: Task, row: Row) -> np.ndarray:
    """Of one class a pixel int64 [y, x], `UNKNOWN` where it does not count; of channels bool [c, y, x]."""
    mask = task.mask(row)
    if mask.ndim == 3:
        return mask
    target = mask.astype(np.int64)
    if task.spec.ignore is not None:
        target[mask == task.spec.ignore] = UNKNOWN
    return target


def _thinned(target: np.ndarray) -> np.ndarray:
    """Every k-th row and column of a large mask, in the smallest type."""
    step = [max(1, -(-side // LARGEST)) for side in target.shape[-2:]]
    thin = target[..., :: step[0], :: step[1]]
    return np.ascontiguousarray(thin if thin.dtype == bool else thin.astype(np.int16))


def _standard(table: FeatureTable, count: int) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the tokens of the first ``count`` images, float32 [d]."""
    total = square = np.zeros(0)
    pixels = 0
    for start in range(0, count, _TOGETHER):
        read = table.tokens(range(start, min(start + _TOGETHER, count))).astype(np.float64)
        tokens = read.reshape(-1, read.shape[-1])
        total = tokens.sum(axis=0) if not pixels else total + tokens.sum(axis=0)
        square = np.square(tokens).sum(axis=0) if not pixels else square + np.square(tokens).sum(axis=0)
        pixels += len(tokens)
    mean = total / pixels
    scale = np.sqrt(np.maximum(square / pixels - mean**2, 0))
    return torch.from_numpy(mean).float(), torch.from_numpy(np.where(scale > 1e-6, scale, 1.0)).float()


def _tokens(table: FeatureTable, rows: Sequence[int], mean: Tensor, scale: Tensor) -> Tensor:
    """Standardized, float32 [b, p, q, d]."""
    read = table.tokens(rows)
    grid = table.grid or (1, read.shape[1])
    tokens = torch.from_numpy(np.ascontiguousarray(read)).float()
    return ((tokens - mean) / scale).unflatten(1, grid)


def _logits(tokens_bpqd: Tensor, weight_cd: Tensor, bias_c: Tensor) -> Tensor:
    return torch.einsum("bpqd,cd->bcpq", tokens_bpqd, weight_cd) + bias_c[:, None, None]


def _trained(
    task: Task,
    table: FeatureTable,
    masks: list[np.ndarray],
    mean: Tensor,
    scale: Tensor,
    seed: int,
    steps: int,
) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    weight = (0.01 * torch.randn(len(task.classes), len(mean), generator=random)).requires_grad_()
    bias = torch.zeros(len(task.classes), requires_grad=True)
    optimizer = torch.optim.AdamW([weight, bias], lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    order: list[int] = []
    for _ in range(steps):
        while len(order) < BATCH:
            order += torch.randperm(len(masks), generator=random).tolist()
        batch, order = order[:BATCH], order[BATCH:]
        logits = _logits(_tokens(table, batch, mean, scale), weight, bias)
        losses = []
        for place, number in enumerate(batch):
            target = torch.from_numpy(masks[number])
            pixels = at_size(logits[place : place + 1], *target.shape[-2:])[0]
            entropy, dice = segmentation_losses(pixels[None], target[None])
            losses.append((entropy + dice)[0])
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        optimizer.step()
        schedule.step()
    return weight.detach(), bias.detach()
