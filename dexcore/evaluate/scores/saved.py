"""How numbers lie in a folder: NAME.json, to be read by people, and NAME.npz, all that they are made of."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dexcore.files import write_whole
from dexcore.report.arrays import read_arrays, write_arrays

_VERSION = 1


def save_numbers(
    folder: str | os.PathLike[str],
    name: str,
    told: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write both files, each whole or not at all.

    Args:
        folder: made where it is missing.
        name: of the files.
        told: for the JSON.
        arrays: for the .npz.
        about: what stands beside the arrays; default: what is told.

    Raises:
        OSError: they cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    beside = np.array(json.dumps(dict(told if about is None else about)))
    write_arrays(folder / f"{name}.npz", _VERSION, {"about": beside, **arrays})
    write_whole(folder / f"{name}.json", (json.dumps(told, indent=1) + "\n").encode())


def load_numbers(
    path: str | os.PathLike[str], name: str, content: str
) -> tuple[Path, dict[str, Any], dict[str, np.ndarray]]:
    """Read what `save_numbers` wrote into a folder, or its .npz: its path, what stands beside the arrays, and these.

    Args:
        path: of the folder or the file.
        name: of the files.
        content: for messages, such as "scores".

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or of another version.
    """
    path = Path(path)
    path = path / f"{name}.npz" if path.is_dir() else path
    _, arrays = read_arrays(path, (_VERSION,), content)
    try:
        return path, dict(json.loads(str(arrays.pop("about")))), arrays
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error!r} is missing or not as expected") from error
