"""What NRRD and MetaImage share: a text header about one block of numbers, raw or compressed, and a grid in the body.

Read here rather than by ITK, which accepts flipped bytes in compressed data without a word (it skips their checksums),
writes to the terminal, and ends the process at names that are not UTF-8.
"""

import bz2
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from dexcore.data.readers.scan import RefusedError, Scan, check_ratio, check_size, make_finite, native
from dexcore.extras import require

Encoding = Literal["raw", "zlib", "bzip2", "text", "hex"]
_CHUNK_BYTES = 1 << 20
_MAX_TEXT_BYTES = 1 << 26


@dataclass(frozen=True)
class Grid:
    """A block of numbers, the first axis the fastest.

    Attributes:
        sizes: of all axes.
        dtype: of the numbers, with its byte order.
        directions: for each axis its step in mm towards the patient's (left, back, head), or as many numbers as the
            picture has axes where it does not lie in a body; None for an axis of channels or of volumes.
        channels: the axis of red, green and blue, if there is one.
        file: what holds the numbers.
        start: where in it, in bytes; negative: at its end.
        encoding: how they lie there.
        skip: bytes before the first number, after decompression.
        spaced: whether the file says its spacing; if not, the steps are 1.
    """

    sizes: tuple[int, ...]
    dtype: np.dtype
    directions: tuple[np.ndarray | None, ...]
    channels: int | None
    file: Path
    start: int
    encoding: Encoding
    skip: int = 0
    spaced: bool = True


@contextmanager
def numbers_in_words() -> Iterator[None]:
    """What Python says of a word that is no number repeats it, and it may be a patient's name."""
    try:
        yield
    except (ValueError, OverflowError):
        raise RefusedError("a word where its header, or its text, should hold a number") from None


def beside(path: str | os.PathLike[str], name: str) -> Path:
    """The data file that a header names: one file in the header's own folder.

    Raises:
        RefusedError: a list or a pattern of files, or a file elsewhere, or none. The name is not in it: it may be a
            patient's.
    """
    if name.split()[:1] == ["LIST"] or "%" in name:
        raise RefusedError("its numbers lie in a list of files, expected one file")
    if not name or name in (".", "..") or "/" in name or "\\" in name or "\0" in name or ":" in name:
        raise RefusedError("the header names a data file outside of its folder")
    file = Path(path).parent / name
    if not file.is_file():
        raise RefusedError("the data file that its header names does not lie beside it")
    return file


def grid_scan(grid: Grid, volume: int) -> Scan:
    """Read one volume (gray; oriented as the body), or one picture or stack of pictures (RGB, or of two axes).

    Raises:
        RefusedError: neither, larger than the file can hold, over a limit, or truncated.
        Exception: zlib and bz2 raise more on broken data.
    """
    spatial = [axis for axis, direction in enumerate(grid.directions) if direction is not None]
    others = [axis for axis in range(len(grid.sizes)) if axis not in spatial and axis != grid.channels]
    interleaved = others == [0]  # as 3D Slicer writes sequences: the volumes' voxels side by side
    if len(spatial) not in (2, 3) or not (interleaved or not others or others == [len(grid.sizes) - 1]):
        raise RefusedError(
            f"sizes {grid.sizes}, expected two or three axes of space, channels before, volumes before or behind"
        )
    shape = [grid.sizes[axis] for axis in spatial]
    channels = 1 if grid.channels is None else grid.sizes[grid.channels]
    if channels != 1 and (channels != 3 or grid.dtype.newbyteorder("=") not in (np.uint8, np.uint16)):
        raise RefusedError(f"{channels} numbers of {grid.dtype} a pixel, expected one, or RGB of 8 or 16 bits")
    volumes = int(np.prod([grid.sizes[axis] for axis in others], dtype=object))
    check_size(shape[1], shape[0], shape[2] if len(shape) == 3 else 1, channels)
    if volume >= max(volumes, 1):
        raise RefusedError(f"volume {volume} was asked for, the file holds {volumes}")
    count = channels * int(np.prod(shape, dtype=object))
    if interleaved:
        check_size(shape[1], shape[0], volumes * (shape[2] if len(shape) == 3 else 1), channels)
        block = native(_read(grid, 0, 1, count * volumes)[volume::volumes].copy()).reshape(grid.sizes[1:], order="F")
    else:
        block = native(_read(grid, volume, volumes, count))
        block = block.reshape(grid.sizes[: len(grid.sizes) - len(others)], order="F")
    directions = np.stack([direction for direction in grid.directions if direction is not None], axis=1)
    if channels == 3 or len(shape) == 2:
        scan = _frames(block, grid.channels if channels == 3 else None, len(shape), directions)
    else:
        scan = _volume(block.reshape(shape, order="F"), directions)
    return replace(scan, volumes=volumes, spacing=scan.spacing if grid.spaced else None)


