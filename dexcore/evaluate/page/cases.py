"""The cases that a page shows: the worst and the median ones of a model, chosen by rule."""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

import numpy as np

from dexcore.evaluate.scores import Predictions, Scores
from dexcore.evaluate.scores.classified import Classified
from dexcore.evaluate.scores.score import LOWER_IS_BETTER
from dexcore.evaluate.tasks import Row, Task
from dexcore.report.evaluation_cases import Case

COUNT = 3  # of each kind: a row on a phone
PREDICTIONS = "predictions.parquet"
_PROBABILITIES = 3  # of a case that are told beside its label's


def chosen_cases(
    values: Mapping[str, float | None], count: int = COUNT, lower_is_better: bool = False
) -> tuple[list[str], list[str]]:
    """The names of the worst cases, and of those in the middle of all; of equal ones those whose names come first.

    Cases without a value take no part. No case is in both: of few the worst go first.

    Args:
        values: a number a case.
        count: of each.
        lower_is_better: of the numbers.
    """
    known = {name: float(value) for name, value in values.items() if value is not None}
    ordered = sorted(known, key=lambda name: (-known[name] if lower_is_better else known[name], name))
    count = min(count, -(-len(ordered) // 2))
    start = max(count, (len(ordered) - count) // 2)
    return ordered[:count], ordered[start : start + count]


def shown_cases(scores: Scores, task: Task, folder: Path) -> tuple[list[Case], str]:
    """The cases of a model with their pictures, or why there are none.

    Args:
        scores: of the model.
        task: the same.
        folder: of the scores; of masks the predictions lie there too.

    Raises:
        PredictionsError, TaskError: a mask or an image cannot be read, or is another one than was scored.
    """
    masks = not isinstance(scores.made_of, Classified)
    predicted: Predictions | None = None
    if masks:
        if not (folder / PREDICTIONS).is_file():
            return [], f"No pictures: {PREDICTIONS} does not lie beside the scores."
        predicted = Predictions.load(folder / PREDICTIONS)
        if predicted.kind != "mask":
            return [], f"No pictures: the predictions are {predicted.kind}, no masks."
    lower = masks and scores.metric in LOWER_IS_BETTER
    values = scores.case_values()
    worst, median = chosen_cases(values, lower_is_better=lower)
    value = scores.metric.replace("_", " ") if masks else "probability of the truth"
    rows = _rows_of_cases(task, scores.split, {*worst, *median})
    found = []
    for names, rule in ((worst, f"Worst: the {'highest' if lower else 'lowest'} {value}"), (median, f"Median {value}")):
        for name in names:
            if predicted is not None:
                found.append(_masked(scores, task, predicted, name, values[name] or 0.0, rows[name], rule))
            else:
                found.append(_classified(scores, task, name, rows[name], rule))
    return found, ""


def _rows_of_cases(task: Task, split: str, names: set[str]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in sorted(task.rows, key=lambda row: row.image):
        if row.split == split and row.case in names:
            found.setdefault(row.case, []).append(row)
    return found


def _masked(
    scores: Scores, task: Task, predicted: Predictions, case: str, value: float, rows: Sequence[Row], rule: str
) -> Case:
    """Of several images of a case the one whose reference is largest; without any, whose prediction is."""
    reference = task.reference()
    channels = len(task.classes) if task.kind == "multilabel_segmentation" else None
    place = {image: number for number, image in enumerate(predicted.image)}
    rows = [row for row in rows if row.image in place]

    def both(row: Row) -> tuple[np.ndarray, np.ndarray]:
        masks = reference.mask(row), predicted.mask(place[row.image], channels)
        return _channels(task, masks[0]), _channels(task, masks[1])

    best = rows[0] if len(rows) == 1 else max(rows, key=lambda row: tuple(int(mask.sum()) for mask in both(row)))
    lines = (f"{scores.metric.replace('_', ' ')} {value:.3f}", _named(case, best, len(rows)))
    return Case(case, rule, lines, task.image(best), *both(best))


def _channels(task: Task, mask: np.ndarray) -> np.ndarray:
    """Bool [classes, height, width], without the background."""
    if mask.ndim == 3:
        return mask
    return np.stack([mask == number for number in range(1, len(task.classes))])


def mask_classes(task: Task) -> tuple[str, ...]:
    """The classes of what `shown_cases` gives; none of a classification."""
    if not task.spec.is_segmentation:
        return ()
    return task.classes if task.kind == "multilabel_segmentation" else task.classes[1:]


def _classified(scores: Scores, task: Task, case: str, rows: Sequence[Row], rule: str) -> Case:
    """Of several images of a case the first; where each was scored alone, the one that is furthest off."""
    made_of = scores.made_of
    assert isinstance(made_of, Classified)
    items = np.flatnonzero(made_of.case_n == made_of.cases.index(case))
    truth = np.where(made_of.target_nc, made_of.probability_nc, 1 - made_of.probability_nc).mean(axis=1)
    if not made_of.multilabel:
        truth = made_of.probability_nc[np.arange(len(truth)), made_of.label_n]
    item = int(items[truth[items].argmin()])
    row = rows[items.tolist().index(item)] if len(items) == len(rows) else rows[0]
    label = [name for name, has in zip(made_of.classes, made_of.target_nc[item], strict=True) if has]
    order = np.argsort(-made_of.probability_nc[item], kind="stable")[:_PROBABILITIES]
    told = [f"{made_of.classes[number]} {made_of.probability_nc[item, number]:.2f}" for number in order]
    lines = (f"label: {', '.join(label) or 'none'}", "predicted: " + ", ".join(told), _named(case, row, len(rows)))
    return Case(case, rule, lines, task.image(row))


def _named(case: str, row: Row, images: int) -> str:
    """The case and, where it has several images, which one this is; of paths the last part."""
    if images == 1:
        return PurePath(case).name
    return f"{PurePath(case).name}: {PurePath(row.image).name}, 1 of {images} images"
