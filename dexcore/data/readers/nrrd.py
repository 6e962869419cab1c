"""NRRD volumes and pictures: ``.nrrd``, and ``.nhdr`` with its numbers in a file beside it."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from dexcore.data.readers.grid import Encoding, Grid, beside, grid_scan, numbers_in_words
from dexcore.data.readers.scan import RefusedError, Scan

_MAX_HEADER_BYTES = 1 << 20
_TYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": ("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64", "int64_t"),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}
_DTYPES = {name: dtype for dtype, names in _TYPES.items() for name in names}
_ENCODINGS: dict[str, Encoding] = {"raw": "raw", "gzip": "zlib", "gz": "zlib", "bzip2": "bzip2", "bz2": "bzip2"}
_ENCODINGS |= {"text": "text", "txt": "text", "ascii": "text", "hex": "hex"}
_ORDERS: dict[str, Literal["<", ">"]] = {"little": "<", "big": ">"}
# What turns a space's first two axes to left and back. Other spaces are taken as they are, as ITK does.
_TO_LPS = {
    **dict.fromkeys(("right-anterior-superior", "ras", "right-anterior-superior-time", "rast"), (-1, -1)),
    **dict.fromkeys(("left-anterior-superior", "las", "left-anterior-superior-time", "last"), (1, -1)),
}
_COLORS = ("rgb-color", "3-color")
_VECTORS = ("vector", "3-vector")
_SPACE = ("", "???", "none", "domain", "space")
_Value = TypeVar("_Value", bound=str)
_UNIT = re.compile(r'"([^"]*)"')
_VECTOR = re.compile(r"\(([^()]*)\)|none", re.IGNORECASE)


def read_nrrd(path: str | os.PathLike[str], volume: int = 0) -> Scan:
    """Read a NRRD file.

    Args:
        path: the file; the data file of a ``.nhdr`` must lie in the same folder.
        volume: of several (an axis of lists, times or directions of diffusion), which is read.

    Returns:
        A scan of layout "volume" with spacing; of layout "frames" for two axes, and for RGB.

    Raises:
        RefusedError: a header that is not understood, numbers in another folder or in several files, more than the file
            can hold, or over a limit.
        Exception: what broken numbers make Python's parsers, zlib or bz2 raise.
    """
    fields, end = _header(path)
    with numbers_in_words():
        grid = _grid(path, fields, end)
    return grid_scan(grid, volume)


def _grid(path: str | os.PathLike[str], fields: dict[str, str], end: int) -> Grid:
    sizes = tuple(int(size) for size in fields["sizes"].split())
    if len(sizes) != int(fields["dimension"]) or min(sizes) < 1:
        raise RefusedError(f"sizes {sizes}, expected {fields['dimension']} of at least 1")
    dtype = np.dtype(_known(_DTYPES, fields, "type"))
    encoding = _known(_ENCODINGS, fields, "encoding")
    if dtype.itemsize > 1 and encoding != "text":
        dtype = dtype.newbyteorder(_known(_ORDERS, fields, "endian"))
    directions, channels, spaced = _axes(fields, sizes, dtype)
    file, start = Path(path), end
    if "data file" in fields:
        file, start = beside(path, fields["data file"]), 0
    skip = int(fields.get("byte skip", 0))
    if skip < 0:
        skip, start = 0, -1
    else:
        start = _skip_lines(file, start, int(fields.get("line skip", 0)))
    return Grid(sizes, dtype, directions, channels, file, start, encoding, skip, spaced)


def _header(path: str | os.PathLike[str]) -> tuple[dict[str, str], int]:
    """The fields by their names in small letters, and where the header ends."""
    with open(path, "rb") as file:
        text = file.read(_MAX_HEADER_BYTES)
    blank = re.search(rb"\r?\n\r?\n", text)
    end = blank.end() if blank else len(text)
    lines = text[:end].decode("latin-1").splitlines()
    fields = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if colon and not line.startswith("#") and not value.startswith("="):
            fields[name.strip().lower()] = value.strip()
    for old, new in (("datafile", "data file"), ("lineskip", "line skip"), ("byteskip", "byte skip")):
        if old in fields:
            fields[new] = fields.pop(old)
    missing = [name for name in ("dimension", "type", "encoding", "sizes") if name not in fields]
    if missing:
        raise RefusedError(f"a NRRD header without {', '.join(missing)}")
    return fields, end


def _known(table: Mapping[str, _Value], fields: Mapping[str, str], name: str) -> _Value:
    value = fields.get(name, "").lower()
    if value not in table:
        raise RefusedError(f"its {name} is none of {', '.join(table)}")
    return table[value]


def _axes(
    fields: Mapping[str, str], sizes: tuple[int, ...], dtype: np.dtype
) -> tuple[tuple[np.ndarray | None, ...], int | None, bool]:
    """The direction of each axis in mm towards left, back and head, the axis of colours, whether a spacing is known."""
    kinds = [kind.lower() for kind in fields.get("kinds", "").split()] or [""] * len(sizes)
    if len(kinds) != len(sizes):
        raise RefusedError(f"{len(kinds)} kinds of {len(sizes)} axes")
    channels = None
    if kinds[0] in _COLORS or (
        kinds[0] in _VECTORS and sizes[0] == 3 and dtype.newbyteorder("=") in (np.uint8, np.uint16)
    ):
        channels = 0
    directions: list[np.ndarray | None] = [None] * len(sizes)
    spaced = True
    if "space directions" in fields:
        found = [match[1] for match in _VECTOR.finditer(fields["space directions"])]
        directions = [None if step is None else np.array(step.split(","), float) for step in found]
        if len(directions) != len(sizes) or len({len(step) for step in directions if step is not None}) != 1:
            raise RefusedError("space directions that do not match the axes")
        signs = _TO_LPS.get(fields.get("space", "").lower(), (1, 1))
        for step in directions:
            if step is not None:
                step[:2] *= signs
        # Of space and time in four numbers, the axis of time moves nowhere in space.
        directions = [
            None if step is None or not (len(step) < 4 or step[:3].any()) else step[:3] for step in directions
        ]
        spaced = set(_UNIT.findall(fields.get("space units", ""))) <= {"mm"}
    else:
        steps = [float(step) for step in fields.get("spacings", "nan " * len(sizes)).split()]
        spatial = [axis for axis in range(len(sizes)) if axis != channels and kinds[axis] in _SPACE][:3]
        spaced = all(np.isfinite(steps[axis]) for axis in spatial)
        for unit, axis in zip(np.eye(len(spatial)), spatial, strict=True):
            directions[axis] = unit * (steps[axis] if spaced else 1)
    for axis, step in enumerate(directions):
        if step is None and axis != channels and not _counts_volumes(kinds[axis], sizes[axis]):
            raise RefusedError(f"axis {axis} counts numbers a pixel, expected space, RGB, a list or time")
    return tuple(directions), channels, spaced


def _counts_volumes(kind: str, size: int) -> bool:
    """A short vector is a displacement or a gradient, no list of images."""
    return kind in ("list", "time", *_SPACE) or (kind == "vector" and size > 4)


def _skip_lines(file: Path, start: int, lines: int) -> int:
    if not lines:
        return start
    with open(file, "rb") as data:
        data.seek(start)
        for _ in range(lines):
            if not data.readline():
                raise RefusedError(f"fewer lines than the {lines} that its header skips")
        return data.tell()
