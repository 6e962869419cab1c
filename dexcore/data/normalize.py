"""Raw pixels to [0, 1]: the normalizations of MVU (method, section 6), by the names of mvu_sources.csv.

Each clips and scales between two values (`limits`).
"""

import math
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from types import UnionType
from typing import Any

import numpy as np

from dexcore.checks import check_kind, check_number
from dexcore.data.coded import Pixels

HU_WINDOW = (-200.0, 400.0)  # Hounsfield units
SUV_WINDOW = (0.0, 20.0)  # standardized uptake value, g/ml
PERCENTILES = (1.0, 99.0)

_CHUNK = 1 << 20  # values that are looked at at once: what is taken beside a large volume stays at some 20 MB
_SORTED_WHOLE = 1 << 22  # smaller arrays are copied and partitioned, which is faster

Levels = tuple[float, float]


def hu_window(pixels: np.ndarray, levels: Levels | None = None) -> np.ndarray:
    """CT in Hounsfield units: (clip(x, -200, 400) + 200) / 600."""
    return window(pixels, HU_WINDOW)


def suv_window(pixels: np.ndarray, levels: Levels | None = None) -> np.ndarray:
    """PET in SUV: clip(x, 0, 20) / 20."""
    return window(pixels, SUV_WINDOW)


def percentile_minmax(pixels: np.ndarray, levels: Levels | None = None) -> np.ndarray:
    """Clip to the 1st and 99th percentile of all that is given (a whole volume), then min-max."""
    return window(pixels, _percentiles(pixels))


def percentile_zscore_minmax(pixels: np.ndarray, levels: Levels | None = None) -> np.ndarray:
    """Clip to the 1st and 99th percentile, z-score, then min-max.

    The z-score is affine and min-max undoes it: the same numbers as `percentile_minmax`.
    """
    return percentile_minmax(pixels)


def div255(pixels: np.ndarray, levels: Levels | None = None) -> np.ndarray:
    """x / 255, for 8-bit images.

    Other depths are first brought to 8 bit's range as a viewer would, without rounding: ``levels`` (the
    window a DICOM file asks for, or what its 12 or 16 bits can hold) goes to 0 and 255. Where a file does not
    say what is white (floats), the array's own minimum and maximum stand for it.
    """
    return window(pixels, _black_and_white(pixels, levels))


NORMALIZATIONS: dict[str, Callable[[np.ndarray, Levels | None], np.ndarray]] = {
    "hu_window": hu_window,
    "suv_window": suv_window,
    "percentile_minmax": percentile_minmax,
    "percentile_zscore_minmax": percentile_zscore_minmax,
    "div255": div255,
}


def normalize(pixels: np.ndarray, method: str, levels: Levels | None = None) -> np.ndarray:
    """Bring raw pixels to [0, 1].

    Args:
        pixels: any shape, integers or finite floats (what is made of others is not finite either). Percentiles are
            taken over all of it: give a whole volume.
        method: a key of `NORMALIZATIONS`.
        levels: the values that stand for black and white where the file says so; used by ``div255`` alone.

    Returns:
        float32 of the same shape, in [0, 1].

    Raises:
        TypeError: ``pixels`` is no array, or ``levels`` no pair of numbers.
        ValueError: there is no such method, ``pixels`` is empty or holds no real numbers, the ends that are taken from
            it are not finite, or a level is not.
    """
    _check_arguments(pixels, method, levels)
    return NORMALIZATIONS[method](pixels, levels)


def limits(pixels: Pixels, method: str, levels: Levels | None = None) -> Levels:
    """The values that `normalize` brings to 0 and 1, for `window`: a volume's slices are scaled one by one.

    Percentiles are exact, those of numpy's "linear" method, and take some 20 MB beside a volume of any size and layout.
    Arguments and errors are those of `normalize`.
    """
    _check_arguments(pixels, method, levels)
    if method == "div255":
        return _black_and_white(pixels, levels)
    windows = {"hu_window": HU_WINDOW, "suv_window": SUV_WINDOW}
    return windows[method] if method in windows else _percentiles(pixels)


