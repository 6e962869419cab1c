"""The probe without training: the nearest images of known class vote."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from dexcore.evaluate.probes.splits import (
    Layers,
    Part,
    Probed,
    Splits,
    absent_flag,
    one_hot,
    undefined_flag,
    value_of,
)
from dexcore.evaluate.tasks import Task
from dexcore.measures.neighbors import Nearest, equal_votes, near_votes, nearest, shares

TEMPERATURE = 0.07
# k, and how its neighbors are weighed.
VARIANTS: tuple[tuple[int, str], ...] = ((20, "weighted"), (5, "plain"))
_MOST = max(k for k, _ in VARIANTS)


def knn_probe(task: Task, layers: Layers, model: str = "", draw: int | None = None) -> Probed:
    """Classify the test images by their nearest images of known class: cosine, centred on the training features.

    Layer and variant (`VARIANTS`) are those with the best number on val; where there is no val, of the training images
    by those of other cases. Then the images of train and val are the neighbors of test, as the last fit of
    `linear_probe` is on both; what is subtracted is the mean of train. An image of its own case is no neighbor of any.

    Args:
        task: of classification.
        layers: features by layer.
        model: their name.
        draw: a key, by which training cases are drawn with replacement.

    Raises:
        TaskError: the task or the features cannot be probed.
    """
    splits = Splits.of(task, draw)
    features = splits.check(layers)
    tried = _tried(splits, features)
    best = max(tried, key=lambda one: (one["measured"] == task.spec.metric, one["value"]))  # of equals the first
    known, label = splits.known()
    found = _found(splits, features[best["layer"]], splits.test, known)
    probability = _probability(found, label, splits, best["k"], best["votes"])
    _, _, chosen_on = _held(splits)
    choice = {"probe": "knn", **best, "temperature": TEMPERATURE, "chosen_on": chosen_on, "tried": tried}
    flags = [*absent_flag(task, label), *undefined_flag(task, best["measured"])]
    return Probed(splits.predictions(probability, model, draw), choice, tuple(flags))


@dataclass(frozen=True)
class OnVal:
    """What nearest neighbors tell of the images on which a probe chooses; no label of test, and no choice, is in it.

    Attributes:
        tried: a dict a layer and variant: ``layer``, ``k``, ``votes``, ``value`` and ``measured``, the number it is.
        majority: the same number where every image is given the shares of the training labels.
        measured_on: "val", or "train, by images of other cases" where there is no val.
        images, cases: how many there are.
    """

    tried: tuple[dict[str, Any], ...]
    majority: float
    measured_on: str
    images: int
    cases: int


def knn_on_val(task: Task, layers: Layers) -> OnVal:
    """Classify the val images by their nearest training images, by each layer and variant of `knn_probe`.

    Raises:
        TaskError: the task or the features cannot be probed.
    """
    splits = Splits.of(task)
    tried = _tried(splits, splits.check(layers))
    held, label, measured_on = _held(splits)
    share = one_hot(splits.train_label, splits.classes).mean(axis=0)
    majority, _ = value_of(task, held, label, np.tile(share, (len(held), 1)))
    return OnVal(tuple(tried), majority, measured_on, len(held), len(np.unique(held.case_n)))


def _held(splits: Splits) -> tuple[Part, np.ndarray, str]:
    """The images on which is chosen, their labels, and what they are called."""
    if len(splits.val):
        return splits.val, splits.val_label, "val"
    return splits.train, splits.train_label, "train, by images of other cases"


def _tried(splits: Splits, features: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """The number of each layer and variant on the images on which is chosen."""
    held, label, _ = _held(splits)
    tried: list[dict[str, Any]] = []
    for layer, of_layer in features.items():
        found = _found(splits, of_layer, held, splits.train)
        for k, votes in VARIANTS:
            probability = _probability(found, splits.train_label, splits, k, votes)
            value, measured = value_of(splits.task, held, label, probability)
            tried.append({"layer": layer, "k": k, "votes": votes, "value": value, "measured": measured})
    return tried


def _found(splits: Splits, features: np.ndarray, queries: Part, known: Part) -> Nearest:
    center = features[splits.train.place_n].mean(axis=0, dtype=np.float64)
    return nearest(features[queries.place_n], features[known.place_n], _MOST, queries.case_n, known.case_n, center)


def _probability(found: Nearest, label: np.ndarray, splits: Splits, k: int, votes: str) -> np.ndarray:
    found = Nearest(found.index_qk[:, :k], found.likeness_qk[:, :k])
    weight = near_votes(found.likeness_qk, TEMPERATURE) if votes == "weighted" else equal_votes(k)
    target = one_hot(label, splits.classes)
    probability = shares(found, target, weight)
    lost = found.index_qk[:, 0] < 0  # no image of another case
    probability[lost] = target.mean(axis=0)
    return probability
