"""Common image files (PNG, JPEG, TIFF, BMP)."""

import os
from typing import Any

import numpy as np

from dexcore.data.readers.scan import RefusedError, Scan, check_size, make_finite
from dexcore.extras import require

_FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
_GRAY_16 = ("I;16", "I;16L", "I;16B", "I;16N")


def read_image(path: str | os.PathLike[str], every: int = 1) -> Scan:
    """Read an image file with Pillow.

    EXIF rotation is applied. Palettes, CMYK and other colour become 8-bit RGB (also 16-bit RGB, which Pillow
    reads at 8 bit); transparency is laid over black. 16-bit and float gray keep their depth.

    Args:
        path: the file.
        every: of a TIFF of several pages, read one in this many; pages of another size than the first are an
            error.

    Returns:
        A scan of layout "frames": [frames, height, width] or [frames, height, width, 3].

    Raises:
        RefusedError: over a limit, or pages that differ.
        Exception: Pillow raises OSError, SyntaxError and others on broken files.
    """
    pil = require("PIL.Image", "train")
    pages = []
    with pil.open(path, formats=_FORMATS) as image:
        indices = tuple(range(0, getattr(image, "n_frames", 1), every))
        for index in indices:
            image.seek(index)
            # Sizes are known before load() takes memory for the pixels.
            check_size(image.height, image.width, len(indices), 1 if image.mode in ("L", "1") else 3)
            pages.append(_to_array(image))
    if len({page.shape for page in pages}) > 1:
        raise RefusedError(f"pages of the sizes {sorted({page.shape for page in pages})}, expected one size")
    pixels = np.stack(pages)
    return Scan(make_finite(pixels), "frames", _levels(pixels), indices)


def _to_array(image: Any) -> np.ndarray:
    image_ops = require("PIL.ImageOps", "train")
    image = image_ops.exif_transpose(image)
    if image.mode in ("L", "I", "F", *_GRAY_16):
        return np.asarray(image).astype({"I": np.int32, "F": np.float32, "L": np.uint8}.get(image.mode, np.uint16))
    if image.mode == "1":
        return np.asarray(image.convert("L"))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        black = require("PIL.Image", "train").new("RGBA", rgba.size, (0, 0, 0, 255))
        image = require("PIL.Image", "train").alpha_composite(black, rgba)
    return np.asarray(image.convert("RGB"))


def _levels(pixels: np.ndarray) -> tuple[float, float] | None:
    """What 8 and 16 bits can hold; wider integers and floats do not say what is white."""
    return (0.0, float(np.iinfo(pixels.dtype).max)) if pixels.dtype in (np.uint8, np.uint16) else None
