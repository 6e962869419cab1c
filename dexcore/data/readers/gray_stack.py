"""Gray frames in one array, half as large where 16 bits tell their values apart: what most scanners store."""

from collections.abc import Callable, Iterator

import numpy as np

from dexcore.data.coded import CODES, Coded, Pixels, Table, half
from dexcore.data.readers.scan import RefusedError

_A_TABLE = 4  # pixels or more for each entry of a table of its own: else the values need no more memory


class GrayStack:
    """Frames of float32 values that are put in one by one, in any order.

    They are kept as the integers that were stored, with a table of their values: one for all frames, and another where
    an integer begins to stand for another value. From the first frame on whose integers need more than 16 bits, or a
    table as large as itself, all are kept as float32, in the same memory and without a second copy. It is as large as
    float32 needs it, but the system gives memory only to what is written.

    Args:
        frames, rows, columns: the shape.
    """

    def __init__(self, frames: int, rows: int, columns: int) -> None:
        self.shape = (frames, rows, columns)
        self._wide = np.empty(self.shape, np.float32)
        self._codes = half(self._wide, np.uint16)
        self._tables = [Table()]  # none: the values are there themselves
        self._table_of = np.full(frames, -1)
        self._coded = Coded(self._wide, self._tables, self._table_of)

    def put(self, index: int, values: np.ndarray, stored: np.ndarray) -> None:
        """Put a frame in its place, once.

        Args:
            index: the place.
            values: float32; NaN where nothing is measured.
            stored: the numbers, of any type, that the values are made from, one by one.
        """
        codes = _codes(stored) if self._tables else None
        if codes is not None and self._enter(index, codes, values):
            self._codes[index] = codes
        else:
            self._coded.widened()[index] = values

    def _enter(self, index: int, codes: np.ndarray, values: np.ndarray) -> bool:
        if not self._tables[-1].enter(codes, values):
            another = Table()
            entries = int(codes.max()) - int(codes.min()) + 1
            if _A_TABLE * entries > codes.size or not another.enter(codes, values):
                return False
            self._tables[-1].shrink()
            self._tables.append(another)
        self._table_of[index] = len(self._tables) - 1
        return True

    def finite_range(self) -> tuple[float, float]:
        """The smallest and the largest finite value; infinity and its negative where there is none."""
        low, high = np.inf, -np.inf
        for part in self._parts():
            part = part[np.isfinite(part)]
            if part.size:
                low, high = min(low, float(part.min())), max(high, float(part.max()))
        return low, high

    def make_finite(self) -> None:
        """Put the smallest finite value for NaN and -inf, and the largest for +inf.

        Raises:
            RefusedError: no value is finite.
        """
        low, high = self.finite_range()
        if low > high:
            raise RefusedError("no pixel is finite")
        self.change(lambda values: np.nan_to_num(values, nan=low, neginf=low, posinf=high))

    def change(self, function: Callable[[np.ndarray], np.ndarray]) -> None:
        """Put ``function(values)``, which looks at each value alone, in the place of all values."""
        for table in self._tables:
            table.values[table.known] = function(table.values[table.known])
        if not self._tables:
            for frame in self._wide:
                frame[...] = function(frame)

    def _parts(self) -> Iterator[np.ndarray]:
        """All values, in parts; of codes each once a table."""
        if self._tables:
            yield from (table.values[table.known] for table in self._tables)
        else:
            yield from self._wide

    def pixels(self) -> Pixels:
        """[frames, rows, columns], float32, in the memory of the stack, which is not to be used any more."""
        return self._coded if self._tables else self._wide

    def whole_pixels(self) -> Pixels:
        """As `pixels`, but int16 or uint16 where it holds all values."""
        for dtype in (np.int16, np.uint16):
            if all(_holds(dtype, part) for part in self._parts()):
                pixels = half(self._wide, dtype)
                # From the first on: what is written lies before what is still to be read.
                for index, frame in enumerate(self.pixels()):
                    pixels[index] = frame
                return pixels
        return self.pixels()


def _codes(stored: np.ndarray) -> np.ndarray | None:
    """Integers as 16 bits, in their order; None of others."""
    if stored.dtype.kind not in "iu":
        return None
    signed = stored.dtype.kind == "i"
    if stored.dtype.itemsize > 2:
        ends = np.iinfo(np.int16 if signed else np.uint16)
        if stored.min() < ends.min or stored.max() > ends.max:
            return None
    codes = stored.astype(np.uint16)
    return codes ^ np.uint16(CODES // 2) if signed else codes


def _holds(dtype: type[np.generic], values: np.ndarray) -> bool:
    with np.errstate(invalid="ignore"):  # of values that are too large: they are seen in the next line
        return np.array_equal(values.astype(dtype), values)
