"""Predictions and the references they are held against: checked, put side by side in the order of the images' names."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dexcore.evaluate.scores.classified import Classified
from dexcore.evaluate.scores.counted import Counted
from dexcore.evaluate.scores.predictions import Predictions, PredictionsError
from dexcore.evaluate.tasks import Row, Task
from dexcore.evaluate.tasks.table import SplitName
from dexcore.measures.overlap import count_channels, count_classes
from dexcore.measures.surfaces import hausdorff_95, surface_dice

_SUM = 1e-3  # how far from 1 probabilities may add up: what float16 loses


def check(predictions: Predictions, task: Task) -> None:
    """Refuse predictions of another task, of other classes, or that are no numbers of their kind."""
    prefix = f"task {task.name}: {_file(predictions)}"
    if predictions.fingerprint != task.fingerprint:
        raise PredictionsError(
            f"{prefix}was predicted for another task or another state of it: fingerprint "
            f"{predictions.fingerprint[:12] or 'none'}, the task's is {task.fingerprint[:12]}"
        )
    if predictions.classes != task.classes:
        raise PredictionsError(
            f"{prefix}has {len(predictions.classes)} classes ({', '.join(predictions.classes)}), the task has "
            f"{len(task.classes)} ({', '.join(task.classes)})"
        )
    suited = ("mask", "counts") if task.spec.is_segmentation else ("logits", "probabilities")
    if predictions.kind not in suited:
        raise PredictionsError(f"{prefix}holds {predictions.kind}, a {task.kind} is scored from {' or '.join(suited)}")
    if predictions.kind == "mask":
        return
    values = np.asarray(predictions.values)
    wrong = ~np.isfinite(values.reshape(len(values), -1)).all(axis=1)
    expected = "finite numbers"
    if not wrong.any() and predictions.kind == "probabilities":
        wrong, expected = ((values < 0) | (values > 1)).any(axis=1), "probabilities from 0 to 1"
        if not wrong.any() and task.kind != "multilabel":
            wrong, expected = np.abs(values.sum(axis=1, dtype=np.float64) - 1) > _SUM, "probabilities that add up to 1"
    if not wrong.any() and predictions.kind == "counts":
        tp, fp, fn, n_ref, n_pred = np.moveaxis(values, -1, 0)
        fits = (values >= 0).all(axis=(1, 2)) & ((tp + fn == n_ref) & (tp + fp == n_pred)).all(axis=1)
        wrong, expected = ~fits, "counts with tp + fn and tp + fp as the pixels of reference and prediction"
    if wrong.any():
        row = int(np.argmax(wrong))
        raise PredictionsError(
            f"task {task.name}: {predictions.place[row]}: {predictions.image[row]} has {values[row].ravel().tolist()}, "
            f"expected {expected}"
        )


def _file(predictions: Predictions) -> str:
    first = predictions.place[0] if predictions.place else ""
    return f"{first.rsplit(', row', 1)[0]} " if ", row" in first else ""


def matched(predictions: Predictions, task: Task, split: SplitName, partial: bool) -> tuple[list[Row], list[int], int]:
    """The split's rows by the name of their image, where each was predicted, and how many cases lack one."""
    rows = {row.image: row for row in sorted(task.split(split), key=lambda row: row.image)}
    if not rows:
        raise PredictionsError(f"task {task.name}: has no image of split {split}, there is nothing to score")
    others = {row.image: row.split for row in task.rows if row.split != split}
    found: dict[str, int] = {}
    for place, image in enumerate(predictions.image):
        where = f"task {task.name}: {predictions.place[place]}: {image}"
        if image in others:
            raise PredictionsError(f"{where} is of split {others[image]}, expected {split}")
        if image not in rows:
            raise PredictionsError(f"{where} is no image of the task")
        if image in found:
            raise PredictionsError(f"{where} was predicted twice, in {predictions.place[found[image]]} too")
        found[image] = place
    missing = [row for row in rows.values() if row.image not in found]
    if missing and not partial:
        raise PredictionsError(
            f"task {task.name}: {_file(predictions)}lacks {len(missing)} of {len(rows)} images of split {split}, as "
            f"{missing[0].image} ({task.spec.table}, line {missing[0].line})"
        )
    lacking = {row.case for row in missing}
    kept = [row for row in rows.values() if row.case not in lacking]
    if not kept:
        raise PredictionsError(f"task {task.name}: {_file(predictions)}has no case of split {split} whole")
    return kept, [found[row.image] for row in kept], len(lacking)


def _unit(task: Task, row: Row) -> str:
    """What is scored as one."""
    named = {"case": row.case, "volume": row.volume or row.image, "image": row.image}
    return named[task.spec.unit]


def _indexed(names: list[Any]) -> tuple[list[Any], np.ndarray]:
    """The names, sorted, and the index of each among them."""
    different = sorted(set(names))
    places = {name: place for place, name in enumerate(different)}
    return different, np.array([places[name] for name in names], dtype=np.int64)


