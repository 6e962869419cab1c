"""Look-up tables of DICOM: modality, value of interest, palettes; plain or segmented, any byte order."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from dexcore.data.readers.dicom_values import numbers, raw_value
from dexcore.data.readers.scan import RefusedError

_MAX_SEGMENTS = 1 << 17
_COLORS = ("Red", "Green", "Blue")


@dataclass(frozen=True)
class Lut:
    """A table.

    Attributes:
        first: the input that the first entry stands for; smaller ones take it too, larger than all the last.
        entries: [n], uint16.
        white: what its bits can hold.
    """

    first: int
    entries: np.ndarray
    white: int

    def apply(self, values: np.ndarray) -> np.ndarray:
        """The entry of each value, rounded; uint16 of the same shape."""
        if values.dtype.kind == "f":
            values = np.rint(values)
        index = np.clip(values.astype(np.int64) - self.first, 0, len(self.entries) - 1)
        return self.entries[index]


def read_lut(item: Any, little: bool, low: float, high: float) -> Lut:
    """The table of an item of a modality or VOI LUT sequence.

    Args:
        item: the item.
        little: the file's byte order.
        low, high: between which the inputs lie.

    Raises:
        RefusedError: an element is missing or damaged.
    """
    count, first, bits = _descriptor(item, "LUTDescriptor", low, high)
    return _lut(first, bits, _plain(item, "LUTData", count, little))


def read_palette(dataset: Any, little: bool, low: int, high: int) -> list[Lut]:
    """The tables of red, green and blue, with one white; the pixels lie between ``low`` and ``high``.

    Raises:
        RefusedError: an element is missing or damaged.
    """
    tables = []
    for color in _COLORS:
        count, first, bits = _descriptor(dataset, f"{color}PaletteColorLookupTableDescriptor", low, high)
        segmented = f"Segmented{color}PaletteColorLookupTableData"
        if raw_value(dataset, segmented) is not None:
            entries = _expand(dataset, segmented, count, bits, little)
        else:
            entries = _plain(dataset, f"{color}PaletteColorLookupTableData", count, little)
        tables.append(_lut(first, bits, entries))
    white = max(table.white for table in tables)
    return [Lut(table.first, table.entries, white) for table in tables]


def _lut(first: int, bits: int, entries: np.ndarray) -> Lut:
    """Entries of 8 bits are met under a descriptor that says 16, and larger ones than it says (PS3.3 C.7.6.3.1.6)."""
    largest = int(entries.max())
    white = (1 << bits) - 1
    if largest > white:
        white = 65535
    return Lut(first, entries, 255 if largest <= 255 and white > 4095 else white)


def _descriptor(item: Any, keyword: str, low: float, high: float) -> tuple[int, int, int]:
    values = numbers(item, keyword)
    if len(values) != 3 or None in values:
        raise RefusedError(f"{keyword} is missing or not three numbers")
    count, first, bits = (int(value or 0) for value in values)
    count = (count & 0xFFFF) or 65536
    if low < 0 and first > high:  # written with the other sign
        first -= 65536
    elif first < low and first + 65536 <= high:
        first += 65536
    if not 1 <= bits <= 16:
        raise RefusedError(f"{keyword} says {bits} bits an entry, expected at most 16")
    return count, first, bits


def _plain(item: Any, keyword: str, count: int, little: bool) -> np.ndarray:
    value = raw_value(item, keyword)
    if value is None:
        raise RefusedError(f"{keyword} is missing")
    if not isinstance(value, bytes):
        entries = np.array([entry or 0 for entry in numbers(item, keyword)]).astype(np.int64).astype(np.uint16)
        if len(entries) == (count + 1) // 2 and count > 1:  # two entries of 8 bits in each word
            entries = entries.view(np.uint8).astype(np.uint16)
    elif len(value) >= 2 * count:
        entries = _words(value, little)
    else:
        entries = _octets(item, keyword, value, little)
    if len(entries) < count:
        raise RefusedError(f"{keyword} has {len(entries)} entries, its descriptor says {count}")
    return entries[:count]


def _words(data: bytes, little: bool) -> np.ndarray:
    return np.frombuffer(data[: len(data) // 2 * 2], "<u2" if little else ">u2").astype(np.uint16)


def _octets(item: Any, keyword: str, data: bytes, little: bool) -> np.ndarray:
    """Entries of one byte each; in words of a big-endian file the second comes first."""
    entries = np.frombuffer(data, np.uint8)
    if not little and item[keyword].VR == "OW" and len(entries) % 2 == 0:
        entries = entries.reshape(-1, 2)[:, ::-1].ravel()
    return entries.astype(np.uint16)


def _expand(dataset: Any, keyword: str, count: int, bits: int, little: bool) -> np.ndarray:
    """A segmented table (PS3.3 C.7.9.2): discrete, linear and indirect segments."""
    value = raw_value(dataset, keyword)
    if not isinstance(value, bytes):
        raise RefusedError(f"{keyword} holds no bytes")
    wide = bits > 8
    codes = [int(entry) for entry in (_words(value, little) if wide else _octets(dataset, keyword, value, little))]
    out: list[float] = []
    segments = 0

    def copy(at: int, left: int) -> int:
        """One segment at ``at``; where the next starts."""
        nonlocal segments
        segments += 1
        opcode, length = codes[at], codes[at + 1]
        if len(out) > count or segments > _MAX_SEGMENTS:
            raise RefusedError(f"{keyword} holds more than {count} entries")
        if opcode == 0:
            out.extend(codes[at + 2 : at + 2 + length])
            return at + 2 + length
        if opcode == 1 and out:
            out.extend(np.linspace(out[-1], codes[at + 2], length + 1)[1:])
            return at + 3
        if opcode == 2 and left:
            low = codes[at + 2 : at + (4 if wide else 6)]
            offset = sum(part << (index * (16 if wide else 8)) for index, part in enumerate(low))
            position = offset // 2 if wide else offset  # the file counts bytes
            for _ in range(length):
                position = copy(position, left - 1)
            return at + (4 if wide else 6)
        raise RefusedError(f"{keyword} has an unknown segment")

    at = 0
    try:
        while len(out) < count:
            at = copy(at, 1)
    except IndexError:
        raise RefusedError(f"{keyword} has {len(out)} entries, its descriptor says {count}") from None
    return np.rint(out[:count]).astype(np.uint16)
