"""Numbers of frozen features on tasks: probes, and how far classes are found across modalities."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from dexcore.evaluate.claims.numbers import Measured, Number, mean_number
from dexcore.evaluate.embedding import FeatureTable, features_by_mode, open_model
from dexcore.evaluate.probes.run import Probe, layers_of, run_probe
from dexcore.evaluate.probes.splits import Splits
from dexcore.evaluate.scores import Scores
from dexcore.evaluate.tasks import Task
from dexcore.measures.shared_space import Points, above_chance, across_modalities
from dexcore.nn import rule_of

PROBES = {"linear": "linear probe", "knn": "k-NN"}
FEWEST = 2  # modalities that share a class


def task_numbers(model: Path, tasks: Sequence[Task], out: Path, cache: Path, name: str) -> Measured:
    """Probe a model on every task of classes, in the mode in which it was trained.

    Numbers: ``linear probe`` and ``k-NN``, the mean over tasks of the metric that each task names; and
    ``linear probe, TASK`` each. Where a task is of several modalities with the same classes: ``across modalities``,
    the mean average precision of retrieving a class's training images of other modalities for each test image, minus
    that of permuted classes; and the same in director mode, ``across modalities, director``.

    Args:
        model: a folder of dexcore's.
        tasks: of classes; those of masks are left out.
        out: the folder of the probes' predictions and scores.
        cache: of features.
        name: of the model.

    Raises:
        TaskError, FeaturesError: as the probes.
    """
    numbers: dict[str, Number] = {}
    flags: dict[str, None] = {}
    parts: defaultdict[str, list[Number]] = defaultdict(list)  # of which a number is the mean
    opened = open_model(model)
    for task in tasks:
        if task.spec.is_segmentation:
            continue
        if strange := _not_routed(opened, task):
            flags[f"{name}: {task.name} is left out, the model has no experts for {', '.join(strange)}"] = None
            continue
        tables = features_by_mode(opened, task, cache=cache, name=name)
        table = tables.get("experts") or next(iter(tables.values()))
        for probe, told in PROBES.items():
            scores = run_probe(task, table, name, Probe(probe), out)
            assert isinstance(scores, Scores)
            number = Number.of(
                scores.made_of.statistics()[scores.metric], scores.made_of.strata(scores.metric), task.name
            )
            parts[told].append(number)
            numbers[f"{told}, {task.name}"] = number
            flags |= dict.fromkeys(f"{task.name}, {told}: {flag}" for flag in scores.flags)
        try:
            for told, number in _across(task, tables).items():
                parts[told].append(number)
        except ValueError as error:
            flags[f"{task.name}: {error}"] = None
    numbers |= {told: mean_number(own) for told, own in parts.items()}
    return Measured(numbers, tuple(flags))


def _not_routed(model: Any, task: Task) -> list[str]:
    """Modalities of the task that a model which is routed by modality does not know."""
    rule = rule_of(model) if isinstance(model, nn.Module) else None
    known = rule.modalities if rule is not None and rule.kind == "oracle" else task.modalities
    return [str(modality) for modality in task.modalities if modality not in known]


def _across(task: Task, tables: Mapping[str, FeatureTable]) -> dict[str, Number]:
    """Of each mode; of images of one modality, or of several classes each, nothing.

    Raises:
        ValueError: fewer than two modalities or classes have images of train and test.
    """
    if len(task.modalities) < FEWEST or task.kind == "multilabel":
        return {}
    splits, modalities = Splits.of(task), list(task.modalities)
    sides = (splits.test, task.reference().labels(splits.test.rows)), (splits.train, splits.train_label)
    found = {}
    for mode, table in tables.items():
        layers = layers_of(table, task)
        features = layers.get("cls", layers["mean"])
        queries, gallery = (
            Points(
                features[part.place_n],
                np.array([modalities.index(row.modality) for row in part.rows], dtype=np.int64),
                class_n,
                part.case_n,
            )
            for part, class_n in sides
        )
        told = "across modalities" + (", director" if mode == "director" else "")
        found[told] = across_number(queries, gallery, task.name)
    return found


def across_number(queries: Points, gallery: Points, cases: str = "") -> Number:
    """Mean average precision of a class's images of other modalities, minus that of permuted classes.

    As `dexcore.evaluate.modules.measure_shared_space` has it of a store: `across_modalities`, features around each
    modality's mean over the gallery, cases of queries drawn within modalities.

    Args:
        queries: test images.
        gallery: training images.
        cases: what the set is called.

    Raises:
        ValueError: fewer than two modalities or classes have both.
    """
    labels = range(int(max(queries.label_n.max(), gallery.label_n.max())) + 1)
    own = [gallery.features_nd[gallery.label_n == label].astype(np.float64) for label in labels]
    none = np.zeros(gallery.features_nd.shape[1])
    centers = np.stack([one.mean(axis=0) if len(one) else none for one in own])
    return Number.of(*above_chance(across_modalities(queries, gallery, centers, draws=2)), cases)
