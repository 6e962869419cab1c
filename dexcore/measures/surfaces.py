"""Distances between the outlines of masks, in mm: the surface Dice (NSD) and the 95th percentile (HD95)."""

from collections.abc import Sequence

import numpy as np

from dexcore.extras import require


def surface_distances(
    reference: np.ndarray, predicted: np.ndarray, spacing: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """How far each point of one outline is from the other: those of the reference, those of the prediction.

    Both empty where a mask is.

    Args:
        reference, predicted: bool, of one shape, 2-D or 3-D.
        spacing: mm between neighbors along each axis.

    Raises:
        MissingExtraError: SciPy is not installed.
    """
    ndimage = require("scipy.ndimage", "eval")
    if reference.shape != predicted.shape or len(spacing) != reference.ndim:
        raise ValueError(f"masks of shapes {reference.shape} and {predicted.shape} with {len(spacing)} spacings")
    if not reference.any() or not predicted.any():
        return np.zeros(0), np.zeros(0)
    outlines = [mask & ~ndimage.binary_erosion(mask) for mask in (reference, predicted)]
    away = [ndimage.distance_transform_edt(~outline, sampling=spacing) for outline in outlines]
    return away[1][outlines[0]], away[0][outlines[1]]


def surface_dice(reference: np.ndarray, predicted: np.ndarray, spacing: Sequence[float], tolerance: float) -> float:
    """The share of both outlines that lies within ``tolerance`` mm of the other; 0 where one is empty, nan where both.

    Points of the outlines all count the same, as in MONAI.
    """
    if not reference.any() and not predicted.any():
        return float("nan")
    one, other = surface_distances(reference, predicted, spacing)
    if not len(one):
        return 0.0
    return float(((one <= tolerance).sum() + (other <= tolerance).sum()) / (len(one) + len(other)))


def hausdorff_95(reference: np.ndarray, predicted: np.ndarray, spacing: Sequence[float]) -> float:
    """The larger of the two directions' 95th percentiles, in mm; the image's diagonal where one mask is empty.

    nan where both are.
    """
    if not reference.any() and not predicted.any():
        return float("nan")
    one, other = surface_distances(reference, predicted, spacing)
    if not len(one):
        return float(np.linalg.norm(np.multiply(reference.shape, spacing)))
    return float(max(np.percentile(one, 95), np.percentile(other, 95)))
