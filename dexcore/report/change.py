"""What training changed: a measure of the trained model minus that of the model before its first step.

Both are measured on the same images. The interval says how much of the difference other files, volumes and patients of
the same modalities could make (a paired bootstrap): whole groups are drawn with replacement within their modality, the
same ones for both models, and the difference is taken of each draw. Where several differences are read together (the
blocks of a model), each interval is widened so that all of them hold at once in 95 % of cases (Bonferroni).

Axes: n images, g groups (file, volume, patient), m modalities, r experts, d draws.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dexcore.measures.bootstrap import DRAWS, resamples
from dexcore.measures.information import drawn_information, gate_mass
from dexcore.measures.neighbors import Neighbors
from dexcore.report.evaluation import Evaluation
from dexcore.report.specialization import Specialization

FEWEST_GROUPS = 10  # of fewer no interval is made
NEGLIGIBLE = 0.01  # of a share or of normalized mutual information: surely there, and still nothing
_MISSED = 0.05
INTERVAL = (  # for captions
    f"the interval in brackets is of {DRAWS:,} draws of whole files, volumes and patients within their modality, the "
    "same for both models, and holds for all differences of its kind together in 95 % of cases."
)


@dataclass(frozen=True)
class Change:
    """The trained model's value minus the one at step 0.

    Attributes:
        value: the difference; nan where either does not exist.
        low, high: its interval; nan where there are fewer than `FEWEST_GROUPS` groups, or most modalities have one.
    """

    value: float
    low: float
    high: float

    @property
    def rose(self) -> bool:
        """Whether other files would say so too; nan says nothing."""
        return self.value > NEGLIGIBLE and self.low > 0

    @property
    def fell(self) -> bool:
        """Whether other files would say so too; nan says nothing."""
        return self.value < -NEGLIGIBLE and self.high < 0

    def told(self, percent: bool = False) -> str:
        """The difference and its interval: "+0.21 [0.15, 0.28]"; "" where there is none."""
        if not math.isfinite(self.value):
            return ""
        scale, digits = (100, 0) if percent else (1, 2)
        value, low, high = (round(scale * x, digits) + 0.0 if math.isfinite(x) else x for x in
                            (self.value, self.low, self.high))  # fmt: skip
        interval = f" [{low:.{digits}f}, {high:.{digits}f}]" if math.isfinite(low) else " [too few files]"
        return f"{value:+.{digits}f}{interval}"


def variance_change(trained: Evaluation, before: Evaluation, chosen_n: np.ndarray, tests: int = 1) -> Change:
    """Of the share of variance explained, mean over modalities, on the images ``chosen_n``; bool [n].

    Args:
        tests: how many differences are read together.
    """
    group_modality, group_n = trained.groups(chosen_n)
    sums_g = [np.bincount(group_n, one.squared_error[chosen_n], len(group_modality)) for one in (trained, before)]
    total_g = np.bincount(group_n, trained.total[chosen_n], len(group_modality))

    def explained_more(weight_dg: np.ndarray) -> np.ndarray:
        difference_dg = weight_dg * (sums_g[1] - sums_g[0])
        found = []
        for modality in np.unique(group_modality):
            own = group_modality == modality
            with np.errstate(divide="ignore", invalid="ignore"):
                found.append(difference_dg[:, own].sum(axis=1) / (weight_dg[:, own] @ total_g[own]))
        return np.mean(found, axis=0) if found else np.full(len(weight_dg), np.nan)

    return _change(explained_more, group_modality, tests)


def specialization_changes(
    trained: Evaluation,
    before: Evaluation,
    trained_blocks: tuple[Specialization, ...],
    before_blocks: tuple[Specialization, ...],
) -> tuple[Change, ...]:
    """Of every block's mutual information minus the mean of its null."""
    group_modality, group_n = trained.groups()
    found = []
    for number, blocks in enumerate(zip(trained_blocks, before_blocks, strict=True)):
        masses = [gate_mass(one.gates[number], group_n, len(group_modality)) for one in (trained, before)]

        def more(weight_dg: np.ndarray, masses: list[np.ndarray] = masses) -> np.ndarray:
            now, then = (drawn_information(weight_dg, mass_gr, group_modality) for mass_gr in masses)
            return now - then

        now, then = (block.nmi - block.null_mean for block in blocks)
        found.append(_change(more, group_modality, len(trained_blocks), now - then))
    return tuple(found)


def neighbor_change(
    evaluation: Evaluation, label_n: np.ndarray, trained: Neighbors, before: Neighbors, tests: int = 1
) -> Change:
    """Of the share of images, classes weighing the same, whose neighbors name their class.

    The images asked about are drawn; who their neighbors are stays as it is.
    """
    gained_n = trained.right_n - before.right_n
    asked = np.isfinite(gained_n)
    group_modality, group_n = evaluation.groups(asked)
    classes = np.unique(label_n[asked])

    def gained(weight_dg: np.ndarray) -> np.ndarray:
        found = []
        for one in classes:
            own = label_n[asked] == one
            count_g = np.bincount(group_n[own], minlength=len(group_modality))
            sum_g = np.bincount(group_n[own], gained_n[asked][own], len(group_modality))
            with np.errstate(divide="ignore", invalid="ignore"):
                found.append((weight_dg @ sum_g) / (weight_dg @ count_g))  # nan in a draw without the class
        return np.nanmean(found, axis=0) if found else np.full(len(weight_dg), np.nan)

    return _change(gained, group_modality, tests)


def _change(
    difference: Callable[[np.ndarray], np.ndarray],
    group_modality: np.ndarray,
    tests: int,
    value: float | None = None,
) -> Change:
    """The ``difference`` of groups with weights [d, g], and its interval around ``value`` (default: of all groups).

    The draws' own mean is subtracted: a resampled measure of information is too large, as any of few images is.
    """
    if value is None:
        value = float(difference(np.ones((1, len(group_modality))))[0])
    _, sizes = np.unique(group_modality, return_counts=True)
    if not math.isfinite(value) or len(group_modality) < FEWEST_GROUPS or 2 * (sizes > 1).sum() < len(sizes):
        return Change(value, math.nan, math.nan)
    drawn = np.concatenate([difference(weight_dg) for weight_dg in resamples(group_modality)])
    tail = _MISSED / tests / 2
    low, high = np.quantile(drawn - drawn.mean(), [tail, 1 - tail])
    return Change(value, value + float(low), value + float(high))
