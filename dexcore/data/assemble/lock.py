"""One build a store: the second is refused, and told of the first."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dexcore.data.store.manifest import StoreError
from dexcore.files import this_process

_LOCK = "lock"


@contextmanager
def locked(staging: Path) -> Iterator[Path]:
    """Make the folder of a build and hold its lock, which the system gives back when this process ends, however.

    Raises:
        StoreError: another process holds it; the message names it.
        OSError: the folder cannot be written.
    """
    try:
        import fcntl
    except ImportError:  # Windows: no lock; `commit` still keeps the store whole
        staging.mkdir(exist_ok=True)
        yield staging
        return
    while True:
        staging.mkdir(exist_ok=True)
        with open(staging / _LOCK, "a+", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                holder = lock.read().strip() or "another process"
                raise StoreError(
                    f"{staging.parent} is being built by {holder}: wait for its end, or stop it, and call this again"
                ) from None
            try:
                if os.stat(staging / _LOCK).st_ino != os.fstat(lock.fileno()).st_ino:
                    continue  # the first build ended in between, and its folder with it
            except FileNotFoundError:
                continue
            lock.truncate(0)
            lock.write(this_process())
            lock.flush()
            yield staging
            return


def clear(staging: Path, keep: set[str]) -> None:
    """Remove what lies in a build's folder and is of no use to this one."""
    for entry in staging.iterdir():
        if entry.name == _LOCK or entry.name in keep:
            continue
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
