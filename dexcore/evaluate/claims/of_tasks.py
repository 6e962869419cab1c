"""Numbers of frozen features on tasks: probes, and how far classes are found across modalities."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from dexcore.evaluate.claims.numbers import Measured, Number, mean_number
from dexcore.evaluate.embedding import FeatureTable, features_by_mode, open_model
from dexcore.evaluate.probes.retrieval import class_retrieval
from dexcore.evaluate.probes.run import Probe, layers_of, run_probe
from dexcore.evaluate.scores import Scores
from dexcore.evaluate.tasks import Task
from dexcore.measures.bootstrap import mean_statistic
from dexcore.nn import rule_of

PROBES = {"linear": "linear probe", "knn": "k-NN"}
FEWEST = 2  # modalities that share a class


def task_numbers(model: Path, tasks: Sequence[Task], out: Path, cache: Path, name: str) -> Measured:
    """Probe a model on every task of classes, in the mode in which it was trained.

    Numbers: ``linear probe`` and ``k-NN``, the mean over tasks of the metric that each task names; and
    ``linear probe, TASK`` each. Where a task is of several modalities with the same classes: ``across modalities``,
    the mean average precision of retrieving a class's images of other modalities, minus that of a random order; and
    the same in director mode, ``across modalities, director``.

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
        for told, number in _across(task, tables).items():
            parts[told].append(number)
    numbers |= {told: mean_number(own) for told, own in parts.items()}
    return Measured(numbers, tuple(flags))


def _not_routed(model: Any, task: Task) -> list[str]:
    """Modalities of the task that a model which is routed by modality does not know."""
    rule = rule_of(model) if isinstance(model, nn.Module) else None
    known = rule.modalities if rule is not None and rule.kind == "oracle" else task.modalities
    return [str(modality) for modality in task.modalities if modality not in known]


def _across(task: Task, tables: Mapping[str, FeatureTable]) -> dict[str, Number]:
    if len(task.modalities) < FEWEST or task.kind == "multilabel":
        return {}
    found = {}
    for mode, table in tables.items():
        layers = layers_of(table, task)
        told = "across modalities" + (", director" if mode == "director" else "")
        found[told] = across_modalities(
            layers.get("cls", layers["mean"]),
            task.reference().labels(task.rows),
            np.unique([row.modality for row in task.rows], return_inverse=True)[1],
            np.unique([row.case for row in task.rows], return_inverse=True)[1],
            task.name,
        )
    return found


def across_modalities(
    features_nd: np.ndarray, label_n: np.ndarray, modality_n: np.ndarray, case_n: np.ndarray, cases: str = ""
) -> Number:
    """Mean average precision of a class's images of other modalities, minus that of a random order.

    Classes weigh the same. Features lie around their mean within each modality, so that where a modality lies as a
    whole neither helps nor hurts. Cases are drawn as queries; the gallery stays.

    Args:
        features_nd: float [n, d].
        label_n, modality_n, case_n: int64 [n].
        cases: what the set is called.
    """
    centered = features_nd.astype(np.float64)
    for modality in np.unique(modality_n):
        own = modality_n == modality
        centered[own] -= centered[own].mean(axis=0)
    found = class_retrieval(centered, label_n, centered, label_n, modality_n, modality_n)
    more_n = found.precision_n - found.chance_n
    classes = np.unique(label_n)
    # [g, c]: sums and counts of a case's queries, so that a case with several counts once a query.
    case, place_n = np.unique(case_n, return_inverse=True)
    value_gc = np.full((len(case), len(classes)), np.nan)
    for column, label in enumerate(classes):
        own = (label_n == label) & np.isfinite(more_n)
        count = np.bincount(place_n[own], minlength=len(case))
        total = np.bincount(place_n[own], more_n[own], len(case))
        value_gc[count > 0, column] = total[count > 0] / count[count > 0]
    return Number.of(mean_statistic(value_gc), np.zeros(len(case), np.int64), cases)
