"""NIfTI volumes."""

import os
from typing import Any

import numpy as np

from dexcore.data.readers.scan import RefusedError, Scan, check_size, make_finite
from dexcore.extras import require

_DEFLATE_RATIO = 1032  # the most that deflate can shrink anything


def read_nifti(path: str | os.PathLike[str], volume: int = 0) -> Scan:
    """Read one NIfTI-1 or NIfTI-2 file, in the closest canonical orientation.

    NaN voxels become the smallest finite value.

    Args:
        path: the file.
        volume: of several (time points, diffusion directions), which is read.

    Returns:
        A scan of layout "volume": float32 [x, y, z], scaled by the file's slope and intercept.

    Raises:
        RefusedError: not gray, not three-dimensional, larger than the file can hold, or over a limit.
        Exception: nibabel raises many more on broken files.
    """
    nibabel = require("nibabel", "data")
    image = nibabel.load(path)
    if not isinstance(image, nibabel.Nifti1Image):  # Nifti2Image is one too
        raise RefusedError(f"expected NIfTI, found {type(image).__name__}")
    shape, dtype = image.shape, image.get_data_dtype()
    if dtype.kind not in "iuf":
        raise RefusedError(f"voxels of type {dtype}, expected integers or floats")
    if len(shape) < 3:
        raise RefusedError(f"{len(shape)} axes, expected a volume of at least 3")
    check_size(shape[0], shape[1], shape[2])
    _check_declared_size(image, path)
    volumes = int(np.prod(shape[3:]))
    if volume >= volumes:
        raise RefusedError(f"volume {volume} was asked for, the file holds {volumes}")
    chosen = (..., *np.unravel_index(volume, shape[3:], order="F")) if volumes > 1 else (..., *(0 for _ in shape[3:]))
    voxels = np.asarray(image.dataobj[chosen], dtype=np.float32)
    orientation = nibabel.orientations.io_orientation(image.affine)
    voxels = nibabel.orientations.apply_orientation(voxels, orientation)
    metadata = {"Shape": " x ".join(map(str, shape))}
    return Scan(make_finite(np.ascontiguousarray(voxels)), "volume", metadata=metadata, volumes=volumes)


def _check_declared_size(image: Any, path: str | os.PathLike[str]) -> None:
    declared = int(image.header["vox_offset"]) + image.get_data_dtype().itemsize * int(
        np.prod(image.shape, dtype=object)
    )
    compressed = os.fspath(path).lower().endswith(".gz")
    held = os.path.getsize(path) * (_DEFLATE_RATIO if compressed else 1)
    if declared > held:
        raise RefusedError(f"the header claims {declared} bytes, the file can hold {held}")
