"""What image files ask to be done to decoded pixels before they are a picture."""

import numpy as np

# EXIF's and TIFF's Orientation: where the stored picture's first row and column are to be shown.
_QUARTER_TURNS = {3: 2, 6: -1, 8: 1}


def oriented(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """The picture as it is to be shown: a view of [height, width, ...], turned and mirrored by Orientation 1 to 8.

    Numbers that are none of these leave it as it is.
    """
    if orientation in _QUARTER_TURNS:
        return np.rot90(pixels, _QUARTER_TURNS[orientation])
    if orientation == 2:
        return pixels[:, ::-1]
    if orientation == 4:
        return pixels[::-1]
    if orientation == 5:
        return pixels.swapaxes(0, 1)
    if orientation == 7:
        return pixels[::-1, ::-1].swapaxes(0, 1)
    return pixels


def over_black(colour: np.ndarray, alpha: np.ndarray, opaque: float) -> np.ndarray:
    """A picture with transparency laid over black, rounded where it holds integers.

    Args:
        colour: [height, width] or [height, width, 3], black being 0.
        alpha: [height, width]; 0 is transparent.
        opaque: the alpha that hides all that lies beneath.
    """
    if colour.ndim == 3:
        alpha = alpha[..., None]
    if colour.dtype.kind == "f":
        return colour * (alpha / colour.dtype.type(opaque))
    if colour.dtype.itemsize <= 2:
        wide = colour.astype(np.int64 if colour.dtype.kind == "i" else np.uint32)
        return ((wide * alpha + int(opaque) // 2) // int(opaque)).astype(colour.dtype)
    return np.round(colour * (alpha / float(opaque))).astype(colour.dtype)


def bit_levels(dtype: np.dtype, bits: int | None = None) -> tuple[float, float] | None:
    """Black and white of integers of so many bits.

    Integers of 32 and 64 bits, which are hardly ever used to their ends, and floats do not say what is white: None.
    """
    bits = bits or 8 * dtype.itemsize
    if dtype.kind not in "iu" or bits in (32, 64):
        return None
    low = -(1 << (bits - 1)) if dtype.kind == "i" else 0
    return float(low), float(low + (1 << bits) - 1)
