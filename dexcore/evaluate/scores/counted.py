"""Segmentation: the counts of a test split's images, and every score of its cases as arithmetic on them.

Axes: i images, u units (what is scored as one: a case, a volume or an image), g cases, c classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from dexcore.measures.bootstrap import Statistic, mean_statistic
from dexcore.measures.overlap import dice, dice_kaggle, dice_present, false_alarm, iou
from dexcore.measures.ratio import ratio

RULES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "dice": dice,
    "iou": iou,
    "dice_present": dice_present,
    "dice_kaggle": dice_kaggle,
    "false_alarm": false_alarm,
}
PER_SLICE = "dice_per_slice"  # secondary: slices of a volume are not independent, and most are empty
SURFACES = ("nsd_2d", "hd95_2d")  # secondary: of outlines in the plane, an image each


@dataclass(frozen=True, eq=False)
class Counted:
    """What every number of a segmentation is made of; images in the order of their names.

    Attributes:
        cases: names of the cases, sorted.
        classes: those that are scored: all but the background.
        counts_ic: int64 [i, c, 5].
        unit_i: index of each image's unit.
        case_u: index of each unit's case.
        weight_u: of the unit in its case's mean.
        surface_ic: NSD and HD95 in mm, float64 [i, c, 2]; [0, c, 2] where they were not asked for.
    """

    cases: tuple[str, ...]
    classes: tuple[str, ...]
    counts_ic: np.ndarray
    unit_i: np.ndarray
    case_u: np.ndarray
    weight_u: np.ndarray
    surface_ic: np.ndarray

    @cached_property
    def counts_uc(self) -> np.ndarray:
        """The sums of a unit's images, int64 [u, c, 5]."""
        total = np.zeros((len(self.case_u), *self.counts_ic.shape[1:]), dtype=np.int64)
        np.add.at(total, self.unit_i, self.counts_ic)
        return total

    @property
    def pooled(self) -> bool:
        """Whether a unit has several images."""
        return len(self.case_u) < len(self.unit_i)

    def of_cases(self, metric: str) -> np.ndarray:
        """A score of every case, float64 [g, c]: the mean of its units, or images, that have one."""
        if metric == PER_SLICE:
            return self._of_images(dice(self.counts_ic))
        if metric in SURFACES:
            return self._of_images(self.surface_ic[..., SURFACES.index(metric)])
        return self._mean(RULES[metric](self.counts_uc), self.case_u, self.weight_u)

    def _mean(self, values: np.ndarray, case: np.ndarray, weight: np.ndarray) -> np.ndarray:
        finite = np.isfinite(values)
        total, of = np.zeros((2, len(self.cases), values.shape[1]))
        np.add.at(total, case, np.where(finite, values, 0) * weight[:, None])
        np.add.at(of, case, finite * weight[:, None])
        return ratio(total, of)

    def statistics(self) -> dict[str, Statistic]:
        """Of the whole: the mean over cases within class, then over the classes with a case that has a score."""
        asked = [*RULES, *([PER_SLICE] if self.pooled else []), *(SURFACES if len(self.surface_ic) else [])]
        return {metric: mean_statistic(self.of_cases(metric)) for metric in asked}

    def _of_images(self, values_ic: np.ndarray) -> np.ndarray:
        """The mean over each case's images, float64 [g, c]."""
        case_i = self.case_u[self.unit_i]
        return self._mean(values_ic, case_i, np.ones(len(case_i)))

    def class_statistics(self) -> dict[str, dict[str, Statistic]]:
        """The same, of each class alone."""
        of_cases = {rule: self.of_cases(rule) for rule in RULES}
        return {
            name: {rule: mean_statistic(values[:, [number]]) for rule, values in of_cases.items()}
            for number, name in enumerate(self.classes)
        }

    def strata(self, metric: str) -> np.ndarray:
        """Cases are drawn from all."""
        return np.zeros(len(self.cases), dtype=np.int64)

    def case_value(self, metric: str) -> np.ndarray:
        """One number a case, float64 [g]: the mean of its classes that have one."""
        values = self.of_cases(metric)
        finite = np.isfinite(values)
        count = finite.sum(axis=1)
        total = np.where(finite, values, 0).sum(axis=1)
        return ratio(total, count)

    def details(self) -> dict[str, Any]:
        """What pictures are drawn of: the Dice of every case and class, null where it has none."""
        values = self.of_cases("dice")
        return {
            "dice_of_cases": {
                case: [None if np.isnan(value) else value for value in row]
                for case, row in zip(self.cases, values.tolist(), strict=True)
            }
        }

    def numbers_of_cases(self) -> dict[str, dict[str, int]]:
        """How many units of each class have a reference, how many none, and how many a prediction."""
        has = self.counts_uc[..., 3:] > 0
        return {
            name: {
                "present": int(has[:, number, 0].sum()),
                "empty": int((~has[:, number, 0]).sum()),
                "predicted": int(has[:, number, 1].sum()),
            }
            for number, name in enumerate(self.classes)
        }

    def restrict(self, cases: Sequence[str]) -> "Counted":
        """The same of some cases, which are sorted."""
        places = {name: place for place, name in enumerate(cases)}
        new_g = np.array([places.get(name, -1) for name in self.cases])
        unit = new_g[self.case_u] >= 0
        new_u = np.cumsum(unit) - 1
        image = unit[self.unit_i]
        return replace(
            self,
            cases=tuple(cases),
            counts_ic=self.counts_ic[image],
            unit_i=new_u[self.unit_i[image]],
            case_u=new_g[self.case_u[unit]],
            weight_u=self.weight_u[unit],
            surface_ic=self.surface_ic[image] if len(self.surface_ic) else self.surface_ic,
        )
