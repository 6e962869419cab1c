"""Where an image lies in its file: the part of a path after "#", in the words of a store's paths."""

import re
from pathlib import Path

from dexcore.data.record import AXES

_PLACE = re.compile(r"#(?:(\w+)=)?(\d+)$")


def parted(path: str) -> tuple[str, str | None, int | None]:
    """The file of a path, the axis or the array of the place in it, and the number there.

    "a.nii.gz#axial=12" is ("a.nii.gz", "axial", 12), "a.tif#3" is ("a.tif", None, 3), "a.png" is ("a.png", None, None).
    """
    match = _PLACE.search(path)
    if match is None:
        return path, None, None
    return path[: match.start()], match[1], int(match[2])


def file_of(path: str) -> str:
    """The file of a path."""
    return parted(path)[0]


def slice_of(path: str) -> tuple[str | None, int | None]:
    """The volume that an image was cut from and the index of the slice; (None, None) of a picture."""
    file, inside, index = parted(path)
    return (file, index) if inside in AXES or (inside is None and index is not None) else (None, None)


def located(path: str) -> tuple[Path, str | None, int | None]:
    """As `parted`, of a path on this machine; a file whose own name ends in "#3" is taken as it is."""
    if "#" in path and Path(path).is_file():
        return Path(path), None, None
    file, inside, index = parted(path)
    return Path(file), inside, index
