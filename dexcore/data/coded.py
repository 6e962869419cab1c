"""Arrays of float32 whose values 16 bits tell apart, at half the size: as a scanner stored them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

CODES = 1 << 16


@dataclass
class Table:
    """What each code from ``low`` on stands for: float32, and whether that is known."""

    low: int = 0
    values: np.ndarray = field(default_factory=lambda: np.empty(CODES, np.float32))
    known: np.ndarray = field(default_factory=lambda: np.zeros(CODES, bool))

    def enter(self, codes: np.ndarray, values: np.ndarray) -> bool:
        """Whether these codes can stand for these values, bit for bit; then it is known. Not after `shrink`."""
        fresh = ~self.known[codes]
        self.values[codes[fresh]] = values[fresh]
        if not np.array_equal(self.values.view(np.uint32)[codes], values.view(np.uint32)):
            return False
        self.known[codes] = True
        return True

    def shrink(self) -> None:
        """Keep no more than what is known."""
        there = np.flatnonzero(self.known)
        known = slice(int(there[0]), int(there[-1]) + 1)
        self.low, self.values, self.known = known.start, self.values[known].copy(), self.known[known].copy()

    def decode(self, codes: np.ndarray) -> np.ndarray:
        return self.values[codes - np.uint16(self.low)]


class Coded:
    """An array of float32 that is kept as codes: `numpy.asarray` makes the values of the part that is asked for.

    Indices and transposes give views, as of an array; a single number is none.

    Args:
        wide: float32, contiguous; the first half of its memory holds the codes, until `widened` puts the values there.
        tables: of the values, by number.
        table_of: the table of each entry of the first axis; -1 of what has no values yet.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, wide: np.ndarray, tables: list[Table], table_of: np.ndarray) -> None:
        self._whole, self._wide, self._tables = self, wide, tables
        self._codes = half(wide, np.uint16)
        self._table_of = np.broadcast_to(table_of.reshape(-1, *[1] * (wide.ndim - 1)), wide.shape)

    def _view(self, codes: np.ndarray, table_of: np.ndarray, wide: np.ndarray) -> "Coded":
        view = object.__new__(Coded)
        view._whole, view._wide, view._tables = self._whole, wide, self._tables
        view._codes, view._table_of = codes, table_of
        return view

    @property
    def shape(self) -> tuple[int, ...]:
        return self._wide.shape

    @property
    def ndim(self) -> int:
        return self._wide.ndim

    @property
    def size(self) -> int:
        return self._wide.size

    @property
    def strides(self) -> tuple[int, ...]:
        return self._wide.strides

    def __len__(self) -> int:
        return len(self._wide)

    def __getitem__(self, key: Any) -> "Coded":
        return self._view(self._codes[key], self._table_of[key], self._wide[key])

    def __iter__(self) -> Iterator["Coded"]:
        return (self[index] for index in range(len(self)))

    def transpose(self, *axes: Any) -> "Coded":
        return self._view(*(array.transpose(*axes) for array in (self._codes, self._table_of, self._wide)))

    @property
    def T(self) -> "Coded":
        return self.transpose()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        values = self._decoded() if self._tables else self._wide
        return np.array(values, dtype, copy=copy) if copy or dtype not in (None, self.dtype) else values

    def _decoded(self) -> np.ndarray:
        numbers = self._table_of[tuple(slice(None if stride else 1) for stride in self._table_of.strides)]
        if (numbers == numbers.flat[0]).all():
            return self._tables[numbers.flat[0]].decode(self._codes)
        axis = int(np.argmax(numbers.shape))
        values = np.empty(self.shape, self.dtype)
        parts = np.moveaxis(self._codes, axis, 0), np.moveaxis(values, axis, 0)
        for number, codes, part in zip(numbers.ravel(), *parts, strict=True):
            part[...] = self._tables[number].decode(codes)
        return values

    def widened(self) -> np.ndarray:
        """All values, in the memory of the codes: what was a view of codes is one of values from now on."""
        if self._tables:
            # From the last on: what is written lies behind the codes that are still to be read.
            for index in reversed(range(len(self._whole))):
                if self._whole._table_of[index].flat[0] >= 0:
                    self._whole._wide[index] = self._whole[index]
            self._tables.clear()
        return self._wide

    def min(self) -> np.float32:
        return min(np.asarray(part).min() for part in self)

    def max(self) -> np.float32:
        return max(np.asarray(part).max() for part in self)


Pixels = np.ndarray | Coded


def half(wide: np.ndarray, dtype: type[np.generic]) -> np.ndarray:
    """The first half of an array's memory as one of the same shape, of numbers of half the size."""
    return wide.reshape(-1).view(dtype)[: wide.size].reshape(wide.shape)
