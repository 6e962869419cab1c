"""NIfTI volumes: one file, under gzip or not, or a .hdr/.img pair."""

import gzip
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dexcore.data.coded import Pixels
from dexcore.data.readers.gray_stack import GrayStack
from dexcore.data.readers.pixels import over_black
from dexcore.data.readers.scan import RefusedError, Scan, check_ratio, check_size, make_finite
from dexcore.extras import require

_HEADER_BYTES = {348: "Nifti1Header", 540: "Nifti2Header"}
_MM = {1: 1000.0, 3: 1e-3}  # xyzt_units: metres, micrometres; all others mean mm
_LABEL = 1002  # intent_code
_CIFTI = range(3000, 3100)
_VECTORS = (*range(1003, 1011), *range(2002, 2006))  # of which the fifth axis holds matrices, vectors or colours


def read_nifti(path: str | os.PathLike[str], volume: int = 0) -> Scan:
    """Read one NIfTI-1 or NIfTI-2 file, in the closest canonical orientation.

    The orientation is the sform's, or the qform's where the sform is not set, not finite or singular. A slope of zero
    or NaN scales nothing. NaN voxels become the smallest finite value. Voxels of 8 and 16 bits that the file does not
    scale stay integers; all others become float32. An image of two axes is a volume of one slice.

    Args:
        path: the file; of a pair the ``.hdr`` (or ``.hdr.gz``), with its ``.img`` (or ``.img.gz``) beside it.
        volume: of several (time points, diffusion directions), which is read. Under gzip all before it is inflated.

    Returns:
        A scan of layout "volume": [x, y, z], scaled by the file's slope and intercept, with spacing in mm. RGB voxels
        give layout "frames": the axial slices [z, height, width, 3], front on top and right on the left.

    Raises:
        RefusedError: complex voxels, several numbers a voxel, sform and qform both unfit, shorter than it says, a bomb,
            or over a limit.
        Exception: nibabel raises many more on broken files.
    """
    nibabel = require("nibabel", "data")
    header, pair = _header(nibabel, path)
    if int(header["intent_code"]) in _CIFTI:
        raise RefusedError("CIFTI, which holds brain connectivity and no image")
    shape, dtype = _shape(header), header.get_data_dtype()
    if len(shape) > 4 and shape[4] > 1 and int(header["intent_code"]) in _VECTORS:
        raise RefusedError(f"{shape[4]} numbers a voxel (a vector, a matrix or a colour), expected one")
    color = dtype.names is not None
    if not color and dtype.kind not in "iuf":
        raise RefusedError(f"voxels of type {dtype}, expected integers, floats or RGB")
    check_size(shape[0], shape[1], shape[2], 3 if color else 1)
    volumes = math.prod(shape[3:])
    if volume >= volumes:
        raise RefusedError(f"volume {volume} was asked for, the file holds {volumes}")
    orientation, norms = _orientation(nibabel, header)
    data_path = _pair_file(path) if pair else path
    start = 0 if pair else header.sizeof_hdr + 4
    start = max(start, _whole(float(header["vox_offset"]), "vox_offset"))
    nbytes = math.prod(shape[:3]) * dtype.itemsize
    with open(data_path, "rb") as file:
        compressed = _check_held(file, start + nbytes * volumes)
        with gzip.GzipFile(fileobj=file) if compressed else file as voxels:
            voxels.seek(start + nbytes * volume)
            scaling = None if color else _scaling(header)
            stack = _read_voxels(voxels, shape[:3], dtype, scaling)
            if volume == volumes - 1:
                voxels.read(1)  # the end of the file: gzip compares its checksum there
    metadata = {"Shape": " x ".join(map(str, shape))}
    if int(header["intent_code"]) == _LABEL:
        metadata["Intent"] = "label"
    canonical = _turned(stack, orientation)
    spacing = [0.0, 0.0, 0.0]
    for axis, norm in zip(orientation[:, 0], norms, strict=True):
        spacing[int(axis)] = norm
    if color:
        assert isinstance(canonical, np.ndarray)
        axial = np.ascontiguousarray(canonical.transpose(2, 1, 0, 3)[:, ::-1, ::-1])
        frames = tuple(range(len(axial)))
        return Scan(axial, "frames", (0.0, 255.0), frames, metadata, (spacing[1], spacing[0]), volumes=volumes)
    return Scan(canonical, "volume", None, None, metadata, (spacing[0], spacing[1], spacing[2]), volumes=volumes)