def window(pixels: np.ndarray, levels: Levels) -> np.ndarray:
    """Clip to ``levels`` and scale to [0, 1]; an empty window gives zeros.

    Exact for every type to float32's last bit but one: differences are taken in float64, of 64-bit integers before
    they are rounded to it.

    Args:
        pixels: integers or floats of any shape.
        levels: what becomes 0 and 1.

    Returns:
        float32 of the same shape.

    Raises:
        TypeError, ValueError: as `normalize`.
    """
    _check_pixels(pixels)
    _check_levels(levels)
    low, high = levels
    if pixels.dtype == np.uint8 and (low, high) == (0, 255):
        return pixels / np.float32(255)
    out = np.empty(pixels.shape, np.float32)
    if not high > low:
        out.fill(0)
        return out
    for part, result in _chunks(pixels, out):
        result[...] = _scaled(part, low, high)
    return out


def _check_arguments(pixels: Pixels, method: str, levels: Levels | None) -> None:
    _check_pixels(pixels, Pixels)
    if method not in list(NORMALIZATIONS):  # a list: also what cannot be hashed is compared
        raise ValueError(f"method is {method!r}, expected one of {', '.join(NORMALIZATIONS)}")
    if pixels.size == 0:
        raise ValueError(f"pixels has shape {pixels.shape}, expected at least one")
    if levels is not None:
        _check_levels(levels)


def _check_pixels(pixels: Pixels, kinds: type | UnionType = np.ndarray) -> None:
    check_kind("pixels", pixels, kinds, "a numpy array")
    if pixels.dtype.kind not in "iuf":
        raise ValueError(f"pixels has dtype {pixels.dtype}, expected integers or floats")


def _check_levels(levels: Levels) -> None:
    if not isinstance(levels, tuple) or len(levels) != 2:
        raise TypeError(f"levels must be a pair of numbers, black and white, got {levels!r}")
    for level in levels:
        check_number("levels", level, "finite", math.isfinite)


def _scaled(pixels: np.ndarray, low: float, high: float) -> np.ndarray:
    """(pixels - low) / (high - low) within 0 and 1, in float64."""
    if pixels.dtype.kind in "iu" and pixels.dtype.itemsize == 8:
        # Distances from a whole number below are exact where the numbers themselves would be rounded.
        ends = np.iinfo(pixels.dtype)
        base = min(max(math.floor(low), int(ends.min)), int(ends.max))
        near = pixels.clip(base, min(max(math.ceil(high), base), int(ends.max)))
        values = (near.astype(np.uint64) - np.uint64(base % (1 << 64))).astype(np.float64)
        low, high = float(low - base), float(high - base)
    else:
        values, low, high = pixels.astype(np.float64), float(low), float(high)
    np.clip(values, low, high, out=values)
    if math.isinf(float(high) - float(low)):  # the ends of float64
        values, low, high = values / 2, low / 2, high / 2
    values -= low
    values /= high - low
    return values


def _chunks(pixels: Any, *others: np.ndarray) -> Iterator[tuple[Any, ...]]:
    """Views of some pixels, and of the same ones of the other arrays."""
    if pixels.size <= _CHUNK or pixels.ndim == 0:
        yield pixels, *others
    elif len(pixels) == 1:
        yield from _chunks(pixels[0], *(other[0] for other in others))
    else:
        middle = len(pixels) // 2
        yield from _chunks(pixels[:middle], *(other[:middle] for other in others))
        yield from _chunks(pixels[middle:], *(other[middle:] for other in others))


def _in_memory_order(pixels: Pixels) -> Pixels:
    """The same pixels, the axis with the longest step first: a view that is fast to walk through."""
    order = sorted(range(pixels.ndim), key=lambda axis: -abs(pixels.strides[axis]))
    return pixels.transpose(order)


