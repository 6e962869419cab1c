"""The folder of a run: who may write into it, and files in it that grow line by line."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from dexcore.files import this_process, write_whole


class RunFolderError(RuntimeError):
    """The run's folder cannot be used; the message names it and says what to do."""


@contextmanager
def hold(lock: IO[str], folder: Path, name: str) -> Iterator[None]:
    """Hold a folder by its open lock file of that name, until that is closed or this process dies; within the
    context the file tells who holds it.

    Raises:
        RunFolderError: another process holds it, which the message names.
    """
    import fcntl  # POSIX alone

    try:
        # lockf and not flock: a record lock belongs to this process alone, so that a forked data worker which
        # outlives a killed run does not hold the folder. The kernel drops it when the process dies.
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(lock.fileno()), os.stat(folder / name)):
            raise FileNotFoundError(name)  # removed by a run that failed meanwhile: a third may hold a new one
    except OSError as error:
        try:
            holder = (folder / name).read_text(errors="replace").strip()
        except OSError:
            holder = ""
        raise RunFolderError(
            f"out: another run is writing into {folder}{f' ({holder})' if holder else ''}; wait for it, or give this "
            "one another --out"
        ) from error
    with suppress(OSError):  # a full disk, say: the lock holds without a name
        os.truncate(lock.fileno(), 0)
        os.write(lock.fileno(), this_process().encode())
    try:
        yield
    finally:
        with suppress(OSError):
            os.truncate(lock.fileno(), 0)


class LineFile:
    """A file of JSON objects, a line each, that grows; a number that is not finite is written as null.

    Every method raises RunFolderError where the file cannot be written (a full disk, for example).
    """

    def __init__(self, path: Path, first_step: int) -> None:
        """Open ``path`` for steps from ``first_step`` on; lines of these and a torn last line are cut off."""
        self.path = path
        with self._clear_errors():
            if path.is_file():
                lines = path.read_bytes().splitlines(keepends=True)
                kept = b"".join(line for line in lines if step_of(line) < first_step)
                write_whole(path, kept)
            self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115

    def write(self, values: Mapping[str, Any]) -> None:
        """Append a line, handed to the operating system at once."""
        with self._clear_errors():
            self._file.write(json.dumps(_finite(values), allow_nan=False) + "\n")
            self._file.flush()

    def sync(self) -> None:
        """Have what was written survive a power cut."""
        with self._clear_errors():
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; what a failed write left is tried again."""
        with self._clear_errors():
            self._file.close()

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunFolderError(f"{self.path}: cannot be written: {error.strerror or error}") from error


def step_of(line: bytes) -> float:
    """The step that a line is of; infinite where it is torn or of none."""
    try:
        return int(json.loads(line)["step"]) if line.endswith(b"\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
