"""Nearest neighbors, and what they tell of a class.

Axes: n rows (images), d width, k neighbors.
"""

import math
from dataclasses import dataclass

import numpy as np

NEIGHBORS = 5


@dataclass(frozen=True, eq=False)
class Neighbors:
    """How often an image's nearest neighbors are of its class.

    Attributes:
        accuracy: share of images whose class the majority of `NEIGHBORS` neighbors names, classes weighing the
            same; nan where fewer than two classes can be asked about.
        chance: 1 / classes: what random features reach.
        classes, images: how many it rests on.
        right_n: float64 [n], 1 or 0 an image; nan for an image that was not asked about.
    """

    accuracy: float
    chance: float
    classes: int
    images: int
    right_n: np.ndarray


def neighbor_accuracy(features_nd: np.ndarray, label_n: np.ndarray, apart_n: np.ndarray) -> Neighbors:
    """Classify every image by its nearest others (cosine of the centered features).

    An image's neighbors are sought among images that differ from it in ``apart_n``: slices of its own volume, say, are
    no evidence. Classes that lie within one value of ``apart_n`` cannot be found that way and are left out, as are
    labels below 0 and features that are not finite. A tie goes to the class of the nearest among the tied.
    """
    usable = (label_n >= 0) & np.isfinite(features_nd).all(axis=1)
    for label in np.unique(label_n[usable]):
        own = label_n == label
        if len(np.unique(apart_n[usable & own])) < 2:
            usable &= ~own
    features, apart = features_nd[usable].astype(np.float64), apart_n[usable]
    classes, label = np.unique(label_n[usable], return_inverse=True)
    right_n = np.full(len(features_nd), np.nan)
    if len(classes) < 2:
        return Neighbors(math.nan, math.nan, len(classes), len(features), right_n)
    features = features - features.mean(axis=0)
    features = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    likeness = features @ features.T
    likeness[apart[:, None] == apart[None, :]] = -np.inf
    nearest = np.argsort(-likeness, axis=1, kind="stable")[:, :NEIGHBORS]
    valid = np.isfinite(np.take_along_axis(likeness, nearest, axis=1))
    right = _majority(np.where(valid, label[nearest], -1), len(classes)) == label
    right_n[usable] = right
    accuracy = float(np.mean([right[label == index].mean() for index in range(len(classes))]))
    return Neighbors(accuracy, 1 / len(classes), len(classes), len(features), right_n)


def _majority(label_nk: np.ndarray, classes: int) -> np.ndarray:
    """The label that most of k neighbors have, the nearest first; -1 is none. A tie goes to the nearest."""
    votes = (label_nk[:, :, None] == np.arange(classes)).astype(np.float64)
    # Beside its vote each neighbor has a bit, larger than the bits of all behind it: it decides between equals.
    bits = 1 + 1e-3 * 0.5 ** np.arange(label_nk.shape[1])
    return (votes * bits[:, None]).sum(axis=1).argmax(axis=1)
