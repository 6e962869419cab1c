"""Smooth random fields and soft shapes that every drawing uses: float32, lengths as shares of the side.

Numbers are Python's own floats, not NumPy's: those would turn float32 into float64.
"""

import math
from collections.abc import Iterable
from functools import lru_cache

import numpy as np

from dexcore.extras import require

_FINE = 384  # lines are drawn on at least this many pixels a side, then averaged


@lru_cache(maxsize=8)
def grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """The coordinates (y, x) of the pixels' centers, 0 to 1 from the top left: [size, 1] and [1, size]."""
    centers = (np.arange(size, dtype=np.float32) + 0.5) / size
    return centers[:, None], centers[None, :]


def box(size: int, cy: float, cx: float, ry: float, rx: float) -> tuple[slice, slice]:
    """Rows and columns within (ry, rx) of (cy, cx), cut at the image's border; may be empty."""

    def span(center: float, reach: float) -> slice:
        start = min(max(int((center - reach) * size), 0), size)
        return slice(start, min(max(int((center + reach) * size) + 1, start), size))

    return span(cy, ry), span(cx, rx)


def noise(rng: np.random.Generator, size: int, cells: int, width_cells: int | None = None) -> np.ndarray:
    """A field [size, size] of standard deviation near 1 that varies over 1 / cells of the height.

    Args:
        rng: where the numbers come from.
        size: pixels.
        cells: independent values down the image.
        width_cells: across it; as many without it.
    """
    cv2 = require("cv2", "train")
    coarse = rng.standard_normal((cells, width_cells or cells), dtype=np.float32)
    return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur; ``sigma`` as a share of the side."""
    return require("cv2", "train").GaussianBlur(image, (0, 0), sigma * image.shape[0])


def ramp(distance: np.ndarray, width: float) -> np.ndarray:
    """0 below -width / 2, 1 above width / 2, a line between: a soft edge."""
    return np.clip(distance / width + 0.5, 0, 1)


def ellipse(size: int, cy: float, cx: float, ry: float, rx: float, angle: float = 0.0) -> np.ndarray:
    """Distance from the center in units of the ellipse's own radius: below 1 inside. [size, size]."""
    y, x = grid(size)
    y, x = y - cy, x - cx
    cos, sin = math.cos(angle), math.sin(angle)
    along, across = (y * cos + x * sin) / ry, (x * cos - y * sin) / rx
    return np.sqrt(along * along + across * across)


def finer(size: int, least: int) -> int:
    """The smallest multiple of ``size`` that is at least ``least``: what `shrink` brings back to ``size``."""
    return size * max(1, math.ceil(least / size))


def shrink(image: np.ndarray, size: int) -> np.ndarray:
    """Average a square image to ``size`` pixels a side."""
    cv2 = require("cv2", "train")
    return image if len(image) == size else cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)


def strokes(size: int, lines: Iterable[tuple[np.ndarray, float]]) -> np.ndarray:
    """How far bent lines cover each pixel, 0 to 1. [size, size].

    Args:
        size: pixels.
        lines: of each, its points [n, 2] as (x, y) and its width. Thinner than a pixel is drawn fainter.
    """
    cv2 = require("cv2", "train")
    fine = finer(size, _FINE)
    canvas = np.zeros((fine, fine), np.uint8)
    for points, width in lines:
        sixteenths = np.round(points * (fine * 16)).astype(np.int32)
        cv2.polylines(canvas, [sixteenths], False, 255, max(1, round(width * fine)), cv2.LINE_AA, shift=4)
    return shrink(canvas, size).astype(np.float32) / 255


def walk(rng: np.random.Generator, start: tuple[float, float], angle: float, length: float, bend: float) -> np.ndarray:
    """A winding line of eight points (x, y) from ``start``; ``bend``: how far it turns at each, in radians."""
    turns = angle + np.cumsum(rng.normal(0, bend, 7))
    steps = np.stack([np.cos(turns), np.sin(turns)], axis=1) * (length / 7)
    return np.vstack([[start], np.asarray(start) + np.cumsum(steps, axis=0)])


def camera(image: np.ndarray) -> np.ndarray:
    """What an 8-bit camera stores of intensities in [0, 1]."""
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
