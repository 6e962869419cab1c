"""What a number must beat: the most frequent class, and features that nobody trained.

`Intensities` is what an image tells without any network: a histogram and a thumbnail. A probe that is not better has
measured exposure. `redrawn` is a model of the same architecture that has learned nothing.
"""

import copy
import os
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dexcore.evaluate.embedding import Features, FeatureTable, Preprocessing, features
from dexcore.evaluate.probes.splits import Splits, one_hot
from dexcore.evaluate.scores import Predictions
from dexcore.evaluate.scores.baselines import HISTOGRAM, MAJORITY
from dexcore.evaluate.tasks import Task

M = TypeVar("M", bound=nn.Module)

SIZE = 128  # pixels: what `Intensities` sees
BINS = 32
THUMBNAIL = 8
PATCH = 8
_PATCH_BINS = 8
_KEY = f"intensities {SIZE} {BINS} {THUMBNAIL} {PATCH} {_PATCH_BINS}"


def majority(task: Task) -> Predictions:
    """The shares of the classes among the images of train and val, for every test image."""
    splits = Splits.of(task)
    share = one_hot(splits.known()[1], splits.classes).mean(axis=0)
    return splits.predictions(np.tile(share, (len(splits.test), 1)), MAJORITY, None)


def intensities(images: Tensor) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """Histogram and thumbnail of each image, histogram and spread of each patch.

    Args:
        images: [B, C, H, W] in [0, 1], H and W multiples of `PATCH`.

    Returns:
        float32 [B, C * (BINS + THUMBNAIL ** 2)]; float32 [B, patches, C * 12]; and rows and columns of the patches.
    """
    whole = _histogram(images.flatten(2), BINS).flatten(1)
    thumbnail = F.adaptive_avg_pool2d(images, THUMBNAIL).flatten(1)
    patches = images.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH).flatten(4)  # [B, C, rows, columns, pixels]
    grid = (patches.shape[2], patches.shape[3])
    told = torch.stack([patches.mean(-1), patches.std(-1), patches.amin(-1), patches.amax(-1)], -1)
    tokens = torch.cat([told, _histogram(patches, _PATCH_BINS)], -1)
    return torch.cat([whole, thumbnail], 1), tokens.permute(0, 2, 3, 1, 4).flatten(3).flatten(1, 2), grid


def _histogram(values: Tensor, bins: int) -> Tensor:
    """The share of the last axis's numbers in each bin of [0, 1]: [..., bins]."""
    place = (values * bins).long().clamp(0, bins - 1)
    return torch.stack([(place == number).float().mean(-1) for number in range(bins)], -1)


def redrawn(model: M, seed: int = 0) -> M:
    """A copy with new weights, as its layers draw them; fixed positions stay.

    Args:
        model: a vision transformer of timm's or dexcore's, or any whose layers have ``reset_parameters``.
        seed: of the draw.
    """
    fresh = copy.deepcopy(model)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for part in fresh.modules():
            draw: Any = getattr(part, "reset_parameters", None)
            if callable(draw):
                draw()
        for name, parameter in fresh.named_parameters():
            if "." not in name and parameter.requires_grad:  # class token, registers, learned positions
                nn.init.trunc_normal_(parameter, std=0.02)
        whole: Any = getattr(fresh, "init_weights", None)
        if callable(whole):
            whole()
    return fresh


def histogram_features(task: Task, cache: str | os.PathLike[str] | None = None) -> FeatureTable:
    """The intensities of a task's images, with those of their patches as tokens; see `intensities`."""
    view = Preprocessing((SIZE, SIZE), (0.0,) * 3, (1.0,) * 3, crop="whole")
    return features(
        _features, task, preprocessing=view, tokens=task.spec.is_segmentation, cache=cache, key=_KEY, name=HISTOGRAM
    )


def _features(images: Tensor) -> Features:
    whole, tokens, grid = intensities(images)
    return Features(mean=whole, tokens=tokens, grid=grid)
