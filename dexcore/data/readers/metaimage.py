"""MetaImage volumes and pictures: ``.mha``, and ``.mhd`` with its numbers in a file beside it."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from dexcore.data.readers.grid import Encoding, Grid, beside, grid_scan, numbers_in_words
from dexcore.data.readers.scan import RefusedError, Scan

_MAX_HEADER_BYTES = 1 << 16
_DTYPES = {
    **dict.fromkeys(("MET_CHAR", "MET_ASCII_CHAR"), "i1"),
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    **dict.fromkeys(("MET_INT", "MET_LONG"), "i4"),
    **dict.fromkeys(("MET_UINT", "MET_ULONG"), "u4"),
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_MODALITIES = {"MET_MOD_CT": "CT", "MET_MOD_MR": "MR", "MET_MOD_US": "US", "MET_MOD_NM": "NM"}
_ALIASES = {
    "ElementSize": "ElementSpacing",
    "Rotation": "TransformMatrix",
    "Orientation": "TransformMatrix",
    "ElementByteOrderMSB": "BinaryDataByteOrderMSB",
}


def read_metaimage(path: str | os.PathLike[str], volume: int = 0) -> Scan:
    """Read a MetaImage file.

    Args:
        path: the file; the data file of a ``.mhd`` must lie in the same folder.
        volume: of several (a fourth axis), which is read.

    Returns:
        A scan of layout "volume" with spacing; of layout "frames" for two axes, and for RGB.

    Raises:
        RefusedError: a header that is not understood, numbers in another folder or in several files, more than the file
            can hold, or over a limit.
        Exception: what broken numbers make Python's parsers or zlib raise.
    """
    fields, end = _header(path)
    with numbers_in_words():
        grid = _grid(path, fields, end)
    scan = grid_scan(grid, volume)
    modality = _MODALITIES.get(fields.get("Modality", ""))
    return scan if modality is None else replace(scan, metadata={"Modality": modality})


def _grid(path: str | os.PathLike[str], fields: dict[str, str], end: int) -> Grid:
    sizes = tuple(int(size) for size in fields["DimSize"].split())
    if len(sizes) != int(fields["NDims"]) or min(sizes) < 1:
        raise RefusedError(f"DimSize {sizes}, expected {fields['NDims']} of at least 1")
    kind = fields["ElementType"].upper().removesuffix("_ARRAY")
    if kind not in _DTYPES:
        raise RefusedError(f"its ElementType is none of {', '.join(_DTYPES)}")
    dtype = np.dtype(_DTYPES[kind]).newbyteorder(">" if _true(fields, "BinaryDataByteOrderMSB") else "<")
    directions = _directions(fields, len(sizes))
    channels = int(fields.get("ElementNumberOfChannels", 1))
    if channels != 1:
        sizes, directions = (channels, *sizes), (None, *directions)
    encoding: Encoding = "zlib" if _true(fields, "CompressedData") else "raw"
    if not _true(fields, "BinaryData", "True"):
        encoding = "text"
    file, start = Path(path), end
    if fields["ElementDataFile"].upper() != "LOCAL":
        file, start = beside(path, fields["ElementDataFile"]), int(fields.get("HeaderSize", 0))
    spaced = "ElementSpacing" in fields
    return Grid(sizes, dtype, directions, None if channels == 1 else 0, file, start, encoding, spaced=spaced)


def _header(path: str | os.PathLike[str]) -> tuple[dict[str, str], int]:
    """The fields, of which ElementDataFile is the last, and where the header ends."""
    fields: dict[str, str] = {}
    with open(path, "rb") as file:
        while "ElementDataFile" not in fields:
            line = file.readline(_MAX_HEADER_BYTES)
            if not line or file.tell() > _MAX_HEADER_BYTES:
                raise RefusedError("a MetaImage header without ElementDataFile")
            name, _, value = line.decode("latin-1").partition("=")
            fields[_ALIASES.get(name.strip(), name.strip())] = value.strip()
        end = file.tell()
    missing = [name for name in ("NDims", "DimSize", "ElementType") if name not in fields]
    if missing:
        raise RefusedError(f"a MetaImage header without {', '.join(missing)}")
    return fields, end


def _true(fields: dict[str, str], name: str, default: str = "False") -> bool:
    return fields.get(name, default)[:1].upper() in ("T", "1")


def _directions(fields: dict[str, str], axes: int) -> tuple[np.ndarray | None, ...]:
    """The direction of each axis in mm towards left, back and head; a fourth axis is time."""
    steps = [float(step) for step in fields.get("ElementSpacing", "1 " * axes).split()]
    turns = np.eye(axes)
    if "TransformMatrix" in fields:
        turns = np.array(fields["TransformMatrix"].split(), float).reshape(axes, axes)
    if len(steps) != axes:
        raise RefusedError(f"{len(steps)} spacings of {axes} axes")
    return tuple(steps[axis] * turns[axis, :3] if axis < 3 else None for axis in range(axes))