def counted(
    predictions: Predictions, task: Task, rows: list[Row], places: list[int], tolerance: float | None
) -> Counted:
    """The counts of every image, and its outlines where a tolerance in mm is given."""
    first = 0 if task.kind == "multilabel_segmentation" else 1  # the background is what is left
    surfaces = np.zeros((0, len(task.classes), 2))
    if predictions.kind == "counts":
        if tolerance is not None:
            raise PredictionsError(f"task {task.name}: {_file(predictions)}holds counts, outlines need masks")
        counts = np.asarray(predictions.values, dtype=np.int64)[places]
    else:
        compared = [_compare(predictions, task, row, place, tolerance) for row, place in zip(rows, places, strict=True)]
        counts = np.stack([one for one, _ in compared])
        if tolerance is not None:
            surfaces = np.stack([one for _, one in compared])
    units, unit_i = _indexed([(row.case, _unit(task, row)) for row in rows])
    cases, case_u = _indexed([case for case, _ in units])
    weight = np.bincount(unit_i, [row.weight for row in rows]) / np.bincount(unit_i)
    return Counted(tuple(cases), task.classes[first:], counts[:, first:], unit_i, case_u, weight, surfaces[:, first:])


def _compare(
    predictions: Predictions, task: Task, row: Row, place: int, tolerance: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """The counts of an image's classes [c, 5], and NSD and HD95 of each, [c, 2], where they are asked for."""
    reference = task.reference().mask(row)
    path = str(predictions.values[place])
    channels = len(task.classes) if task.kind == "multilabel_segmentation" else None
    where = f"task {task.name}: {predictions.place[place]}: "
    try:
        predicted = predictions.mask(place, channels)
        if channels is not None:
            counts = count_channels(reference, predicted)
        else:
            counts = count_classes(reference, predicted, len(task.classes), task.spec.ignore)
    except PredictionsError as error:
        raise PredictionsError(f"{where}{error}") from error
    except ValueError as error:
        raise PredictionsError(f"{where}{path}, of {row.image}: {error}") from error
    if tolerance is None:
        return counts, np.zeros((0, 2))
    spacing = task.spacing(row)
    if spacing is None:
        raise PredictionsError(
            f"task {task.name}: {task.spec.table}, line {row.line}: no spacing is known of {row.image}, "
            "mm cannot be measured: expected spacing_y and spacing_x"
        )
    if channels is None:
        counted = np.ones(reference.shape, bool) if task.spec.ignore is None else reference != task.spec.ignore
        reference, predicted = (
            np.stack([(mask == number) & counted for number in range(len(task.classes))])
            for mask in (reference, predicted)
        )
    pairs = zip(reference, predicted, strict=True)
    return counts, np.array([[surface_dice(*pair, spacing, tolerance), hausdorff_95(*pair, spacing)] for pair in pairs])


def classified(
    predictions: Predictions, task: Task, rows: list[Row], places: list[int]
) -> tuple[Classified, list[str]]:
    """What `classified_of` makes of predictions."""
    probability = _probabilities(np.asarray(predictions.values)[places], predictions.kind, task.kind)
    return classified_of(task, rows, task.reference().labels(rows), probability)


def classified_of(
    task: Task, rows: Sequence[Row], labels: np.ndarray, probability: np.ndarray
) -> tuple[Classified, list[str]]:
    """Cases with the mean probability of their images; the images themselves where a case has several labels.

    Args:
        task: that was predicted.
        rows: of it.
        labels: theirs, as `Task.labels` gives them.
        probability: float64 [rows, classes].
    """
    target = labels if labels.ndim == 2 else np.eye(len(task.classes), dtype=bool)[labels]
    flags = []
    units, unit_i = _indexed([(row.case, _unit(task, row)) for row in rows])
    first = np.unique(unit_i, return_index=True)[1]
    if (target != target[first[unit_i]]).any():
        flags.append("the images of a case differ in their label: images are scored, whole cases are drawn")
        units, unit_i = _indexed([(row.case, row.image) for row in rows])
        first = np.unique(unit_i, return_index=True)[1]
    weight = np.array([row.weight for row in rows])
    total = np.zeros((len(units), len(task.classes)))
    np.add.at(total, unit_i, probability * weight[:, None])
    mean = total / np.bincount(unit_i, weight)[:, None]
    cases, case_n = _indexed([case for case, _ in units])
    positive = task.classes.index(task.spec.positive) if task.spec.positive else min(1, len(task.classes) - 1)
    found = Classified(tuple(cases), task.classes, task.kind, mean, target[first], case_n, positive)
    absent = [name for name, has in zip(task.classes, found.found_c, strict=True) if not has]
    if absent:
        flags.append(f"no case of {', '.join(absent)}: the means are over the other classes")
    return found, flags


def _probabilities(values: np.ndarray, kind: str, task_kind: str) -> np.ndarray:
    values = values.astype(np.float64)
    if kind == "probabilities":
        return values
    if task_kind == "multilabel":
        return 1 / (1 + np.exp(-np.clip(values, -700, 700)))
    raised = np.exp(values - values.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)
