"""Readers: a file of any kind in, raw pixels and what the file says about them out.

The kind is taken from the file's first bytes, not from its name (a DICOM file called ``.png`` is read as
DICOM).
"""

import os
from collections.abc import Callable
from importlib import import_module

from dexcore.checks import check_kind, check_whole
from dexcore.data.readers.kind import Kind, file_kind
from dexcore.data.readers.scan import RefusedError, Scan, UnreadableFileError, unreadable

__all__ = ["Scan", "UnreadableFileError", "read_file"]

# The readers, imported when first needed: module and function. Those of frames are called with (path, every), those of
# volumes with (path, volume).
_FRAMES = {
    Kind.DICOM: ("dicom", "read_dicom"),
    Kind.PNG: ("image", "read_image"),
    Kind.JPEG: ("image", "read_image"),
    Kind.BMP: ("image", "read_image"),
    Kind.TIFF: ("tiff", "read_tiff"),
    Kind.NUMPY: ("arrays", "read_numpy"),
    Kind.NPZ: ("arrays", "read_npz"),
    Kind.HDF5: ("hdf5", "read_hdf5"),
    Kind.VIDEO: ("video", "read_video"),
    Kind.HEIDELBERG: ("heidelberg", "read_heidelberg"),
}
_VOLUMES = {
    Kind.NIFTI: ("nifti", "read_nifti"),
    Kind.NRRD: ("nrrd", "read_nrrd"),
    Kind.METAIMAGE: ("metaimage", "read_metaimage"),
}


def read_file(path: str | bytes | os.PathLike[str], every: int = 1, volume: int = 0) -> Scan:
    """Read one file: DICOM, NIfTI, NRRD, MetaImage, TIFF, PNG, JPEG, BMP, video, NumPy, HDF5 or Heidelberg's ``.vol``.

    Its kind is told by its content; the name does not matter.

    Args:
        path: the file.
        every: of a file of several frames, read one in this many (30 for the videos of MVU). Volumes are read
            whole.
        volume: of a file of several volumes (time points, diffusion directions), read this one; ``Scan.volumes``
            says how many there are. Other files have one.

    Raises:
        UnreadableFileError: the file is missing, of no known kind, broken, or over a limit of `readers.scan`.
        MissingExtraError: the package that reads this kind is not installed.
        TypeError: ``path`` is no path (an open file's number is none), or ``every`` or ``volume`` no whole number.
        ValueError: ``every`` is less than 1, or ``volume`` less than 0.
    """
    check_kind("path", path, str | bytes | os.PathLike, "a path")
    check_whole("every", every, 1)
    check_whole("volume", volume, 0)
    named: str | os.PathLike[str] = os.fsdecode(path) if isinstance(path, bytes) else path
    with unreadable(named):
        kind = file_kind(named)
        if kind in _FRAMES:
            return _reader(*_FRAMES[kind])(named, every)
        if kind in _VOLUMES:
            return _reader(*_VOLUMES[kind])(named, volume)
        if kind is Kind.SLIDE:
            raise RefusedError("a whole slide, which readers.slide.iterate_tiles gives in tiles")
        if kind in (Kind.ZIP, Kind.TAR):
            raise RefusedError("an archive, whose files readers.archive.each_member gives")
        if kind is not None:
            raise RefusedError(f"a file of kind {kind}, which has no reader")
        if os.path.getsize(named) == 0:
            raise RefusedError("the file is empty")
        raise RefusedError(f"of no known kind, expected one of {', '.join([*_FRAMES, *_VOLUMES])}")


def _reader(module: str, function: str) -> Callable[[str | os.PathLike[str], int], Scan]:
    return getattr(import_module(f"dexcore.data.readers.{module}"), function)
