"""Pixels to stored bytes and back: quantised, lossless PNG."""

import io

import numpy as np

from dexcore.checks import check_kind, check_whole
from dexcore.extras import require


def quantize(image: np.ndarray, bit_depth: int, max_side: int) -> np.ndarray:
    """Scale down by area to a shorter side of at most ``max_side`` pixels, then round to integers.

    Args:
        image: float32 in [0, 1], [H, W] or [H, W, 3].
        bit_depth: 8 or 16.
        max_side: pixels.

    Returns:
        uint8 or uint16 of the same number of axes, 1.0 being the largest integer.

    Raises:
        TypeError: ``image`` is no array, or ``max_side`` no whole number.
        ValueError: the image has other axes, the bit depth is another one, or ``max_side`` is below 1.
    """
    check_kind("image", image, np.ndarray, "a numpy array")
    if image.ndim not in (2, 3):
        raise ValueError(f"image has shape {image.shape}, expected [H, W] or [H, W, 3]")
    if bit_depth not in (8, 16):
        raise ValueError(f"bit_depth is {bit_depth!r}, expected 8 or 16")
    check_whole("max_side", max_side, 1)
    cv2 = require("cv2", "train")
    height, width = image.shape[:2]
    if min(height, width) > max_side:
        scale = max_side / min(height, width)
        size = (max(round(width * scale), max_side), max(round(height * scale), max_side))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    dtype = np.uint8 if bit_depth == 8 else np.uint16
    return np.rint(image * np.float32(np.iinfo(dtype).max)).astype(dtype)


def encode(pixels: np.ndarray) -> bytes:
    """Encode uint8 [H, W] or [H, W, 3] (RGB), or uint16 [H, W]."""
    cv2 = require("cv2", "train")
    # Measured on fundus and 16-bit gray at 512 px, against level 1 alone: half the time to encode, 20 to 30 %
    # less to decode, and no larger.
    options = [cv2.IMWRITE_PNG_COMPRESSION, 1]
    options += [cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]
    options += [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP]
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".png", pixels, options)[1].tobytes()


def decode(data: memoryview | bytes, shape: tuple[int, int], bit_depth: int) -> np.ndarray:
    """Decode what `encode` made.

    Args:
        data: the PNG file.
        shape: the height and width it must have; checked before any pixel is decoded.
        bit_depth: 8 or 16.

    Raises:
        ValueError: the data does not decode, or to another shape or depth.
    """
    image_module = require("PIL.Image", "train")
    try:
        with image_module.open(io.BytesIO(data), formats=("PNG",)) as image:
            if (image.height, image.width) != shape:
                raise ValueError(f"{image.height} x {image.width} pixels, expected {shape[0]} x {shape[1]}")
            pixels = np.asarray(image)
    except Exception as error:  # Pillow raises many types on broken files
        raise ValueError(f"is no readable PNG: {error}") from error
    if pixels.dtype != (np.uint8 if bit_depth == 8 else np.uint16):
        raise ValueError(f"holds {pixels.dtype} pixels, expected {bit_depth} bit")
    return pixels
