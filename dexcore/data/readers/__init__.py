"""Readers: a file of any kind in, raw pixels and what the file says about them out.

The kind is taken from the file's first bytes, not from its name (a DICOM file called ``.png`` is read as
DICOM).
"""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from dexcore.checks import check_kind, check_whole
from dexcore.data.readers.dicom import read_dicom
from dexcore.data.readers.image import read_image, read_numpy
from dexcore.data.readers.nifti import read_nifti
from dexcore.data.readers.scan import RefusedError, Scan, UnreadableFileError
from dexcore.extras import MissingExtraError

__all__ = ["Scan", "UnreadableFileError", "read_file"]

_IMAGE_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"BM")
_NIFTI_SUFFIXES = (".nii", ".nii.gz")


def read_file(path: str | os.PathLike[str], every: int = 1) -> Scan:
    """Read DICOM, NIfTI, PNG, JPEG, TIFF, BMP or NumPy (``.npy``).

    Args:
        path: the file.
        every: of a file of several frames, read one in this many (30 for the videos of MVU). Volumes are read
            whole.

    Raises:
        UnreadableFileError: the file is missing, of no known kind, broken, or over a limit of `readers.scan`.
        MissingExtraError: the package that reads this kind is not installed.
        TypeError: ``path`` is no path (an open file's number is none), or ``every`` no whole number.
        ValueError: ``every`` is less than 1.
    """
    check_kind("path", path, str | bytes | os.PathLike, "a path")
    check_whole("every", every, 1)
    try:
        with _quiet():
            kind = _kind(path)
            if kind == "dicom":
                return read_dicom(path, every)
            if kind == "nifti":
                return read_nifti(path)
            if kind == "numpy":
                return read_numpy(path, every)
            return read_image(path, every)
    except MissingExtraError:
        raise
    except RefusedError as error:
        raise UnreadableFileError(path, str(error)) from error
    except Exception as error:  # the libraries raise whatever a broken file makes them stumble over
        raise UnreadableFileError(path, f"{type(error).__name__}: {error}") from error


def _kind(path: str | os.PathLike[str]) -> Literal["dicom", "nifti", "numpy", "image"]:
    with open(path, "rb") as file:
        head = file.read(132)
    if not head:
        raise RefusedError("the file is empty")
    if head[128:132] == b"DICM":
        return "dicom"
    if head.startswith(b"\x93NUMPY"):
        return "numpy"
    if head.startswith(_IMAGE_MAGIC):
        return "image"
    if os.fspath(path).lower().endswith(_NIFTI_SUFFIXES):
        return "nifti"
    raise RefusedError("neither DICOM, NIfTI (.nii, .nii.gz), PNG, JPEG, TIFF, BMP nor NumPy (.npy)")


@contextmanager
def _quiet() -> Iterator[None]:
    """What the libraries warn about is either read well all the same or raised as an error."""
    loggers = [logging.getLogger(name) for name in ("pydicom", "nibabel.global")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
