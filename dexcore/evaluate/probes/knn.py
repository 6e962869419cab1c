"""The probe without training: the nearest training images vote."""

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
    """Classify the test images by their nearest training images: cosine, centred on the training features.

    Layer and variant (`VARIANTS`) are those with the best number on val; where there is no val, of the training images
    by those of other cases. An image of its own case is no neighbor of any.

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
    held, held_label = (splits.val, splits.val_label) if len(splits.val) else (splits.train, splits.train_label)
    tried: list[dict[str, Any]] = []
    for layer, of_layer in features.items():
        found = _found(splits, of_layer, held)
        for k, votes in VARIANTS:
            value, measured = value_of(task, held, held_label, _probability(splits, found, k, votes))
            tried.append({"layer": layer, "k": k, "votes": votes, "value": value, "measured": measured})
    best = max(tried, key=lambda one: (one["measured"] == task.spec.metric, one["value"]))  # of equals the first
    probability = _probability(splits, _found(splits, features[best["layer"]], splits.test), best["k"], best["votes"])
    chosen_on = "val" if len(splits.val) else "train, by images of other cases"
    choice = {"probe": "knn", **best, "temperature": TEMPERATURE, "chosen_on": chosen_on, "tried": tried}
    flags = [*absent_flag(task, splits.train_label), *undefined_flag(task, best["measured"])]
    return Probed(splits.predictions(probability, model, draw), choice, tuple(flags))


def _found(splits: Splits, features: np.ndarray, queries: Part) -> Nearest:
    rows = features[splits.train.place_n]
    center = rows.mean(axis=0, dtype=np.float64)
    return nearest(features[queries.place_n], rows, _MOST, queries.case_n, splits.train.case_n, center)


def _probability(splits: Splits, found: Nearest, k: int, votes: str) -> np.ndarray:
    found = Nearest(found.index_qk[:, :k], found.likeness_qk[:, :k])
    weight = near_votes(found.likeness_qk, TEMPERATURE) if votes == "weighted" else equal_votes(k)
    target = one_hot(splits.train_label, splits.classes)
    probability = shares(found, target, weight)
    lost = found.index_qk[:, 0] < 0  # no image of another case
    probability[lost] = target.mean(axis=0)
    return probability
