"""The perceptual hash of a stored image: 256 bits that change little when it is rescaled, windowed or compressed.

The image at 64 x 64 pixels, by area, gray; its 16 x 16 lowest cosines in two directions; a bit each, whether it is
above their median. That is imagehash's ``phash(hash_size=16)``, in whole numbers: the same bits on every machine.
"""

import functools

import numpy as np

from dexcore.extras import require

PHASH_BYTES = 32
_SIDE, _KEPT = 64, 16


@functools.cache
def _cosines() -> np.ndarray:
    """[kept, side] in whole numbers so small that sums of their products with 16-bit pixels are exact in float64."""
    angles = np.pi * np.arange(_KEPT)[:, None] * (2 * np.arange(_SIDE) + 1) / (2 * _SIDE)
    return np.rint(4096 * np.cos(angles))


def perceptual_hash(pixels: np.ndarray) -> bytes:
    """Hash an image as it is stored.

    An image below 64 pixels is scaled up. Of constant images the black ones have 256 zeros, the others a single one.

    Args:
        pixels: uint8 [H, W] or [H, W, 3] (RGB), or uint16 [H, W].

    Returns:
        32 bytes; the first bit is the mean's, then along the rows of the cosines.
    """
    cv2 = require("cv2", "train")
    gray = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY) if pixels.ndim == 3 else pixels
    # By area from a multiple of the size: twice as fast, both steps together, as straight from any other.
    height, width = (-(-length // _SIDE) * _SIDE for length in gray.shape)
    if gray.shape != (height, width):
        gray = cv2.resize(gray, (width, height), interpolation=cv2.INTER_LINEAR)
    small = cv2.resize(gray, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    cosines = _cosines()
    lowest = cosines @ small.astype(np.float64) @ cosines.T
    return np.packbits(lowest > np.median(lowest)).tobytes()