def _black_and_white(pixels: Pixels, levels: Levels | None) -> Levels:
    if levels is not None:
        return levels
    if pixels.dtype == np.uint8:
        return 0.0, 255.0
    ends = pixels.min().item(), pixels.max().item()
    _check_finite(ends)
    return ends


def _check_finite(found: Iterable[float]) -> None:
    if not all(map(math.isfinite, found)):
        raise ValueError("pixels holds NaN or infinity, expected finite numbers")


def _percentiles(pixels: Pixels) -> Levels:
    """Those of `PERCENTILES`, each between the two pixels of the nearest ranks."""
    if pixels.dtype.itemsize > 8:  # long double
        pixels = np.asarray(pixels, np.float64)
    positions = [share / 100 * (pixels.size - 1) for share in PERCENTILES]
    ranks = [min(math.floor(position) + step, pixels.size - 1) for position in positions for step in (0, 1)]
    found = _order_statistics(pixels, ranks)
    _check_finite(found)
    low, high = (
        _between(below, above, position - math.floor(position))
        for below, above, position in zip(found[::2], found[1::2], positions, strict=True)
    )
    return low, high


def _between(below: float, above: float, share: float) -> float:
    """Rounded once, so that a volume of whole numbers has the same percentiles as integers and as floats."""
    if below == above:
        return below
    value = Fraction(below) + Fraction(share) * (Fraction(above) - Fraction(below))
    # A float64 would round large integers.
    return float(value) if isinstance(below, float) or abs(value) <= 1 << 53 else value


def _order_statistics(pixels: Pixels, ranks: list[int]) -> list[float]:
    """The pixels that would stand at these places if all were sorted."""
    if pixels.size <= _SORTED_WHOLE:
        return np.partition(pixels, sorted(set(ranks)), axis=None)[ranks].tolist()
    ordered = _in_memory_order(pixels)
    return [_decoded(key, pixels.dtype) for key in _select(ordered, ranks)]


def _select(pixels: Pixels, ranks: list[int]) -> list[int]:
    """The keys at these ranks, 16 bits after 16: the first from a count of all, the next of those that share them."""
    bits = 8 * pixels.dtype.itemsize
    prefixes, left = [0] * len(ranks), list(ranks)
    for shift in range(bits - min(bits, 16), -1, -16):
        counts = {prefix: np.zeros(1 << min(bits, 16), np.int64) for prefix in set(prefixes)}
        for (part,) in _chunks(pixels):
            keys = _keys(part).ravel()
            for prefix, count in counts.items():
                chosen = keys if shift + 16 >= bits else keys[keys >> keys.dtype.type(shift + 16) == prefix]
                digits = (chosen >> keys.dtype.type(shift)).astype(np.uint16)  # the lowest 16 bits of it
                count += np.bincount(digits, minlength=len(count))
        for number, prefix in enumerate(prefixes):
            ends = counts[prefix].cumsum()
            digit = int(np.searchsorted(ends, left[number], side="right"))
            left[number] -= int(ends[digit - 1]) if digit else 0
            prefixes[number] = prefix << 16 | digit
    return prefixes


def _keys(pixels: Pixels) -> np.ndarray:
    """Unsigned integers in the same order as the pixels."""
    unsigned = np.dtype(f"u{pixels.dtype.itemsize}")
    native = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("="))
    keys, top = native.view(unsigned), unsigned.type(1 << (8 * unsigned.itemsize - 1))
    if pixels.dtype.kind == "u":
        return keys
    if pixels.dtype.kind == "i":
        return keys ^ top
    return np.where(keys & top, ~keys, keys | top)  # floats below zero count downwards


def _decoded(key: int, dtype: np.dtype) -> float:
    """The pixel of a key."""
    unsigned = np.dtype(f"u{dtype.itemsize}")
    top = 1 << (8 * unsigned.itemsize - 1)
    if dtype.kind == "i":
        key ^= top
    elif dtype.kind == "f":
        key = key ^ top if key & top else key ^ (2 * top - 1)
    return np.array([key], unsigned).view(dtype.newbyteorder("="))[0].item()
