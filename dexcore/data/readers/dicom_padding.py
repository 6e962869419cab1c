"""Padding: pixels outside the field of view, that hold a value which measures nothing."""

import math
from typing import Any

import numpy as np

from dexcore.data.readers.dicom_stored import Stored
from dexcore.data.readers.dicom_values import number, raw_value, whole


def find_padding(stored: Stored, raw: np.ndarray, clean: np.ndarray) -> np.ndarray | None:
    """Where a frame is padded: bool of its shape, or None where the file names no padding.

    Args:
        stored: what the file says of its pixels.
        raw: the frame with all allocated bits.
        clean: the same with the stored bits alone.
    """
    if not stored.integers:
        prefix = "FloatPixelPadding" if stored.file.keyword == "FloatPixelData" else "DoubleFloatPixelPadding"
        value = _float(stored.file.dataset, f"{prefix}Value")
        limit = _float(stored.file.dataset, f"{prefix}RangeLimit")
        if value is None:  # NaN, which `finish` fills, is no value here
            return None
        ends = sorted(clean.dtype.type(end) for end in (value, value if limit is None else limit))
        return (clean >= ends[0]) & (clean <= ends[1])
    padding = whole(stored.file.dataset, "PixelPaddingValue")
    if padding is None:
        return None
    last = whole(stored.file.dataset, "PixelPaddingRangeLimit")
    last = padding if last is None else last
    inside = [_as_stored(stored, end) for end in (padding, last)]
    if None not in inside:
        low, high = sorted(end for end in inside if end is not None)
        return (clean >= low) & (clean <= high)
    # The value needs more bits than are stored (-2000 beside 12 bits): it is found among those allocated.
    patterns = raw.view(f"u{raw.dtype.itemsize}")
    low, high = sorted(end % (1 << (8 * raw.dtype.itemsize)) for end in (padding, last))
    return (patterns >= low) & (patterns <= high)


def _float(dataset: Any, keyword: str) -> float | None:
    """As `number`, but it may be infinite."""
    value = raw_value(dataset, keyword)
    return value if isinstance(value, float) and math.isinf(value) else number(dataset, keyword)


def _as_stored(stored: Stored, value: int) -> int | None:
    """A padding value in the pixels' own sign, whatever VR it was written with; None where no stored value is it."""
    low, high = stored.range
    allocated = 1 << stored.allocated
    candidates = [value, value + allocated, value - allocated]
    if stored.signed:
        candidates.append(value - (1 << stored.bits))
    return next((candidate for candidate in candidates if low <= candidate <= high), None)
