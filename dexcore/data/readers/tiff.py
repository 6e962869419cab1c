"""TIFF files of every kind: sample formats, compressions, stacks, page types, colour."""

import json
import math
import os
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from dexcore.data.readers.codestream import jpeg_ends, read_codestream
from dexcore.data.readers.pixels import bit_levels
from dexcore.data.readers.scan import RefusedError, Scan, check_ratio, check_size, make_finite
from dexcore.data.readers.tiff_page import (
    JPEG,
    JPEG_2000_YCBCR,
    PALETTE,
    WHITE_IS_ZERO,
    YCBCR,
    as_shown,
    channels_of,
    page_bits,
    page_orientation,
    photometric_of,
    physical_spacing,
)
from dexcore.extras import require

# What pixels cannot be told without: size, depth, compression, colour, strips and tiles, Orientation, predictor.
_LAYOUT_TAGS = {*range(256, 260), 262, 266, 273, 274, *range(277, 280), 284, 317, 320, *range(322, 326), 338, 339}
_REDUCED, _MASK = 1, 4  # bits of NewSubfileType
# Compression: their streams hold a size of their own, for which a decoder takes memory.
_CODESTREAMS = {*JPEG, JPEG_2000_YCBCR, 33004, 33005, 34712, 34713}
_PILLOW_STREAMS = {34927: "WEBP", 34933: "PNG", 50001: "WEBP"}


