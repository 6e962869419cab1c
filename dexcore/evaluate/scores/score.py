"""Saved predictions of a task become scores, each with its interval over cases.

Whatever the order of the predictions, and however they were batched or parted, the scores are the same to the bit:
images are sorted by their names first, and pixels are counted in whole numbers.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dexcore.evaluate.scores.classified import Classified
from dexcore.evaluate.scores.counted import PER_SLICE, SURFACES, Counted
from dexcore.evaluate.scores.predictions import Predictions, PredictionsError, read_mask
from dexcore.evaluate.tasks import Row, Task
from dexcore.evaluate.tasks.task import SplitName
from dexcore.files import write_whole
from dexcore.measures.bootstrap import DRAWS, FEWEST_CASES, Estimate, Statistic, bootstrap
from dexcore.measures.overlap import count_channels, count_classes
from dexcore.measures.surfaces import hausdorff_95, surface_dice
from dexcore.report.arrays import read_arrays, write_arrays

PROTOCOL = 1  # grows when a number would come out otherwise
SECONDARY = frozenset({PER_SLICE, *SURFACES})
_FORMAT = 1
_ABOUT = ("task", "fingerprint", "kind", "metric", "split", "model", "seed")
_SUM = 1e-3  # how far from 1 probabilities may add up: what float16 loses


@dataclass(frozen=True, eq=False)
class Scores:
    """What a task's predictions are worth.

    Attributes:
        task, fingerprint, kind, metric: of the task; ``metric`` names its primary number.
        split: that was scored.
        model, seed: as the predictions say.
        numbers: every score with its interval, by name; those in `SECONDARY` only stand beside the others.
        per_class: the same of each class alone.
        cases_of_class: how many there are of each kind.
        flags: what a reader of the numbers must know.
        made_of: what the numbers are computed from.
    """

    task: str
    fingerprint: str
    kind: str
    metric: str
    split: str
    model: str
    seed: int | None
    numbers: Mapping[str, Estimate]
    per_class: Mapping[str, Mapping[str, Estimate]]
    cases_of_class: Mapping[str, Mapping[str, int]]
    flags: tuple[str, ...]
    made_of: Counted | Classified

    @property
    def primary(self) -> Estimate:
        """The task's number."""
        return self.numbers[self.metric]

    def as_json(self) -> dict[str, Any]:
        """All but what the numbers are made of, as JSON holds it; numbers that are not defined are null."""
        return {
            "protocol": PROTOCOL,
            **{name: getattr(self, name) for name in _ABOUT},
            "cases": len(self.made_of.cases),
            "numbers": {name: _plain(number) for name, number in self.numbers.items()},
            "per_class": {
                name: {metric: _plain(number) for metric, number in numbers.items()}
                for name, numbers in self.per_class.items()
            },
            "cases_of_class": {name: dict(counts) for name, counts in self.cases_of_class.items()},
            "secondary": sorted(SECONDARY & set(self.numbers)),
            "flags": list(self.flags),
        }

    def lines(self) -> list[str]:
        """The scores for a terminal."""
        width = max(map(len, [*self.numbers, *self.per_class]))
        cases = len(self.made_of.cases)
        told = [f"task {self.task}, {self.split}: {cases} cases{f', {self.model}' if self.model else ''}"]
        for name in sorted(self.numbers, key=lambda name: (name != self.metric, name in SECONDARY)):
            number = self.numbers[name]
            mark = " (secondary)" if name in SECONDARY else ""
            undefined = f", not defined in {number.undefined} draws" if number.undefined else ""
            told.append(f"  {name:{width}}  {number}{mark}{undefined}")
        for name, numbers in self.per_class.items():
            of_class = "  ".join(f"{metric} {number}" for metric, number in numbers.items())
            counts = ", ".join(f"{count} {kind}" for kind, count in self.cases_of_class[name].items())
            told.append(f"  {name:{width}}  {of_class}  ({counts})")
        return [*told, *(f"  note: {flag}" for flag in self.flags)]

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write scores.json, to be read, and scores.npz, which `load` and `compare` read.

        Raises:
            OSError: they cannot be written.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        made_of = {
            name: np.array(value) if isinstance(value, tuple | str | int) else value
            for name, value in vars(self.made_of).items()
            if name in type(self.made_of).__dataclass_fields__
        }
        about = np.array(json.dumps(self.as_json()))
        write_arrays(folder / "scores.npz", _FORMAT, {"about": about, **made_of})
        write_whole(folder / "scores.json", (json.dumps(self.as_json(), indent=1) + "\n").encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Scores":
        """Read what `save` wrote into a folder, or its scores.npz.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged, or of another version.
        """
        path = Path(path)
        path = path / "scores.npz" if path.is_dir() else path
        _, arrays = read_arrays(path, (_FORMAT,), "scores")
        try:
            about = json.loads(str(arrays.pop("about")))
            if about["protocol"] != PROTOCOL:
                raise ValueError(f"{path}: of protocol {about['protocol']}, expected {PROTOCOL}: score again")
            kind = Counted if "counts_ic" in arrays else Classified
            given: dict[str, Any] = dict(arrays)
            for name in ("cases", "classes"):
                given[name] = tuple(map(str, given[name]))
            if kind is Classified:
                given |= {"kind": str(given["kind"]), "positive": int(given["positive"])}
            return cls(
                **{name: about[name] for name in _ABOUT},
                numbers=_estimates(about["numbers"]),
                per_class={name: _estimates(numbers) for name, numbers in about["per_class"].items()},
                cases_of_class=about["cases_of_class"],
                flags=tuple(about["flags"]),
                made_of=kind(**given),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path}: {error!r} is missing or not as expected") from error


def _plain(number: Estimate) -> dict[str, Any]:
    return {
        name: value if isinstance(value, int) or np.isfinite(value) else None for name, value in asdict(number).items()
    }


def _estimates(numbers: Mapping[str, Mapping[str, Any]]) -> dict[str, Estimate]:
    found = {}
    for name, number in numbers.items():
        given: dict[str, Any] = {field: np.nan if value is None else value for field, value in number.items()}
        found[name] = Estimate(**given)
    return found


def score(
    predictions: Predictions,
    task: Task,
    split: SplitName = "test",
    draws: int = DRAWS,
    seed: int = 0,
    partial: bool = False,
    tolerance: float | None = None,
) -> Scores:
    """Score predictions of a split: every image of it once, and no other.

    Args:
        predictions: logits, probabilities, masks or counts.
        task: that was predicted. Its test labels are read here and nowhere else.
        split: whose images are scored.
        draws: resamples of an interval.
        seed: of the resamples.
        partial: whether images may be missing; cases that lack one are then left out, and a flag says so.
        tolerance: of masks' outlines in mm: the surface Dice (NSD) and HD95 of every image are measured too, in the
            plane. Needs masks and the spacing of every image.

    Raises:
        PredictionsError: they are of another task, doubled, missing, not finite, of more classes than the task has, or
            a mask has another shape; the message names task, file and row.
        TaskError: a label or a mask of the task cannot be read.
    """
    _check(predictions, task)
    rows, places, left_out = _matched(predictions, task, split, partial)
    flags = _flags(task, rows, left_out)
    made_of: Counted | Classified
    if task.spec.is_segmentation:
        made_of = _counted(predictions, task, rows, places, tolerance)
    else:
        made_of, told = _classified(predictions, task, rows, places)
        flags += told
    return _measured(predictions, task, split, made_of, flags, draws, seed)


def _measured(
    predictions: Predictions,
    task: Task,
    split: str,
    made_of: Counted | Classified,
    flags: list[str],
    draws: int,
    seed: int,
) -> Scores:
    asked: dict[tuple[str, str], Statistic] = {("", name): one for name, one in made_of.statistics().items()}
    for name, of_class in made_of.class_statistics().items():
        asked |= {(name, metric): one for metric, one in of_class.items()}
    groups: dict[bytes, tuple[np.ndarray, dict[tuple[str, str], Statistic]]] = {}
    for key, one in asked.items():
        stratum_g = made_of.strata(key[1])
        groups.setdefault(stratum_g.tobytes(), (stratum_g, {}))[1][key] = one
    found: dict[tuple[str, str], Estimate] = {}
    for stratum_g, statistics in groups.values():
        found |= bootstrap(statistics, stratum_g, draws, seed)
    return Scores(
        task=task.name,
        fingerprint=task.fingerprint,
        kind=task.kind,
        metric=task.spec.metric,
        split=split,
        model=predictions.model,
        seed=predictions.seed,
        numbers={key[1]: found[key] for key in asked if not key[0]},
        per_class={
            name: {key[1]: found[key] for key in asked if key[0] == name} for name in made_of.class_statistics()
        },
        cases_of_class=made_of.numbers_of_cases(),
        flags=tuple(flags),
        made_of=made_of,
    )


def _check(predictions: Predictions, task: Task) -> None:
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


def _matched(predictions: Predictions, task: Task, split: SplitName, partial: bool) -> tuple[list[Row], list[int], int]:
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


def _flags(task: Task, rows: list[Row], left_out: int) -> list[str]:
    cases = len({row.case for row in rows})
    flags = []
    if cases < FEWEST_CASES:
        flags.append(f"few cases: intervals of {cases}, fewer than {FEWEST_CASES}, are not to be trusted")
    if task.spec.cases == "unknown":
        flags.append("images taken as independent: the table knows no cases, intervals are too narrow")
    if left_out:
        flags.append(f"partial: {left_out} cases are left out, they lack predictions")
    seen = sum(bool(row.seen) for row in rows)
    if seen:
        flags.append(f"seen in pre-training: {seen} of {len(rows)} images")
    return flags


def _unit(task: Task, row: Row) -> str:
    """What is scored as one."""
    named = {"case": row.case, "volume": row.volume or row.image, "image": row.image}
    return named[task.spec.unit]


def _indexed(names: list[Any]) -> tuple[list[Any], np.ndarray]:
    """The names, sorted, and the index of each among them."""
    different = sorted(set(names))
    places = {name: place for place, name in enumerate(different)}
    return different, np.array([places[name] for name in names], dtype=np.int64)


def _counted(
    predictions: Predictions, task: Task, rows: list[Row], places: list[int], tolerance: float | None
) -> Counted:
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
        predicted = read_mask(path, channels)
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


def _classified(
    predictions: Predictions, task: Task, rows: list[Row], places: list[int]
) -> tuple[Classified, list[str]]:
    """Cases with the mean probability of their images; the images themselves where a case has several labels."""
    probability = _probabilities(np.asarray(predictions.values)[places], predictions.kind, task.kind)
    labels = task.reference().labels(rows)
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
