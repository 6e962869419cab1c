"""The bootstrap: cases drawn with replacement, and what an interval of a number is.

Axes: g groups (case, file, volume, patient), d draws.
"""

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

DRAWS = 2000
FEWEST_CASES = 50  # of fewer an interval is flagged: it is too narrow more often than it says
_MISSED = 0.05
_TOGETHER = 100  # draws at once; another number draws others

Key = TypeVar("Key", bound=Hashable)
Statistic = Callable[[np.ndarray], np.ndarray]  # of weights [d, g]: numbers [d], nan where they are not defined


def resamples(stratum_g: np.ndarray, draws: int = DRAWS, seed: int = 0) -> Iterator[np.ndarray]:
    """How often each group is drawn, float64 [100, g] at a time; of each stratum as many as it has."""
    random = np.random.default_rng(seed)
    strata = [np.flatnonzero(stratum_g == stratum) for stratum in np.unique(stratum_g)]
    for start in range(0, draws, _TOGETHER):
        count = min(_TOGETHER, draws - start)
        weight_dg = np.zeros((count, len(stratum_g)))
        for own in strata:
            drawn = random.integers(0, len(own), (count, len(own))) + len(own) * np.arange(count)[:, None]
            weight_dg[:, own] = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
        yield weight_dg


@dataclass(frozen=True)
class Estimate:
    """A number and its interval.

    Attributes:
        value: nan where it is not defined.
        low, high: of 95 %: percentiles 2.5 and 97.5 of the draws, or, of several trainings, Student's; nan where there
            are fewer than two groups.
        deviation: of the draws: how far other cases would move the number; of several trainings the standard error,
            of seeds and cases together.
        undefined: draws in which the number is not defined; they take no part.
        groups: how many groups were drawn.
    """

    value: float
    low: float
    high: float
    deviation: float
    undefined: int
    groups: int

    def as_json(self) -> dict[str, float | None]:
        """All of it; what is not defined is null."""
        return {name: value if math.isfinite(value) else None for name, value in vars(self).items()}

    def __str__(self) -> str:
        if not math.isfinite(self.value):
            return "not defined"
        interval = f"[{self.low:.3f}, {self.high:.3f}]" if math.isfinite(self.low) else "[no interval]"
        return f"{self.value:.3f} {interval}"


def bootstrap(
    statistics: Mapping[Key, Statistic], stratum_g: np.ndarray, draws: int = DRAWS, seed: int = 0
) -> dict[Key, Estimate]:
    """Every statistic of the groups, and its percentile interval; all are of the same draws.

    Args:
        statistics: by name; a function of how often each group counts.
        stratum_g: groups are drawn within strata; zeros for none.
    """
    drawn: dict[Key, list[np.ndarray]] = {name: [] for name in statistics}
    if len(stratum_g) > 1:
        for weight_dg in resamples(stratum_g, draws, seed):
            for name, statistic in statistics.items():
                drawn[name].append(statistic(weight_dg))
    whole = np.ones((1, len(stratum_g)))
    return {
        name: estimate(float(statistic(whole)[0]), np.concatenate([np.zeros(0), *drawn[name]]), len(stratum_g))
        for name, statistic in statistics.items()
    }


def drawn_numbers(
    statistics: Sequence[Statistic], stratum_g: np.ndarray, draws: int = DRAWS, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Several statistics of the same groups, float64 [s], and of the same draws of them, [draws, s].

    No group can be drawn otherwise where there is one: no draws.
    """
    whole = np.ones((1, len(stratum_g)))
    values = np.array([float(statistic(whole)[0]) for statistic in statistics])
    if len(stratum_g) < 2:
        return values, np.zeros((0, len(statistics)))
    weights = resamples(stratum_g, draws, seed)
    return values, np.concatenate([np.stack([one(w) for one in statistics], axis=1) for w in weights])


def changes(statistic: Statistic, groups: int) -> np.ndarray:
    """By how much a statistic changes where one group counts once more, float64 [g]."""
    whole = statistic(np.ones((1, groups)))[0]
    # All at once would take memory that grows with their square.
    starts = range(0, groups, _TOGETHER)
    weights = (1 + np.eye(min(_TOGETHER, groups - first), groups, first) for first in starts)
    return np.concatenate([np.zeros(0), *(statistic(weight_dg) - whole for weight_dg in weights)])


def estimate(value: float, drawn_d: np.ndarray, groups: int) -> Estimate:
    """The percentile interval of draws around a value."""
    defined = drawn_d[np.isfinite(drawn_d)]
    undefined = len(drawn_d) - len(defined)
    if not math.isfinite(value) or not len(defined):
        return Estimate(value, math.nan, math.nan, math.nan, undefined, groups)
    low, high = np.quantile(defined, [_MISSED / 2, 1 - _MISSED / 2])
    return Estimate(value, float(low), float(high), float(defined.std()), undefined, groups)


def mean_statistic(values_gc: np.ndarray) -> Statistic:
    """Mean over groups within a column, then over the columns that have a value; nan where a value is not defined.

    Args:
        values_gc: float64 [g, c], nan where a group has none.
    """
    finite = np.isfinite(values_gc)
    values, has = np.where(finite, values_gc, 0.0), finite.astype(np.float64)
    columns = finite.any(axis=0)

    def mean(weight_dg: np.ndarray) -> np.ndarray:
        if not columns.any():
            return np.full(len(weight_dg), np.nan)
        with np.errstate(invalid="ignore"):  # a draw without any case of a column
            of_columns = (weight_dg @ values[:, columns]) / (weight_dg @ has[:, columns])
        return of_columns.mean(axis=1)

    return mean
