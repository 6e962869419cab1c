"""A number of several trainings: what other seeds and cases would do to it, to a difference and to a mean over tasks.

With one training a model an interval is of draws of cases, their percentiles. With more it is Student's, as of
`dexcore.measures.effects`: the error that seeds make and that which cases make are added, each with its own degrees of
freedom, so that three seeds count as three. Percentiles of draws of three seeds would be much too narrow.

Axes: s trainings, g cases, d draws, t tasks, k clusters of tasks.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from dexcore.evaluate.scores.baselines import is_baseline
from dexcore.evaluate.scores.counted import Counted
from dexcore.evaluate.scores.score import Scores
from dexcore.measures.bootstrap import FEWEST_CASES, Estimate, Statistic, changes, drawn_numbers, estimate
from dexcore.measures.effects import interval_of, p_two_sided, stratified_freedom, welch

FEWEST_SEEDS = 5  # of fewer a flag is made
Part = tuple[float, float]  # of an error: its square, and its degrees of freedom


@dataclass(frozen=True, eq=False)
class Trainings:
    """A number of one model's trainings, on the same draws of the same cases.

    Attributes:
        statistics: of each training, of how often each case counts.
        values_s: on all cases.
        drawn_ds: on draws of them; [0, s] where there is one case.
        stratum_g: what cases were drawn within.
        seeds: of each; None where none is said.
        fixed: a baseline without a seed, of which another training would be the same number.
    """

    statistics: Sequence[Statistic]
    values_s: np.ndarray
    drawn_ds: np.ndarray
    stratum_g: np.ndarray
    seeds: tuple[int | None, ...]
    fixed: bool

    @classmethod
    def of(cls, scores: Sequence[Scores], cases: Sequence[str], metric: str, draws: int, seed: int) -> "Trainings":
        """Measure trainings on cases that all of them have."""
        made_of = [one.made_of.restrict(cases) for one in scores]
        stratum_g = made_of[0].strata(metric)
        statistics = [one.statistics()[metric] for one in made_of]
        drawn = drawn_numbers(statistics, stratum_g, draws, seed)
        return cls(statistics, *drawn, stratum_g, tuple(one.seed for one in scores), all(map(is_fixed, scores)))

    @property
    def several(self) -> bool:
        """Whether there is more than one."""
        return len(self.values_s) > 1

    @property
    def number(self) -> float:
        """The mean over trainings."""
        return float(self.values_s.mean())

    @property
    def drawn_d(self) -> np.ndarray:
        """The same on draws of cases."""
        return np.asarray(self.drawn_ds.mean(axis=1))

    def of_weights(self, weight_dg: np.ndarray) -> np.ndarray:
        """The same of how often each case counts."""
        return np.asarray(np.mean([one(weight_dg) for one in self.statistics], axis=0))

    @property
    def deviation_seeds(self) -> float:
        """Between trainings, of a sample; nan of one."""
        return float(self.values_s.std(ddof=1)) if self.several else np.nan

    @property
    def deviation_cases(self) -> float:
        """Of the mean over trainings, over draws of cases; nan where there are none."""
        return _deviation(self.drawn_d)


def is_fixed(one: Scores) -> bool:
    """Whether another training would be the same: of a baseline without a seed. Others may just not say theirs."""
    return one.seed is None and is_baseline(one.model)


def seed_flags(*sides: Sequence[Scores]) -> list[str]:
    """What a reader of several trainings a model must know; of one there is nothing.

    Args:
        sides: the trainings of each model.
    """
    fewest = min((len(side) for side in sides if len(side) > 1), default=FEWEST_SEEDS)
    flags = [f"few seeds: {fewest}, fewer than {FEWEST_SEEDS}"] if fewest < FEWEST_SEEDS else []
    for side in sides:
        name = f"{side[0].model}: " if len(sides) > 1 and side[0].model else ""
        flags += [f"{name}seeds {one.seed} and {other.seed} predict alike" for one, other in alike(side)]
    return list(dict.fromkeys(flags))


def alike(scores: Sequence[Scores]) -> list[tuple[Scores, Scores]]:
    """The pairs of trainings that predict the same: every image's counts, or every case's probabilities to the bit."""
    pairs = combinations(scores, 2)
    return [(one, other) for one, other in pairs if np.array_equal(_predicted(one), _predicted(other))]


def is_hard(one: Scores) -> bool:
    """Whether it holds decisions alone, masks or labels, in which different trainings may rightly agree."""
    return isinstance(one.made_of, Counted) or bool(np.isin(_predicted(one), (0, 1)).all())


def _predicted(one: Scores) -> np.ndarray:
    made_of = one.made_of
    return made_of.counts_ic if isinstance(made_of, Counted) else made_of.probability_nc


def estimated(number: Trainings) -> Estimate:
    """The mean of a model's trainings."""
    if not number.several:
        return estimate(number.number, number.drawn_d, len(number.stratum_g))
    parts = [*_of_seeds(number), _of_cases(number)]
    return _students(number.number, number.drawn_d, parts, len(number.stratum_g))[0]


def difference(a: Trainings, b: Trainings) -> tuple[Estimate, float]:
    """A minus B, on the same draws of the same cases, each with seeds of its own (Welch).

    Returns:
        It, and the p-value of Student's test, two-sided; nan with one training a side.
    """
    value, drawn_d, groups = a.number - b.number, a.drawn_d - b.drawn_d, len(a.stratum_g)
    if not (a.several or b.several):
        return estimate(value, drawn_d, groups), np.nan
    found, freedom = _students(value, drawn_d, [*_of_seeds(a, b), _of_cases(a, b)], groups)
    return found, p_two_sided(value, found.deviation, freedom)