def like_nifti(path: str | os.PathLike[str], voxels: np.ndarray) -> Any:
    """An image of nibabel's with other voxels in the geometry of a NIfTI file: its axes, affine, forms and units.

    Args:
        path: as for `read_nifti`.
        voxels: labels [x, y, z] of unsigned integers, of the shape that `read_nifti` gives.

    Raises:
        ValueError: they have another shape.
        RefusedError: as `read_nifti`.
    """
    nibabel = require("nibabel", "data")
    header, _ = _header(nibabel, path)
    orientation, _ = _orientation(nibabel, header)
    own = _in_file_order(voxels, orientation)
    shape = _shape(header)[:3]
    if own.shape[::-1] != shape:
        raise ValueError(f"voxels have shape {own.shape[::-1]} in the file's order, {path} has {shape}")
    kind = nibabel.Nifti2Image if header.sizeof_hdr == 540 else nibabel.Nifti1Image
    header = header.copy()
    header.set_data_shape(shape)
    header.set_data_dtype(voxels.dtype)
    header.set_slope_inter(1, 0)
    header["cal_min"] = header["cal_max"] = 0
    header.set_intent("label", name="")
    return kind(np.ascontiguousarray(own.T), None, header)


def _in_file_order(canonical: np.ndarray, orientation: np.ndarray) -> np.ndarray:
    """The inverse of `_turned`: the body's [x, y, z] to the [z, y, x] of the file."""
    axes = [2 - int(np.argmax(orientation[:, 0] == axis)) for axis in range(3)]
    stack = canonical.transpose(np.argsort(axes))
    return stack[tuple(slice(None, None, -1 if turn < 0 else 1) for turn in orientation[::-1, 1])]


