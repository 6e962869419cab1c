"""Raw pixels to [0, 1]: the normalizations of MVU (method, section 6), by the names of mvu_sources.csv."""

import math
from collections.abc import Callable

import numpy as np

from dexcore.checks import check_kind, check_number

HU_WINDOW = (-200.0, 400.0)  # Hounsfield units
SUV_WINDOW = (0.0, 20.0)  # standardized uptake value, g/ml
PERCENTILES = (1.0, 99.0)

Levels = tuple[float, float]


def hu_window(pixels: np.ndarray, levels: Levels | None = None) -> np.ndarray:
    """CT in Hounsfield units: (clip(x, -200, 400) + 200) / 600."""
    return _window(pixels, *HU_WINDOW)


def suv_window(pixels: np.ndarray, levels: Levels | None = None) -> np.ndarray:
    """PET in SUV: clip(x, 0, 20) / 20."""
    return _window(pixels, *SUV_WINDOW)


def percentile_minmax(pixels: np.ndarray, levels: Levels | None = None) -> np.ndarray:
    """Clip to the 1st and 99th percentile of all that is given (a whole volume), then min-max."""
    return _window(pixels, *np.percentile(pixels, PERCENTILES))


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
    if pixels.dtype == np.uint8 and levels in (None, (0.0, 255.0)):
        return pixels / np.float32(255)
    return _window(pixels, *(levels or (float(pixels.min()), float(pixels.max()))))


def _window(pixels: np.ndarray, low: float, high: float) -> np.ndarray:
    """Clip to [low, high] and scale to [0, 1]; an empty window gives zeros."""
    out = np.asarray(pixels, dtype=np.float32).clip(np.float32(low), np.float32(high))
    out -= np.float32(low)
    if high > low:
        out /= np.float32(high - low)
    return out.clip(0, 1, out=out)  # (high - low) is rounded: the largest may lie a bit above 1


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
        ValueError: there is no such method, ``pixels`` is empty or holds no real numbers, or a level is not finite.
    """
    check_kind("pixels", pixels, np.ndarray, "a numpy array")
    if pixels.dtype.kind not in "iuf":
        raise ValueError(f"pixels has dtype {pixels.dtype}, expected integers or floats")
    if method not in list(NORMALIZATIONS):  # a list: also what cannot be hashed is compared
        raise ValueError(f"method is {method!r}, expected one of {', '.join(NORMALIZATIONS)}")
    if pixels.size == 0:
        raise ValueError(f"pixels has shape {pixels.shape}, expected at least one")
    if levels is not None:
        if not isinstance(levels, tuple) or len(levels) != 2:
            raise TypeError(f"levels must be a pair of numbers, black and white, got {levels!r}")
        for level in levels:
            check_number("levels", level, "finite", math.isfinite)
    return NORMALIZATIONS[method](pixels, levels)
