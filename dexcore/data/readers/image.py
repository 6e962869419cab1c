"""Common image files: PNG, JPEG, BMP."""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from dexcore.data.readers.codestream import jpeg_ends, read_codestream
from dexcore.data.readers.pixels import bit_levels, oriented, over_black
from dexcore.data.readers.scan import RefusedError, Scan, check_ratio, check_size
from dexcore.extras import require

_FORMATS = ("PNG", "JPEG", "BMP")
_ORIENTATION = 0x0112  # of EXIF


def read_image(path: str | os.PathLike[str], every: int = 1) -> Scan:
    """Read a PNG, JPEG or BMP file with Pillow, PNG of 16 bits (whose colour it brings to 8) and JPEG of 12 and 16
    and JPEG-LS (which it does not know) with imagecodecs.

    EXIF rotation is applied. Palettes and CMYK become RGB; gray stays gray. What is transparent, by an alpha channel,
    a palette or one colour that the file names, is laid over black. Of a file of several pictures (a phone's
    photograph with its previews, an animation) the first is read. The density of the pixels in such files is a
    camera's or a screen's, no physical size: there is no spacing.

    Args:
        path: the file.
        every: the one picture is read whatever this is.

    Returns:
        A scan of layout "frames": uint8 or uint16 [1, height, width] or [1, height, width, 3].

    Raises:
        RefusedError: over a limit, or a bomb.
        Exception: Pillow and imagecodecs raise OSError, SyntaxError and others on broken files.
    """
    pil = require("PIL", "train")
    try:
        opened = require("PIL.Image", "train").open(path, formats=_FORMATS)
    except pil.UnidentifiedImageError:
        scan = _deep_jpeg(path)
        if scan is None:
            raise
        return scan
    with opened as image:
        # Sizes are known before load() takes memory for the pixels.
        bands = len(image.getbands())
        check_size(image.height, image.width, 1, bands)
        check_ratio(image.height * image.width * bands, os.path.getsize(path))
        deep = image.format == "PNG" and _png_depth(path) == 16
        pixels = _deep_png(path) if deep else _to_array(image, path)
        pixels = np.ascontiguousarray(oriented(pixels, _orientation(image.getexif)))[None]
    return Scan(pixels, "frames", bit_levels(pixels.dtype), (0,))


def _png_depth(path: str | os.PathLike[str]) -> int:
    """Bits a sample, from the first chunk."""
    with open(path, "rb") as file:
        return file.read(25)[-1]


def _deep_png(path: str | os.PathLike[str]) -> np.ndarray:
    """Decode 16 bits; one transparent colour (tRNS) comes as an alpha channel."""
    with open(path, "rb") as file:
        pixels = require("imagecodecs", "train").png_decode(file.read())
    if pixels.ndim == 2 or pixels.shape[2] == 3:
        return pixels
    colour = pixels[..., 0] if pixels.shape[2] == 2 else pixels[..., :3]
    return over_black(colour, pixels[..., -1], 65535)


def _deep_jpeg(path: str | os.PathLike[str]) -> Scan | None:
    """A JPEG of 12 or 16 bits, lossy or not, or JPEG-LS, which Pillow does not know. None for others."""
    with open(path, "rb") as file:
        data = file.read()
    stream = read_codestream(data)
    if stream is None or (stream.bits <= 8 and not stream.jpeg_ls) or not data.startswith(b"\xff\xd8"):
        return None
    check_size(stream.height, stream.width, 1, stream.samples)
    check_ratio(2 * stream.height * stream.width * stream.samples, len(data))
    if stream.samples not in (1, 3):
        raise RefusedError(f"a JPEG of {stream.bits} bits with {stream.samples} samples a pixel, expected gray or RGB")
    if not jpeg_ends(data):
        raise RefusedError("a JPEG that is cut short")
    imagecodecs = require("imagecodecs", "train")
    pixels = imagecodecs.jpegls_decode(data) if stream.jpeg_ls else imagecodecs.jpeg_decode(data)
    pixels = np.ascontiguousarray(oriented(pixels, _orientation(partial(_exif, stream.exif))))
    return Scan(pixels[None], "frames", bit_levels(pixels.dtype, stream.bits), (0,))


def _to_array(image: Any, path: str | os.PathLike[str]) -> np.ndarray:
    """[height, width] or [height, width, 3], uint8."""
    if image.mode in ("L", "1"):
        gray = np.array(image.convert("L"))
        transparent = image.info.get("transparency")
        if image.format == "PNG" and isinstance(transparent, int):
            # The file names it before its samples are brought to 8 bits; Pillow brings that of one bit there itself.
            scale = 1 if image.mode == "1" else 255 // ((1 << _png_depth(path)) - 1)
            gray[gray == transparent * scale] = 0
        return gray
    if image.mode == "LA":
        gray, alpha = np.moveaxis(np.asarray(image), -1, 0)
        return over_black(gray, alpha, 255)
    if image.has_transparency_data:
        rgba = np.asarray(image.convert("RGBA"))
        if image.format == "BMP" and not rgba[..., 3].any():  # many writers leave the fourth byte empty
            return rgba[..., :3]
        return over_black(rgba[..., :3], rgba[..., 3], 255)
    return np.asarray(image.convert("RGB"))


def _exif(segment: bytes) -> Any:
    exif = require("PIL.Image", "train").Exif()
    exif.load(segment)
    return exif


def _orientation(read_exif: Callable[[], Any]) -> int:
    try:
        return int(read_exif().get(_ORIENTATION, 1))
    except Exception:  # a broken note about the picture does not make the picture unreadable
        return 1
