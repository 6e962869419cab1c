"""Saved predictions of a task become scores, each with its interval over cases.

Whatever the order of the predictions, and however they were batched or parted, the scores are the same to the bit:
images are sorted by their names first, and pixels are counted in whole numbers.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dexcore.evaluate.scores.classified import Classified
from dexcore.evaluate.scores.counted import PER_SLICE, SURFACES, Counted
from dexcore.evaluate.scores.gather import check, classified, counted, matched
from dexcore.evaluate.scores.predictions import Predictions
from dexcore.evaluate.scores.saved import load_numbers, save_numbers
from dexcore.evaluate.tasks import Row, Task
from dexcore.evaluate.tasks.table import SplitName
from dexcore.measures.bootstrap import DRAWS, FEWEST_CASES, Estimate, Statistic, bootstrap

PROTOCOL = 1  # grows when a number would come out otherwise
SECONDARY = frozenset({PER_SLICE, *SURFACES})
LOWER_IS_BETTER = frozenset({"brier", "ece", "false_alarm", "hd95_2d"})  # of all others more is better
FILE = "scores"
_ABOUT = ("task", "fingerprint", "kind", "metric", "split", "model", "seed")


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

    def case_values(self) -> dict[str, float | None]:
        """One number a case, by name: its Dice (or the task's metric), or the probability given to its true class.

        null where it has none.
        """
        values = self.made_of.case_value(self.metric).tolist()
        return {
            case: None if np.isnan(value) else value for case, value in zip(self.made_of.cases, values, strict=True)
        }

    def as_json(self) -> dict[str, Any]:
        """All but what the numbers are made of, as JSON holds it; numbers that are not defined are null."""
        return {
            "protocol": PROTOCOL,
            **{name: getattr(self, name) for name in _ABOUT},
            "cases": len(self.made_of.cases),
            "numbers": {name: number.as_json() for name, number in self.numbers.items()},
            "per_class": {
                name: {metric: number.as_json() for metric, number in numbers.items()}
                for name, numbers in self.per_class.items()
            },
            "cases_of_class": {name: dict(counts) for name, counts in self.cases_of_class.items()},
            "case_values": self.case_values(),
            **self.made_of.details(),
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
            undefined = (
                f", not defined in {number.undefined} draws" if number.undefined and np.isfinite(number.value) else ""
            )
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
        made_of = {
            name: np.array(value) if isinstance(value, tuple | str | int) else value
            for name, value in vars(self.made_of).items()
            if name in type(self.made_of).__dataclass_fields__
        }
        save_numbers(folder, FILE, self.as_json(), made_of)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Scores":
        """Read what `save` wrote into a folder, or its scores.npz.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged, or of another version.
        """
        path, about, arrays = load_numbers(path, FILE, "scores")
        try:
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
    check(predictions, task)
    rows, places, left_out = matched(predictions, task, split, partial)
    flags = flags_of(task, rows, left_out)
    made_of: Counted | Classified
    if task.spec.is_segmentation:
        made_of = counted(predictions, task, rows, places, tolerance)
    else:
        made_of, told = classified(predictions, task, rows, places)
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


def flags_of(task: Task, rows: Sequence[Row], left_out: int = 0) -> list[str]:
    """What a reader of numbers of these images must know; ``left_out`` cases lack predictions."""
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