def _header(nibabel: Any, path: str | os.PathLike[str]) -> tuple[Any, bool]:
    """The header, and whether its voxels lie in another file."""
    with open(path, "rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        with gzip.GzipFile(fileobj=file) if compressed else file as content:
            data = content.read(540)
    sizes = [size for order in ("little", "big") if (size := int.from_bytes(data[:4], order)) in _HEADER_BYTES]
    if not sizes or len(data) < sizes[0]:
        raise RefusedError(f"{len(data)} bytes, expected NIfTI's header of 348 or 540")
    header = getattr(nibabel, _HEADER_BYTES[sizes[0]])(data[: sizes[0]], check=False)
    magic = bytes(header["magic"])[:2]
    if magic not in (b"n+", b"ni"):
        raise RefusedError(f"magic {magic!r}, expected NIfTI's")
    return header, magic == b"ni"


def _pair_file(path: str | os.PathLike[str]) -> Path:
    """Where the voxels of a pair lie."""
    header = Path(path)
    header = header.with_suffix("") if header.suffix.lower() == ".gz" else header
    if header.suffix.lower() == ".hdr":
        for suffix in (".img", ".img.gz", ".IMG", ".IMG.GZ"):
            if header.with_suffix(suffix).is_file():
                return header.with_suffix(suffix)
    raise RefusedError("the header of a .hdr/.img pair, expected under the name .hdr with its .img beside it")


def _shape(header: Any) -> tuple[int, ...]:
    """Three axes and more."""
    dim = [int(side) for side in header["dim"]]
    if not 2 <= dim[0] <= 7:
        raise RefusedError(f"{dim[0]} axes, expected 2 to 7")
    shape = (*dim[1 : dim[0] + 1], 1)[: max(3, dim[0])]
    if min(shape) < 1:
        raise RefusedError(f"shape {shape}, expected at least one voxel along each axis")
    return shape


def _whole(value: float, name: str) -> int:
    if not (math.isfinite(value) and 0 <= value < 1 << 40):
        raise RefusedError(f"{name} is {value}, expected a number of bytes")
    return int(value)


def _orientation(nibabel: Any, header: Any) -> tuple[np.ndarray, list[float]]:
    """nibabel's orientation of the file's axes, and the voxels' size along each in mm."""
    names = {"sform": header["sform_code"], "qform": header["qform_code"]}
    affines = {name: _sform(header) if name == "sform" else _qform(header) for name, code in names.items() if code > 0}
    fit = [affine for affine in affines.values() if _is_fit(affine)]
    if affines and not fit:
        words = [f"the {name} {'cannot be used' if name in affines else 'is not set'}" for name in names]
        raise RefusedError(f"{' and '.join(words)}, expected finite axes that are not in one plane")
    affine = fit[0] if fit else _base(header)
    if not _is_fit(affine):
        raise RefusedError(f"neither sform nor qform, and voxels of {header['pixdim'][1:4]}, expected their size")
    unit = _MM.get(int(header["xyzt_units"]) & 7, 1.0)
    norms = [float(np.linalg.norm(affine[:3, axis])) * unit for axis in range(3)]
    return nibabel.orientations.io_orientation(affine), norms


def _sform(header: Any) -> np.ndarray:
    return np.array([header["srow_x"], header["srow_y"], header["srow_z"], [0, 0, 0, 1]], np.float64)


def _qform(header: Any) -> np.ndarray:
    """The axes from a unit quaternion and the voxel size, as nifti1.h defines them; the position is not needed."""
    b, c, d = (float(header[f"quatern_{letter}"]) for letter in "bcd")
    rest = 1 - (b * b + c * c + d * d)
    if not rest > -1e-4:  # also NaN; below zero by more than rounding it is no rotation
        return np.full((4, 4), np.nan)
    a = math.sqrt(max(0.0, rest))
    rotation = [
        [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
        [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
        [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
    ]
    sizes = np.abs(np.array(header["pixdim"][1:4], np.float64))
    if header["pixdim"][0] < 0:  # qfac; 0 means 1
        sizes[2] = -sizes[2]
    affine = np.eye(4)
    affine[:3, :3] = np.array(rotation) * sizes
    return affine


def _base(header: Any) -> np.ndarray:
    """Neither form: Analyze's convention, x to the left."""
    sizes = np.abs(np.array(header["pixdim"][1:4], np.float64))
    return np.diag([-sizes[0], sizes[1], sizes[2], 1])


def _is_fit(affine: np.ndarray) -> bool:
    axes = affine[:3, :3]
    with np.errstate(all="ignore"):
        norms = np.linalg.norm(axes, axis=0)
        if not (np.isfinite(norms).all() and norms.all()):
            return False
        return abs(np.linalg.det(axes / norms)) > 1e-3


def _check_held(file: BinaryIO, declared: int) -> bool:
    """Whether the file is compressed; refuse one that cannot hold what its header claims, or is a bomb."""
    held = os.fstat(file.fileno()).st_size
    compressed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    if compressed:
        check_ratio(declared, held)
    elif declared > held:
        raise RefusedError(f"the header claims {declared} bytes, the file can hold {held}")
    return compressed


def _turned(stack: Pixels, orientation: np.ndarray) -> Pixels:
    """[z, y, x] of the file, or with channels behind, to the body's [x, y, z]: a view."""
    axes = [2 - int(np.argmax(orientation[:, 0] == axis)) for axis in range(3)]
    turns: list[slice] = [slice(None, None, -1 if turn < 0 else 1) for turn in orientation[::-1, 1]]
    return stack[tuple(turns)].transpose(*axes, *range(3, stack.ndim))


def _scaling(header: Any) -> tuple[float, float] | None:
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if not math.isfinite(slope) or slope == 0:
        return None
    intercept = intercept if math.isfinite(intercept) else 0.0
    return None if (slope, intercept) == (1, 0) else (slope, intercept)


def _read_voxels(file: Any, shape: tuple[int, ...], dtype: np.dtype, scaling: tuple[float, float] | None) -> Pixels:
    """The voxels [z, y, x] or, of RGB, [z, y, x, 3], finite, plane by plane: there is no second copy."""
    width, height, depth = shape
    planes = (data.reshape(height, width) for data in _planes(file, height * width, dtype, depth))
    if dtype.names is not None:
        colors = np.empty((depth, height, width, 3), np.uint8)
        for number, plane in enumerate(planes):
            samples = plane.view(np.uint8).reshape(height, width, dtype.itemsize)
            rgb = samples[..., :3]
            colors[number] = over_black(rgb, samples[..., 3], 255) if dtype.itemsize == 4 else rgb
        return colors
    if scaling is None:
        small = dtype.kind in "iu" and dtype.itemsize <= 2
        voxels = np.empty((depth, height, width), dtype.newbyteorder("=") if small else np.float32)
        for number, plane in enumerate(planes):
            voxels[number] = plane
        return make_finite(voxels)
    stack = GrayStack(depth, height, width)
    for number, plane in enumerate(planes):
        stack.put(number, (plane * scaling[0] + scaling[1]).astype(np.float32), plane)
    stack.make_finite()
    return stack.pixels()


def _planes(file: Any, size: int, dtype: np.dtype, depth: int) -> Iterator[np.ndarray]:
    for number in range(depth):
        data = file.read(size * dtype.itemsize)
        if len(data) < size * dtype.itemsize:
            raise RefusedError(f"the header claims {depth} planes, the file ends in number {number}")
        yield np.frombuffer(data, dtype)
