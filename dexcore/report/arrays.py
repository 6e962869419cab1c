"""Arrays in one .npz without pickles: how the report's numbers lie in a run folder, and how they are checked."""

import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dexcore.files import write_whole


def write_arrays(path: str | Path, version: int, arrays: Mapping[str, np.ndarray]) -> None:
    """Write ``arrays`` and the format's ``version``, whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    buffer = io.BytesIO()
    np.savez_compressed(buffer, format=np.array(version), **arrays)  # type: ignore[arg-type]
    write_whole(Path(path), buffer.getvalue())


def read_arrays(path: str | Path, versions: Sequence[int], content: str) -> tuple[int, dict[str, np.ndarray]]:
    """Read what `write_arrays` wrote in one of ``versions``, the last being today's; ``content`` is for the messages.

    Returns:
        The file's version and its arrays.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is truncated, damaged, or of another version; the message names it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, expected {content}")
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: truncated or damaged, expected an .npz with {content}") from error
    found = arrays.pop("format", None)
    if found is None or found not in versions:
        raise ValueError(f"{path}: format {found}, expected {content} in format {versions[-1]}")
    return int(found), arrays


def coerce(owner: object, name: str, dtype: npt.DTypeLike, shape: tuple[int | None, ...] | None = None) -> np.ndarray:
    """Make the field ``name`` of a frozen ``owner`` an array of ``dtype``, and check its shape where one is given.

    Args:
        shape: the sizes expected; None stands for any size.

    Raises:
        ValueError: it holds something else; the message names the field.
    """
    try:
        value = np.asarray(getattr(owner, name), dtype=dtype)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected numbers of type {np.dtype(dtype)} ({error})") from error
    if shape is not None and not _fits(value, shape):
        expected = str(shape).replace("None", "any")
        raise ValueError(f"{name}: shape {value.shape}, expected {expected}")
    object.__setattr__(owner, name, value)
    return value


def _fits(value: np.ndarray, shape: tuple[int | None, ...]) -> bool:
    return value.ndim == len(shape) and all(b is None or a == b for a, b in zip(value.shape, shape, strict=True))