def mean_over_tasks(tasks: Sequence[Trainings], cluster_t: Sequence[int]) -> tuple[Estimate, Estimate]:
    """The mean of a model's numbers over tasks: of these tasks, and of what tasks like them would make of it.

    The second is always Student's, for tasks are as few as seeds; it has no interval where there is one cluster. How
    tasks differ holds what cases and seeds do to each, and these are added once more: a little too wide.

    Seed N may be one pre-training on all tasks, which moves them together. So tasks of the same seeds have one error of
    seeds, that of the mean over them; where they are trained apart it is as large, of fewer degrees of freedom. Cases
    move the tasks of a cluster together: their errors are added rather than their squares.

    Args:
        tasks: of each task, their cases drawn apart.
        cluster_t: tasks of the same images have the same number.
    """
    values_t = np.array([one.number for one in tasks])
    value, count = float(values_t.mean()), len(tasks)
    drawn_d = np.mean([one.drawn_d for one in tasks], axis=0) if all(len(t.drawn_ds) for t in tasks) else np.zeros(0)
    number_t = np.unique(cluster_t, return_inverse=True)[1]
    cases = [(square / count**2, freedom) for square, freedom in map(_of_cases, tasks)]
    of_clusters = [_together([cases[t] for t in np.flatnonzero(number_t == k)]) for k in range(number_t.max() + 1)]
    parts = [*_of_common_seeds(tasks), *of_clusters]
    found = estimate(value, drawn_d, count)
    if any(one.several for one in tasks) or len(of_clusters) < count:
        found, _ = _students(value, drawn_d, parts, count)
    moved_k = np.bincount(number_t, (values_t - value) / count)
    if len(moved_k) < 2:
        return found, Estimate(value, np.nan, np.nan, np.nan, found.undefined, count)
    between = float(np.square(moved_k).sum()) * len(moved_k) / (len(moved_k) - 1)
    return found, _students(value, drawn_d, [*parts, (between, len(moved_k) - 1.0)], count)[0]


def flags_of_mean(model: str, tasks: Mapping[str, Trainings]) -> list[str]:
    """What a reader of a model's mean over tasks must know of its seeds.

    Args:
        model: its name.
        tasks: its trainings by task.
    """
    once = [task for task, one in tasks.items() if not (one.several or one.fixed)]
    if not once or not any(one.several for one in tasks.values()):
        return []
    return [f"the mean of {model} has no error of seeds for {', '.join(once)}: one training there, several elsewhere"]


def _students(value: float, drawn_d: np.ndarray, parts: Sequence[Part], groups: int) -> tuple[Estimate, float]:
    """A number and its interval, and the degrees of freedom of its error."""
    undefined = int((~np.isfinite(drawn_d)).sum())
    error, freedom = welch(parts) if undefined < len(drawn_d) and np.isfinite(value) else (np.nan, np.nan)
    return Estimate(value, *interval_of(value, error, freedom), error, undefined, groups), freedom


def _of_seeds(*sides: Trainings) -> Iterator[Part]:
    """What seeds do to a number or to a difference.

    A side that was trained once is taken to deviate as the other does; a fixed one does not.
    """
    alone = any(not side.several and not side.fixed for side in sides)
    for side in sides:
        if side.several:
            seeds = len(side.values_s)
            yield side.deviation_seeds**2 * (1 / seeds + alone), seeds - 1.0


def _of_common_seeds(tasks: Sequence[Trainings]) -> list[Part]:
    """What seeds do to a mean over tasks; where tasks share some seeds and not all, they move together at the worst."""
    moved_of: dict[frozenset[int | None], dict[int | None, float]] = {}
    for one in tasks:
        if one.several:
            moved = moved_of.setdefault(frozenset(one.seeds), dict.fromkeys(one.seeds, 0.0))
            for seed, value in zip(one.seeds, one.values_s.tolist(), strict=True):
                moved[seed] += value / len(tasks)
    parts = [(float(np.var([*moved.values()], ddof=1)) / len(moved), len(moved) - 1.0) for moved in moved_of.values()]
    shared = sum(map(len, moved_of)) > len(frozenset().union(*moved_of))
    return [_together(parts)] if shared else parts


def _together(parts: Sequence[Part]) -> Part:
    """The error of a sum of parts that depend on each other wholly: their errors' sum, as free as the least free."""
    there = [part for part in parts if part[0] != 0] or parts
    return sum(math.sqrt(square) for square, _ in there) ** 2, min(freedom for _, freedom in there)


def _of_cases(number: Trainings, minus: Trainings | None = None) -> Part:
    """What cases do to it: both sides are of the same ones."""
    stratum_g = number.stratum_g
    deviation = _deviation(number.drawn_d - (0.0 if minus is None else minus.drawn_d))
    counts = np.unique(stratum_g, return_counts=True)[1]
    fewest = int(counts[counts > 1].min(initial=len(stratum_g)))
    if len(counts) == 1 or fewest >= FEWEST_CASES:  # so many are enough: Student's is as good as normal
        return deviation**2, fewest - 1.0

    def whole(weight_dg: np.ndarray) -> np.ndarray:
        return number.of_weights(weight_dg) - (0.0 if minus is None else minus.of_weights(weight_dg))

    return deviation**2, stratified_freedom(changes(whole, len(stratum_g)), stratum_g)


def _deviation(drawn_d: np.ndarray) -> float:
    finite = drawn_d[np.isfinite(drawn_d)]
    return float(finite.std()) if len(finite) else np.nan
