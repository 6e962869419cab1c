"""What a file holds, as a hash: by it a mask or an image that was changed in its place is noticed."""

import hashlib
import time
from functools import lru_cache
from pathlib import Path

import numpy as np

from dexcore.data.readers.kind import Kind, file_kind
from dexcore.evaluate.tasks.pixels import read_labels
from dexcore.evaluate.tasks.places import located

# Kinds of which one file is all; others name further files, and are told by their pixels.
_ALONE = (Kind.PNG, Kind.JPEG, Kind.BMP, Kind.TIFF, Kind.DICOM, Kind.NUMPY)
_KNOWN = 1 << 16  # files whose hash is remembered: a task is opened more than once, and a volume has many slices
_TICK = 2 * 10**9  # nanoseconds: within the coarsest clock of a disk a file may be written twice at one time


def file_hash(file: Path) -> str | None:
    """SHA-256 of a file; None of a kind whose pixels may lie in another one.

    It is read again in this process only where its size or its time of change is another.

    Raises:
        OSError: it is missing, or cannot be read.
    """
    stat = file.stat()
    if abs(time.time_ns() - stat.st_mtime_ns) < _TICK:
        return _hashed(str(file))
    return _remembered(str(file), stat.st_size, stat.st_mtime_ns)


@lru_cache(_KNOWN)
def _remembered(file: str, size: int, changed: int) -> str | None:
    return _hashed(file)


def _hashed(file: str) -> str | None:
    if file_kind(file) not in _ALONE and not file.endswith((".nii", ".nii.gz", ".npz")):
        return None
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def pixels_hash(pixels: np.ndarray) -> str:
    """SHA-256 of an array: its type, shape and numbers."""
    digest = hashlib.sha256(f"{pixels.dtype.str} {pixels.shape}".encode())
    digest.update(np.ascontiguousarray(pixels).tobytes())
    return digest.hexdigest()


def mask_hash(path: str) -> str:
    """SHA-256 of the file that a mask lies in, or of the values that are stored there.

    Raises:
        OSError, PixelsError: it is missing, or cannot be read.
    """
    return file_hash(located(path)[0]) or pixels_hash(read_labels(path))
