"""Which images are worth training on. The paper drops near-empty and abnormally small ones without numbers
for "small" and "foreground": those here are ours.
"""

import numpy as np

from dexcore.checks import check_kind
from dexcore.data.modality import Modality

FOREGROUND_LEVEL = 0.05  # ours: brighter than this, after normalization, is no air
MIN_SIDE = 64  # ours, pixels
MIN_FOREGROUND = 0.05  # the paper's, share of the pixels
MIN_FOREGROUND_PET = 0.01  # the paper's


def foreground_ratio(image: np.ndarray) -> float:
    """Share of the pixels above `FOREGROUND_LEVEL`, in the brightest channel of RGB.

    Args:
        image: [height, width] or [height, width, 3], in [0, 1].
    """
    brightest = image.max(axis=2) if image.ndim == 3 else image
    return float(np.mean(brightest > FOREGROUND_LEVEL))


def reject_reason(image: np.ndarray, modality: Modality, min_side: int = MIN_SIDE) -> str | None:
    """Why a normalized image is dropped, in words; None if it is kept.

    Args:
        image: [height, width] or [height, width, 3], in [0, 1].
        modality: PET is darker than the others and has its own limit.
        min_side: the smallest shorter side that is kept, pixels.

    Raises:
        TypeError: ``image`` is no array.
        ValueError: the image has other axes, or there is no such modality.
    """
    check_kind("image", image, np.ndarray, "a numpy array")
    if image.ndim not in (2, 3):
        raise ValueError(f"image has shape {image.shape}, expected [height, width] or [height, width, 3]")
    modality = Modality(modality)  # its name alone, as stores hold it, would miss PET's limit
    side = min(image.shape[:2])
    if side < min_side:
        return f"shorter side of {side} px, expected at least {min_side}"
    if not np.isfinite(image).all():
        return "non-finite pixels"
    if image.min() == image.max():
        return f"constant, all pixels are {image.min():.3g}"
    ratio, least = foreground_ratio(image), MIN_FOREGROUND_PET if modality is Modality.PET else MIN_FOREGROUND
    if ratio < least:
        return f"foreground ratio {ratio:.4f}, expected at least {least}"
    return None
