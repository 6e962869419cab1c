"""Files that are written whole or not at all."""

import errno
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write to a temporary name beside ``path``, sync, rename: a kill leaves the old file or the new one.

    Raises:
        OSError: the file, which the error names, cannot be written. The old one is untouched.
    """
    write_sealed({path: content})


def write_sealed(contents: Mapping[Path, bytes | memoryview]) -> None:
    """Write files that belong together: path -> content, the last of them the seal.

    All are written under temporary names and synced first. Then the seal is removed, the others are renamed, and
    the seal comes back last: a kill or a power cut leaves no seal beside a mix of old and new files.

    Raises:
        OSError: a file, which the error names, cannot be written, or is a device or a pipe, which a rename would end.
    """
    for path in contents:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise OSError(errno.EINVAL, "is no regular file", str(path))
    staged = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in contents}
    *others, seal = contents
    try:
        for path, content in contents.items():
            with _naming(path), open(staged[path], "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        if others:
            with _naming(seal):
                seal.unlink(missing_ok=True)
                sync_folder(seal.parent)
        for path, temporary in staged.items():
            with _naming(path):
                os.replace(temporary, path)
                sync_folder(path.parent)
    finally:
        for temporary in staged.values():
            with suppress(OSError):  # must not hide the error that led here
                temporary.unlink()


def this_process() -> str:
    """Who holds a lock, for the message to whoever comes second."""
    return f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}"


def sync_folder(folder: Path) -> None:
    """Bring a folder's entries to the disk: until then a power cut can undo a rename in it."""
    if os.name == "posix":  # elsewhere a folder cannot be opened
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # a full disk does not say which file it was
        raise OSError(error.errno, error.strerror, str(path)) from error
