"""Volumes to 2-D slices, oriented as radiologists look at them."""

from collections.abc import Iterator

import numpy as np

from dexcore.checks import check_kind, check_whole

AXES = ("sagittal", "coronal", "axial")  # the planes across x, y and z


def slices(volume: np.ndarray, axis: int) -> Iterator[np.ndarray]:
    """The slices across one axis, in order.

    Axial and coronal slices show the patient's right on the left; axial ones have the front on top, the
    others the head; sagittal ones look to the left.

    Args:
        volume: [x, y, z], x to the patient's right, y to the front, z to the head (NIfTI's canonical
            orientation).
        axis: 0 (sagittal), 1 (coronal) or 2 (axial).

    Yields:
        [height, width] views.

    Raises:
        TypeError: the volume is no array, or the axis no whole number.
        ValueError: the volume has not three axes, or there is no such axis.
    """
    check_kind("volume", volume, np.ndarray, "a numpy array")
    if volume.ndim != 3:
        raise ValueError(f"volume has shape {volume.shape}, expected 3 axes: x, y and z")
    check_whole("axis", axis, 0, 2)
    for plane in np.moveaxis(volume, axis, 0):
        yield plane.T[::-1, ::-1]
