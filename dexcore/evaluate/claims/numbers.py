"""Numbers of one trained model, each with its draws of cases: what effects are made of, and how they are kept."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dexcore.measures.bootstrap import Statistic, changes, drawn_numbers
from dexcore.measures.effects import stratified_freedom
from dexcore.report.arrays import read_arrays, write_arrays

DRAWS = 1000
_FORMAT = 3
_ARRAYS = ("drawn_d", "changed_g", "stratum_g")


@dataclass(frozen=True, eq=False)
class Number:
    """A number of a model.

    Attributes:
        value: on all cases; nan where it is not defined.
        drawn_d: on draws of cases, float64 [d]; empty where cases were not drawn. Of two models that were measured on
            the same cases, draw number i is of the same cases.
        groups: cases; of several sets the fewest.
        changed_g: by how much it changes where one case counts once more, float64 [g]; of several sets, of the cases
            of all; empty where that is not known.
        stratum_g: int64 [g], what each case was drawn within (a modality, a class).
    """

    value: float
    drawn_d: np.ndarray
    groups: int
    changed_g: np.ndarray = field(default_factory=lambda: np.zeros(0))
    stratum_g: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    @property
    def fewest(self) -> int:
        """Cases of the smallest stratum; all where strata are not known."""
        counts = np.unique(self.stratum_g, return_counts=True)[1]
        return int(counts.min()) if len(counts) else self.groups

    @classmethod
    def of(cls, statistic: Statistic, stratum_g: np.ndarray, cases: str = "") -> "Number":
        """Measure on all groups and on draws of them.

        Args:
            statistic: of how often each group counts.
            stratum_g: groups are drawn within strata.
            cases: what the set is called: another is drawn otherwise, even where it is as large.
        """
        values, drawn_ds = drawn_numbers([statistic], stratum_g, DRAWS, seed=zlib.crc32(cases.encode()))
        groups = len(stratum_g)
        changed_g = changes(statistic, groups)
        return cls(float(values[0]), drawn_ds[:, 0], groups, changed_g, np.asarray(stratum_g, np.int64))

    @classmethod
    def plain(cls, value: float, groups: int = 0) -> "Number":
        """One whose cases were not drawn."""
        return cls(value, np.zeros(0), groups)


def mean_number(numbers: Sequence[Number]) -> Number:
    """The mean of numbers of several sets of cases, which were drawn apart."""
    drawn = [one.drawn_d for one in numbers]
    known = all(len(one) == len(drawn[0]) for one in drawn)
    return Number(
        float(np.mean([one.value for one in numbers])),
        np.mean(drawn, axis=0) if known else np.zeros(0),
        min(one.groups for one in numbers),
        *_cases_of_all(numbers),
    )


def _cases_of_all(numbers: Sequence[Number]) -> tuple[np.ndarray, np.ndarray]:
    """``changed_g`` and ``stratum_g`` of a mean: strata of different sets are different."""
    if not all(len(one.changed_g) for one in numbers):
        return np.zeros(0), np.zeros(0, dtype=np.int64)
    strata, known = [], 0
    for one in numbers:
        own = np.unique(one.stratum_g, return_inverse=True)[1]
        strata.append(known + own)
        known += int(own.max()) + 1
    return np.concatenate([one.changed_g for one in numbers]) / len(numbers), np.concatenate(strata)


def freedom_of(terms: Sequence[tuple[float, Number]]) -> float:
    """Degrees of freedom over cases of a signed sum of numbers of the same cases.

    What its numbers have in common cancels: where that is most of what a large stratum varies by, a small one may carry
    the sum's variance, and the freedom is less than any number's own. One less than there are cases where it is not
    known how the numbers change.
    """
    (_, first), *_ = terms
    if not all(len(one.changed_g) == len(first.stratum_g) > 0 for _, one in terms):
        return max(min(one.groups for _, one in terms) - 1.0, 0.0)
    changed_g = np.sum([sign * one.changed_g for sign, one in terms], axis=0)
    return stratified_freedom(changed_g, first.stratum_g)


@dataclass(frozen=True, eq=False)
class Measured:
    """Numbers of a model by name, and what a reader of them must know."""

    numbers: Mapping[str, Number]
    flags: tuple[str, ...] = ()

    def save(self, path: Path) -> None:
        """Write them, whole or not at all.

        Raises:
            OSError: the file cannot be written.
        """
        arrays = {"names": np.array(list(self.numbers), dtype=np.str_), "flags": np.array(self.flags, dtype=np.str_)}
        for place, number in enumerate(self.numbers.values()):
            arrays[f"value_{place}"] = np.array([number.value, number.groups], dtype=np.float64)
            for name in _ARRAYS:
                arrays[f"{name}_{place}"] = getattr(number, name)
        write_arrays(path, _FORMAT, arrays)

    @classmethod
    def load(cls, path: Path) -> "Measured":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged, or of another version.
        """
        _, arrays = read_arrays(path, (_FORMAT,), "numbers of a model")
        try:
            return cls(
                {
                    str(name): Number(
                        float(value), groups=int(groups), **{array: arrays[f"{array}_{place}"] for array in _ARRAYS}
                    )
                    for place, name in enumerate(arrays["names"])
                    for value, groups in [arrays[f"value_{place}"]]
                },
                tuple(map(str, arrays["flags"])),
            )
        except KeyError as error:
            raise ValueError(f"{path}: the array {error} is missing") from error