def _frames(block: np.ndarray, channels: int | None, axes: int, directions: np.ndarray) -> Scan:
    if channels is not None:
        block = np.moveaxis(block, channels, 0)
    block = block.reshape(((3,) if channels is not None else (1,)) + block.shape[-axes:], order="F")
    pixels = block.T if axes == 3 else block.T[None]  # [frames, height, width, channels]
    pixels = pixels if channels is not None else pixels[..., 0]
    pixels = np.ascontiguousarray(pixels)
    levels = (0.0, float(np.iinfo(pixels.dtype).max)) if pixels.dtype in (np.uint8, np.uint16) else None
    steps = np.linalg.norm(directions, axis=0)
    spacing = (float(steps[1]), float(steps[0])) if _sound(steps[:2]) else None
    return Scan(make_finite(pixels), "frames", levels, tuple(range(len(pixels))), spacing=spacing)


def _volume(block: np.ndarray, directions: np.ndarray) -> Scan:
    """Turned to x right, y front, z head along the axes that are closest, as NIfTI is."""
    nibabel = require("nibabel", "data")
    steps = np.linalg.norm(directions, axis=0)
    if directions.shape != (3, 3) or not _sound(steps) or abs(np.linalg.det(directions / steps)) < 1e-3:
        raise RefusedError("the directions of its axes span no space")
    affine = np.eye(4)
    affine[:3, :3] = np.diag([-1, -1, 1]) @ directions
    orientation = nibabel.orientations.io_orientation(affine)
    turned = nibabel.orientations.apply_orientation(block, orientation)
    spacing = np.empty(3)
    spacing[orientation[:, 0].astype(int)] = steps
    return Scan(make_finite(turned), "volume", spacing=tuple(map(float, spacing)))


def _sound(steps: np.ndarray) -> bool:
    return bool(np.isfinite(steps).all() and (steps > 0).all())


def _read(grid: Grid, volume: int, volumes: int, count: int) -> np.ndarray:
    """The numbers of one volume."""
    size = count * grid.dtype.itemsize
    total = grid.skip + size * volumes
    with open(grid.file, "rb") as file:
        held = file.seek(0, os.SEEK_END) - max(grid.start, 0)
        if grid.encoding == "raw":
            first = grid.start + grid.skip if grid.start >= 0 else held - total
            if total > held or first < 0:
                raise RefusedError(f"the header claims {total} bytes, the file holds {max(held, 0)}")
            file.seek(first + volume * size)
            return np.fromfile(file, grid.dtype, count)
        if grid.start < 0:
            raise RefusedError("numbers at the end of the file, expected them behind the header")
        file.seek(grid.start)
        if grid.encoding == "text":
            if not 2 * count * volumes - 1 <= held <= _MAX_TEXT_BYTES:
                raise RefusedError(f"{count * volumes} numbers in {held} letters")
            with numbers_in_words():
                numbers = np.array(file.read().split()[volume * count : (volume + 1) * count], np.float64)
            if len(numbers) < count:
                raise RefusedError(f"{len(numbers)} numbers, the header claims {count}")
            return numbers.astype(grid.dtype)
        if grid.encoding == "hex":
            if not 2 * total <= held <= _MAX_TEXT_BYTES:
                raise RefusedError(f"{total} bytes in {held} letters")
            with numbers_in_words():
                data = bytes.fromhex(file.read().decode("ascii"))
            if len(data) != total:
                raise RefusedError(f"the header claims {total} bytes, the letters hold {len(data)}")
            return np.frombuffer(data, grid.dtype, count, grid.skip + volume * size)
        check_ratio(total, held)
        return np.frombuffer(_inflated(grid, file, grid.skip + volume * size, size, total), grid.dtype)


def _inflated(grid: Grid, file: BinaryIO, first: int, size: int, total: int) -> bytearray:
    """``size`` of ``total`` bytes; all are inflated, since their checksum stands at the end."""
    kept, position = bytearray(size), 0
    for piece in _unzlib(file) if grid.encoding == "zlib" else _unbzip2(file):
        low, high = max(first - position, 0), min(first + size - position, len(piece))
        if low < high:
            kept[position + low - first : position + high - first] = piece[low:high]
        position += len(piece)
        if position > total:
            break
    if position != total:
        raise RefusedError(f"the header claims {total} bytes, the data inflate to {position}")
    return kept


def _unzlib(file: BinaryIO) -> Iterator[bytes]:
    inflater = zlib.decompressobj(32 + zlib.MAX_WBITS)  # with a header of zlib or of gzip
    while not inflater.eof:
        data = inflater.unconsumed_tail or file.read(_CHUNK_BYTES)
        piece = inflater.decompress(data, _CHUNK_BYTES)
        if not data and not piece and not inflater.eof:
            raise RefusedError("its compressed numbers are truncated")
        yield piece


def _unbzip2(file: BinaryIO) -> Iterator[bytes]:
    inflater = bz2.BZ2Decompressor()
    while not inflater.eof:
        data = file.read(_CHUNK_BYTES) if inflater.needs_input else b""
        if not data and inflater.needs_input:
            raise RefusedError("its compressed numbers are truncated")
        yield inflater.decompress(data, _CHUNK_BYTES)
