"""What a build has to do: the sources' inputs as a hash, their items cut into tasks."""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, fields
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path

import dexcore
from dexcore.data.assemble.discover import ARCHIVES, Item
from dexcore.data.assemble.options import Settings
from dexcore.data.assemble.read import Task
from dexcore.data.assemble.walk import SourceFiles
from dexcore.data.readers.kind import Kind
from dexcore.data.sources.recipe import Column
from dexcore.data.store.manifest import VERSION
from dexcore.extras import require

FORMAT = 2  # changes where the same inputs give other images
_FILES_A_TASK = 32
_LARGE_BYTES = 8 << 20  # a file alone
_LONG = (*ARCHIVES, Kind.VIDEO, Kind.SLIDE)  # a file alone, however small
# What decides over pixels and bytes.
PACKAGES = [
    "numpy",
    "pyarrow",
    "Pillow",
    "opencv-python-headless",
    "imagecodecs",
    "pydicom",
    "nibabel",
    "tifffile",
    "av",
    "h5py",
    "pyjpegls",
]


def inputs_hash(source: SourceFiles, settings: Settings) -> str:
    """sha256 (hex) over all that a source's images depend on: files by path, size and time, settings, versions."""
    recipe = source.recipe
    tables = [where.csv for where in (recipe.group, _column(recipe.split)) if isinstance(where, Column)]
    parts = [
        [FORMAT, VERSION, dexcore.__version__, [package_version(name) for name in PACKAGES]],
        {field.name: _plain(getattr(recipe, field.name)) for field in fields(recipe)},
        {name: value for name, value in asdict(settings).items() if name not in ("root", "key")},
        hashlib.sha256(b"groups\0" + settings.key).hexdigest(),
        [hashlib.sha256(table.read_bytes()).hexdigest() for table in tables],
    ]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode())
    for file in source.files:
        digest.update(os.fsencode(f"{source.below(file.path)}\0{file.size}\0{file.mtime_ns}\n"))
    return digest.hexdigest()


def _column(split: object) -> object:
    return split[0] if isinstance(split, tuple) and split else None


def _plain(value: object) -> object:
    """What is the same in every process and place: no folder, no set's order."""
    if isinstance(value, re.Pattern):
        return value.pattern
    if isinstance(value, Column):
        return [value.csv.name, value.file, value.column]
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return value


def package_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "-"


def tasks_of(items: Sequence[Item], source: SourceFiles, settings: Settings, folder: Path) -> list[Task]:
    """Cut items, in their order, into tasks of at most `_FILES_A_TASK` small files, or one large one or a volume."""
    begins: list[int] = []
    room = 0
    for place, item in enumerate(items):
        large = len(item.files) > 1 or item.size > _LARGE_BYTES or item.kind in _LONG
        if large or room == 0:
            begins.append(place)
            room = _FILES_A_TASK
        room = 0 if large else room - 1
    return [
        Task(settings, source.recipe, source.folder, items[begin:end], str(folder / f"task-{number:06d}"))
        for number, (begin, end) in enumerate(pairwise([*begins, len(items)]))
    ]


def check_libraries() -> None:
    """Say at once what every build needs.

    Raises:
        MissingExtraError: a package of the extra ``train`` is missing.
    """
    for module in ("yaml", "tqdm", "pyarrow", "PIL", "cv2"):
        require(module, "train")