def read_tiff(path: str | os.PathLike[str], every: int = 1) -> Scan:
    """Read a TIFF file with tifffile and imagecodecs.

    Orientation is applied, WhiteIsZero turned over (floats about their own ends). Palettes, CMYK and YCbCr become RGB;
    transparency is laid over black; all at the depth of the file. One bit becomes 0 and 255. Copies at a reduced size
    and masks are left out, also previews that do not say so: pages of at most half the size and of the same shape, no
    more of them than of the full ones. Stacks that ImageJ, tifffile or MetaMorph keep behind one directory, and
    volumetric ones (ImageDepth), give all their planes; a calibration by ImageJ (signed 16 bit) is applied.

    The levels are what the stored bits hold. The spacing is ImageJ's or OME's physical size, or a resolution in mm or
    micrometres; that in dots per inch or cm is left aside, since it mostly belongs to a screen or a printer.

    Args:
        path: the file.
        every: of a file of several planes, read one in this many.

    Returns:
        A scan of layout "frames": [frames, height, width] or [frames, height, width, 3] in the file's own type.

    Raises:
        RefusedError: pages that differ, colour of an unknown kind, over a limit, or cut short.
        Exception: tifffile and imagecodecs raise many more on broken files.
    """
    tifffile = require("tifffile", "data")
    require("imagecodecs", "data")
    with tifffile.TiffFile(path, _multifile=False) as tiff:
        pages = _pictures(list(tiff.pages))
        page = pages[0]
        declared = _declared_planes(tiff, page)
        stacked = declared > len(tiff.pages)
        if stacked:
            _check_stack(tiff, page, declared)
        depth = declared if stacked else page.imagedepth
        indices = tuple(range(0, depth * len(pages), every))
        turned = page_orientation(page)
        height, width = (page.imagewidth, page.imagelength) if turned >= 5 else (page.imagelength, page.imagewidth)
        check_size(height, width, len(indices), page.samplesperpixel)
        values = height * width * depth * len(pages) * page.samplesperpixel
        check_ratio(values * page_bits(page) // 8, tiff.filehandle.size)
        pixels: np.ndarray | None = None
        read, planes = -1, np.empty(0)
        for position, index in enumerate(indices):
            number, plane = divmod(index, depth)
            if stacked:
                planes, plane = _stacked_plane(tiff, page, plane), 0
            elif number != read:
                planes, read = _decoded(tiff, pages[number], tifffile), number
            picture = as_shown(pages[number], planes[plane])
            if pixels is None:
                pixels = np.empty((len(indices), *picture.shape), picture.dtype)
            if pixels.dtype != picture.dtype or pixels.shape[1:] != picture.shape:
                raise RefusedError(f"{_words(pages[number])}, expected {_words(page)} as before")
            pixels[position] = picture
        assert pixels is not None  # check_size lets no empty file pass
        calibration = tiff.imagej_metadata if page.is_imagej else None
        spacing = physical_spacing(page, calibration)
    bits = 8 * pixels.itemsize if photometric_of(page) == PALETTE else page_bits(page)
    levels = (0.0, 255.0) if pixels.dtype == np.uint8 and bits == 1 else bit_levels(pixels.dtype, bits)
    if photometric_of(page) == WHITE_IS_ZERO and pixels.dtype.kind == "f":
        _turn_over_floats(pixels)
    if calibration:
        pixels, levels = _calibrated(pixels, levels, calibration)
    return Scan(make_finite(pixels), "frames", levels, indices, spacing=spacing)


def _pictures(pages: list[Any]) -> list[Any]:
    """The pages that hold the file's pictures, of one size and type."""
    full = [page for page in pages if not int(page.subfiletype) & (_REDUCED | _MASK)]
    if not full and len(pages) == 1 and not int(pages[0].subfiletype) & _MASK and not pages[0].subifds:
        full = pages  # a writer's fault: there is nothing that it could be the reduced copy of
    if not full:
        raise RefusedError(f"{len(pages)} pages, expected one that is neither a reduced copy nor a mask")
    for page in full:
        _check_page(page)
    first = max(full, key=lambda page: page.imagewidth * page.imagelength)
    same = [page for page in full if _signature(page) == _signature(first)]
    others = [page for page in full if _signature(page) != _signature(first)]
    for page in others:
        if not _is_preview(page, first) or len(others) > len(same):
            base = full[0] if page is not full[0] else first
            raise RefusedError(f"{_words(page)}, expected the size and type of {_words(base)}")
    return same


def _signature(page: Any) -> tuple[Any, ...]:
    turned = photometric_of(page) == WHITE_IS_ZERO and page.dtype.kind == "f"
    return page.shaped[1:4], page.dtype, page.bitspersample, channels_of(page), page_orientation(page) >= 5, turned


def _is_preview(page: Any, full: Any) -> bool:
    if page.imagedepth != 1 or not (
        2 * page.imagewidth <= full.imagewidth and 2 * page.imagelength <= full.imagelength
    ):
        return False
    # The same shape: its length is what the full picture's would be at its width, but for a rounding.
    return abs(page.imagelength - page.imagewidth * full.imagelength / full.imagewidth) <= 1.5


def _words(page: Any) -> str:
    turned = f", Orientation {page_orientation(page)}" if page_orientation(page) > 1 else ""
    size = f"{page.imagelength} x {page.imagewidth} px"
    return f"page {page.index} of {size}, {page.samplesperpixel} x {page.dtype}{turned}"


def _check_page(page: Any) -> None:
    """Refuse by the header alone what cannot be decoded, or would take more memory than a picture needs."""
    _check_tags(page)
    if page.dtype is None or page.dtype.kind not in "biuf":
        name = f"sample format {int(page.sampleformat) if isinstance(page.sampleformat, int) else page.sampleformat}"
        raise RefusedError(f"page {page.index} has {name} of {page.bitspersample} bits, expected integers or floats")
    if not isinstance(page.bitspersample, int):
        raise RefusedError(f"page {page.index} has samples of {page.bitspersample} bits, expected one depth")
    check_size(page.imagelength, page.imagewidth, page.imagedepth, page.samplesperpixel)
    if page.is_tiled:
        check_size(page.tilelength, page.tilewidth, page.tiledepth, page.samplesperpixel)
    channels_of(page)


def _check_tags(page: Any) -> None:
    """Refuse a page whose tags are there and cannot be read: tifffile leaves them out, and others take their place."""
    file, form = page.parent.filehandle, page.parent.tiff
    file.seek(page.offset)
    (count,) = struct.unpack(form.tagnoformat, file.read(form.tagnosize))
    entries = file.read(count * form.tagsize)
    codes = {struct.unpack_from(f"{form.byteorder}H", entries, at)[0] for at in range(0, len(entries), form.tagsize)}
    lost = (codes & _LAYOUT_TAGS) - set(page.tags.keys())
    if lost:
        raise RefusedError(f"page {page.index} has tags that cannot be read: {', '.join(map(str, sorted(lost)))}")


def _declared_planes(tiff: Any, page: Any) -> int:
    """How many planes the description of the first page counts; 1 where it counts none."""
    first = tiff.pages.first
    if first.is_imagej:
        return int((tiff.imagej_metadata or {}).get("images", 1))
    if first.is_shaped:
        shape = json.loads(first.shaped_description).get("shape", ())
        values, of_page = math.prod(shape), math.prod(page.shape)
        tail = tuple(side for side in page.shape if side > 1)
        whole = tuple(side for side in shape if side > 1)
        return values // of_page if whole[len(whole) - len(tail) :] == tail else 1
    if first.is_stk and 33629 in first.tags:  # UIC2
        return int(first.tags[33629].count)
    return 1


def _check_stack(tiff: Any, page: Any, declared: int) -> None:
    """Refuse a stack behind one directory whose planes are not all there."""
    held = len(tiff.pages)
    if held == 1 and page.is_contiguous:
        held = (tiff.filehandle.size - page.dataoffsets[0]) // page.nbytes
    if held < declared:
        raise RefusedError(f"its description counts {declared} planes, the file holds {held}")


def _stacked_plane(tiff: Any, page: Any, plane: int) -> np.ndarray:
    file = tiff.filehandle
    file.seek(page.dataoffsets[0] + plane * page.nbytes)
    values = np.frombuffer(file.read(page.nbytes), page.dtype.newbyteorder(tiff.byteorder))
    return _planes_of(values.astype(page.dtype, copy=False).reshape(page.shaped))


def _planes_of(data: np.ndarray) -> np.ndarray:
    """tifffile's five axes (separate samples, depth, length, width, samples) to [depth, length, width, samples]."""
    return np.moveaxis(data, 0, -1).reshape(*data.shape[1:4], data.shape[0] * data.shape[4])


def _decoded(tiff: Any, page: Any, tifffile: Any) -> np.ndarray:
    """Decode a page: [depth, length, width, samples], in native byte order."""
    if photometric_of(page) == YCBCR and page.is_subsampled and page.compression not in JPEG:
        raise RefusedError(f"page {page.index} is subsampled YCbCr without JPEG, which is not read")
    _check_segments(tiff, page)
    data = page.asarray(squeeze=False, maxworkers=1)
    return _planes_of(data.astype(page.dtype.newbyteorder("="), copy=False))


def _check_segments(tiff: Any, page: Any) -> None:
    """Refuse strips and tiles that are missing or end after the file, and streams of another size than theirs.

    tifffile would put zeros for the first two; a decoder would take memory for the third.
    """
    size, expected = tiff.filehandle.size, math.prod(page.chunked)
    if page.is_contiguous:
        if page.dataoffsets[0] + page.nbytes > size:
            raise RefusedError(f"page {page.index} needs {page.nbytes} bytes, the file ends before")
        return
    segments = list(zip(page.dataoffsets, page.databytecounts, strict=False))[:expected]
    whole = [offset > 0 and count > 0 and offset + count <= size for offset, count in segments]
    if len(whole) < expected or not all(whole):
        raise RefusedError(f"page {page.index} has {sum(whole)} whole strips or tiles, expected {expected}")
    measure = stream_size(page)
    if measure is None:
        return
    rows, columns = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
    for offset, count in segments:
        tiff.filehandle.seek(offset)
        data = tiff.filehandle.read(count)
        if page.compression in JPEG and not jpeg_ends(data):
            raise RefusedError(f"page {page.index} holds a JPEG stream that is cut short")
        found = measure(data)
        if found is not None and (found[0] > rows or found[1] > columns):
            raise RefusedError(
                f"page {page.index} holds a stream of {found[0]} x {found[1]} pixels, "
                f"its strips or tiles have {rows} x {columns}"
            )


def stream_size(page: Any) -> Callable[[bytes], tuple[Any, ...] | None] | None:
    """What tells the (height, width, ...) that a compressed strip or tile claims by itself."""
    if page.compression in _CODESTREAMS:
        return read_codestream
    if page.compression not in _PILLOW_STREAMS:
        return None

    def pillow_size(data: bytes) -> tuple[int, int]:
        from io import BytesIO

        with require("PIL.Image", "train").open(BytesIO(data), formats=[_PILLOW_STREAMS[page.compression]]) as image:
            return image.height, image.width

    return pillow_size


def _turn_over_floats(pixels: np.ndarray) -> None:
    """Exchange black and white of finite values, in place."""
    ends = [
        (frame[finite].min(), frame[finite].max())
        for frame, finite in ((frame, np.isfinite(frame)) for frame in pixels)
        if finite.any()
    ]
    if ends:
        low, high = min(end[0] for end in ends), max(end[1] for end in ends)
        for frame in pixels:
            np.subtract(low + high, frame, out=frame)


def _calibrated(
    pixels: np.ndarray, levels: tuple[float, float] | None, imagej: dict[str, Any]
) -> tuple[np.ndarray, tuple[float, float] | None]:
    """ImageJ's straight line from stored values to the user's (it has no signed 16 bit and writes -32768 so)."""
    if imagej.get("cf") != 0 or "c0" not in imagej or "c1" not in imagej or pixels.ndim != 3:
        return pixels, levels
    intercept, slope = float(imagej["c0"]), float(imagej["c1"])
    if not (math.isfinite(intercept) and math.isfinite(slope) and slope):
        return pixels, levels
    out = pixels.astype(np.float32)
    out *= np.float32(slope)
    out += np.float32(intercept)
    if levels is None:
        return out, None
    ends = levels[0] * slope + intercept, levels[1] * slope + intercept
    return out, (min(ends), max(ends))
