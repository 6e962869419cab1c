"""Numbers of one trained model, each with its draws of cases: what effects are made of, and how they are kept."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dexcore.measures.bootstrap import Statistic, drawn_numbers
from dexcore.measures.effects import stratified_freedom
from dexcore.report.arrays import read_arrays, write_arrays

DRAWS = 1000
_FORMAT = 2


@dataclass(frozen=True, eq=False)
class Number:
    """A number of a model.

    Attributes:
        value: on all cases; nan where it is not defined.
        drawn_d: on draws of cases, float64 [d]; empty where cases were not drawn. Of two models that were measured on
            the same cases, draw number i is of the same cases.
        groups: cases.
        freedom: degrees of freedom of the draws' deviation; without it one less than there are cases.
        fewest: cases of the smallest stratum that cases were drawn within (a modality, a class); without it all.
    """

    value: float
    drawn_d: np.ndarray
    groups: int
    freedom: float = -1.0
    fewest: int = -1

    def __post_init__(self) -> None:
        if self.freedom < 0:
            object.__setattr__(self, "freedom", max(self.groups - 1.0, 0.0))
        if self.fewest < 0:
            object.__setattr__(self, "fewest", self.groups)

    @classmethod
    def of(cls, statistic: Statistic, stratum_g: np.ndarray, cases: str = "") -> "Number":
        """Measure on all groups and on draws of them.

        Args:
            statistic: of how often each group counts.
            stratum_g: groups are drawn within strata.
            cases: what the set is called: another is drawn otherwise, even where it is as large.
        """
        values, drawn_ds = drawn_numbers([statistic], stratum_g, DRAWS, seed=zlib.crc32(cases.encode()))
        changed_g = statistic(1 + np.eye(len(stratum_g)))  # a case more of each
        fewest = int(np.unique(stratum_g, return_counts=True)[1].min())
        freedom = stratified_freedom(changed_g, stratum_g)
        return cls(float(values[0]), drawn_ds[:, 0], len(stratum_g), freedom, fewest)

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
        min(one.freedom for one in numbers),
        min(one.fewest for one in numbers),
    )


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
            told = [number.value, number.groups, number.freedom, number.fewest]
            arrays[f"value_{place}"] = np.array(told, dtype=np.float64)
            arrays[f"drawn_{place}"] = number.drawn_d
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
                    str(name): Number(float(value), arrays[f"drawn_{place}"], int(groups), float(freedom), int(fewest))
                    for place, name in enumerate(arrays["names"])
                    for value, groups, freedom, fewest in [arrays[f"value_{place}"]]
                },
                tuple(map(str, arrays["flags"])),
            )
        except KeyError as error:
            raise ValueError(f"{path}: the array {error} is missing") from error
