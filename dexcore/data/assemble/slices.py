"""Volumes to 2-D slices, oriented as radiologists look at them, with square pixels."""

from collections.abc import Iterator, Sequence

import numpy as np

from dexcore.checks import check_kind, check_whole
from dexcore.data.coded import Pixels
from dexcore.extras import require

_ACQUIRED = 1.2  # a spacing so many times as large as both others is that between the slices of an acquisition
_SQUARE = 0.01  # pixels whose sides differ by no more than this share are square
MOST_STRETCH = 16  # a pixel so many times as long as wide is a damaged header's


def slices(volume: Pixels, axis: int) -> Iterator[Pixels]:
    """The slices across one axis, in order.

    Axial and coronal slices show the patient's right on the left; axial ones have the front on top, the
    others the head; sagittal ones look to the left.

    Args:
        volume: [x, y, z], x to the patient's right, y to the front, z to the head (NIfTI's canonical
            orientation).
        axis: 0 (sagittal), 1 (coronal) or 2 (axial).

    Yields:
        [height, width] views, of the volume's kind.

    Raises:
        TypeError: the volume is no array, or the axis no whole number.
        ValueError: the volume has not three axes, or there is no such axis.
    """
    check_kind("volume", volume, Pixels, "a numpy array")
    if volume.ndim != 3:
        raise ValueError(f"volume has shape {volume.shape}, expected 3 axes: x, y and z")
    check_whole("axis", axis, 0, 2)
    for plane in volume.transpose(axis, *(other for other in range(3) if other != axis)):
        yield plane.T[::-1, ::-1]


def restacked(planes: Sequence[np.ndarray], axis: int) -> np.ndarray:
    """The volume [x, y, z] of which `slices` across ``axis`` would give these planes, all of them and in order."""
    stack = np.stack([plane[::-1, ::-1].T for plane in planes])
    return stack.transpose(np.argsort([axis, *(other for other in range(3) if other != axis)]))


def acquired_axis(spacing: tuple[float, ...] | None) -> int:
    """The axis across which a volume was acquired: that of distinctly the largest spacing, else 2 (axial)."""
    if spacing is None:
        return 2
    axis = int(np.argmax(spacing))
    others = [size for index, size in enumerate(spacing) if index != axis]
    return axis if spacing[axis] > _ACQUIRED * max(others) else 2


def plane_spacing(spacing: tuple[float, ...] | None, axis: int) -> tuple[float, float] | None:
    """mm between the rows and between the columns of `slices` across an axis.

    Args:
        spacing: along (x, y, z); None where it is not known.
        axis: as in `slices`.
    """
    if spacing is None:
        return None
    first, second = (size for index, size in enumerate(spacing) if index != axis)
    return second, first  # a plane is transposed


def square(image: np.ndarray, spacing: tuple[float, float] | None) -> tuple[np.ndarray, float | None]:
    """Resample an image to square pixels as fine as its finer side.

    Args:
        image: float32 [height, width] or [height, width, 3].
        spacing: mm between rows and between columns; None where it is not known.

    Returns:
        The image (itself where its pixels are square), and mm between its pixels.

    Raises:
        ValueError: one side of a pixel is more than `MOST_STRETCH` times the other.
    """
    if spacing is None:
        return image, None
    rows, columns = spacing
    fine = min(rows, columns)
    if max(rows, columns) <= (1 + _SQUARE) * fine:
        return image, fine
    if max(rows, columns) > MOST_STRETCH * fine:
        raise ValueError(f"pixels are {rows:.3g} x {columns:.3g} mm, expected nearly square ones")
    height, width = (max(1, round(n * size / fine)) for n, size in zip(image.shape, spacing, strict=False))
    image = require("cv2", "train").resize(image, (width, height), interpolation=1)  # cv2.INTER_LINEAR
    return image, fine
