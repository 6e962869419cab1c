"""Pixels to stored bytes and back: quantised, then a TIFF of one strip.

The strip is compressed by Zstandard after TIFF's horizontal predictor (each sample less that of the pixel to its
left): what Pillow from 12.0 on, tifffile and Hugging Face's `datasets` open, and what decodes several times as fast
as a PNG of the same size. The header is written here and is always of the same layout, so that a reader compares it
whole with what the image's size and depth ask for: no byte of it may differ. The strip's CRC-32 stands in it.
"""

import io
import math
import struct
import threading
import zlib
from types import ModuleType

import numpy as np

from dexcore.checks import check_kind, check_whole
from dexcore.extras import MissingExtraError, require

# Higher levels make 16-bit gray somewhat smaller, other images no smaller, and take several times as long to encode.
_LEVEL = 1
_ZSTANDARD, _HORIZONTAL, _BLACK_IS_ZERO, _RGB = 50000, 2, 1, 2
_SHORT, _LONG = 3, 4
_CRC_TAG = 65000  # of those that TIFF leaves for private use: CRC-32 of the strip
_ENTRIES = 12
_WIDTH_AT, _HEIGHT_AT, _CHANNELS_AT = (8 + 2 + 12 * entry + 8 for entry in (0, 1, 6))
_BITS_AT = 8 + 2 + 12 * _ENTRIES + 4  # three numbers do not fit into an entry: they stand behind the directory
_HEADER_BYTES = _BITS_AT + 6 + 4  # the strip begins at a multiple of 8

_of_thread = threading.local()


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
    """Encode uint8 [H, W] or [H, W, 3] (RGB), or uint16 [H, W]: always to the same bytes."""
    imagecodecs = require("imagecodecs", "train")
    little_endian = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("<"))
    strip = imagecodecs.zstd_encode(imagecodecs.delta_encode(little_endian, axis=1), level=_LEVEL)
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    return _header(pixels.shape[:2], channels, 8 * pixels.itemsize, len(strip), zlib.crc32(strip)) + strip


def decode(data: memoryview | bytes, shape: tuple[int, int], bit_depth: int) -> np.ndarray:
    """Decode what `encode` made, or a PNG, as stores of version 1 hold them.

    Nothing is decoded before the size, the depth and the checksum are found to be right.

    Args:
        data: the file.
        shape: the height and width it must have.
        bit_depth: 8 or 16, which it must have.

    Returns:
        uint8 or uint16 [H, W], or uint8 [H, W, 3]; its own memory.

    Raises:
        ValueError: the data does not decode, or to another shape or depth.
    """
    data = memoryview(data).cast("B")  # Arrow's buffers are of signed bytes
    if bit_depth not in (8, 16):
        raise ValueError(f"has a bit depth of {bit_depth}, expected 8 or 16")
    if data[:4] == b"II*\0":
        return _decode_tiff(data, shape, bit_depth)
    return _decode_by_pillow(data, "PNG", shape, bit_depth)


def _header(shape: tuple[int, ...], channels: int, bit_depth: int, strip_bytes: int, crc: int) -> bytes:
    """All that stands before the strip."""
    height, width = shape
    entries = [  # a short fills the first half of four bytes
        (256, _LONG, 1, width),
        (257, _LONG, 1, height),
        (258, _SHORT, channels, bit_depth if channels == 1 else _BITS_AT),
        (259, _SHORT, 1, _ZSTANDARD),
        (262, _SHORT, 1, _BLACK_IS_ZERO if channels == 1 else _RGB),
        (273, _LONG, 1, _HEADER_BYTES),
        (277, _SHORT, 1, channels),
        (278, _LONG, 1, height),  # rows in the strip
        (279, _LONG, 1, strip_bytes),
        (284, _SHORT, 1, 1),  # the channels of a pixel stand side by side
        (317, _SHORT, 1, _HORIZONTAL),
        (_CRC_TAG, _LONG, 1, crc),
    ]
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    bits = struct.pack("<3H", *[bit_depth] * 3) if channels == 3 else bytes(6)
    return struct.pack("<2sHIH", b"II", 42, 8, _ENTRIES) + directory + bytes(4) + bits + bytes(4)


def _decode_tiff(data: memoryview, shape: tuple[int, int], bit_depth: int) -> np.ndarray:
    strip = data[_HEADER_BYTES:]
    if len(strip) == 0:
        raise ValueError(f"is no readable TIFF: {len(data)} bytes, expected more than {_HEADER_BYTES}")
    width, height = (struct.unpack_from("<I", data, place)[0] for place in (_WIDTH_AT, _HEIGHT_AT))
    if (height, width) != shape:
        raise ValueError(f"is {height} x {width} pixels, expected {shape[0]} x {shape[1]}")
    codecs = _imagecodecs()
    crc = codecs.deflate_crc32(strip) if codecs else zlib.crc32(strip)
    channels = 3 if data[_CHANNELS_AT] == 3 else 1
    if data[:_HEADER_BYTES] != _header(shape, channels, bit_depth, len(strip), crc):
        other = 24 - bit_depth
        if data[:_HEADER_BYTES] == _header(shape, channels, other, len(strip), crc):
            raise ValueError(f"holds {other} bit pixels, expected {bit_depth} bit")
        raise ValueError("is no readable TIFF: its header or its checksum is damaged")
    if codecs is None:
        return _decode_by_pillow(data, "TIFF", shape, bit_depth)
    dtype = np.dtype(np.uint8 if bit_depth == 8 else "<u2")
    full = (*shape, 3) if channels == 3 else shape
    flat = _scratch(math.prod(full) * dtype.itemsize)
    try:
        size = len(codecs.zstd_decode(strip, out=flat))
    except Exception as error:  # imagecodecs' error has the class of its codec
        raise ValueError(f"is no readable TIFF: {error}") from error
    if size != len(flat):
        raise ValueError(f"is no readable TIFF: holds {size} bytes of pixels, expected {len(flat)}")
    pixels = codecs.delta_decode(flat.view(dtype).reshape(full), axis=1)
    return pixels.astype(dtype.newbyteorder("="), copy=False)


def _scratch(size: int) -> np.ndarray:
    """Memory of this thread that stays in the processor's cache: new memory costs a sixth of the time to decode."""
    if len(getattr(_of_thread, "memory", ())) < size:
        _of_thread.memory = np.empty(size, np.uint8)
    return _of_thread.memory[:size]


def _imagecodecs() -> ModuleType | None:
    """Several times as fast as Pillow, which reads where it is missing."""
    try:
        return require("imagecodecs", "train")
    except MissingExtraError:
        return None


def _decode_by_pillow(data: memoryview, kind: str, shape: tuple[int, int], bit_depth: int) -> np.ndarray:
    image_module = require("PIL.Image", "train")
    try:
        with image_module.open(io.BytesIO(data), formats=(kind,)) as image:
            if (image.height, image.width) != shape:
                raise ValueError(f"{image.height} x {image.width} pixels, expected {shape[0]} x {shape[1]}")
            pixels = np.array(image)
    except Exception as error:  # Pillow raises many types on broken files
        raise ValueError(f"is no readable {kind}: {error}") from error
    if pixels.dtype != (np.uint8 if bit_depth == 8 else np.uint16):
        raise ValueError(f"holds {pixels.dtype} pixels, expected {bit_depth} bit")
    return pixels
