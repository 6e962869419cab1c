"""Shards into a staging folder, and from there into a store, whole or not at all.

A build writes into a staging folder inside the store's; until its manifest is renamed into place, the store is the
one that was there before, or none.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dexcore.data.store.manifest import MANIFEST, Manifest, Row, Shard, StoreError, schema
from dexcore.extras import require
from dexcore.files import sync_folder

STAGING = ".building-"  # begins the name of every staging folder
_REMOVED = f"{STAGING}removed-"  # and of those that are being removed


class ShardWriter:
    """One shard of one source under way, in a staging folder.

    Args:
        staging: the folder; several shards may be under way in it, each of another source or number.
        source: whose images it will hold.
        number: of the shard in its source; it goes into the file's name, which puts them in order for people.

    Raises:
        OSError: the file cannot be written, here and in the methods.
    """

    def __init__(self, staging: Path, source: str, number: int) -> None:
        self._pa = require("pyarrow", "train")
        self._schema = schema()
        self._source = source
        self._number = number
        # Not the source's name: it may hold what no file's name can.
        self._path = staging / f"open-{number:05d}-{hashlib.sha256(source.encode()).hexdigest()[:12]}"
        self._stream = self._pa.ipc.new_stream(str(self._path), self._schema)
        self._images = 0
        self.image_bytes = 0

    def write(self, rows: list[Row]) -> None:
        """Add a batch of rows (`encode_row`); a batch is what a reader holds in memory at a time.

        Raises:
            ValueError: a row is of another source.
        """
        foreign = {row["source"] for row in rows} - {self._source}
        if foreign:
            raise ValueError(f"rows are of the source {min(foreign)!r}, expected {self._source!r}")
        self._stream.write_batch(self._pa.RecordBatch.from_pylist(rows, schema=self._schema))
        self._images += len(rows)
        self.image_bytes += sum(len(row["image"]["bytes"]) for row in rows)

    def close(self) -> Shard:
        """Finish the file, bring it to the disk and name it by its content."""
        self._stream.close()
        with open(self._path, "rb+") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        name = f"shard-{self._number:05d}-{digest[:12]}.arrow"
        size = self._path.stat().st_size
        self._path.rename(self._path.with_name(name))
        return Shard(name, size, self._images, digest)


def commit(staging: Path, folder: Path, manifest: Manifest) -> None:
    """Make ``manifest`` the store's: move the new shards in, then the manifest; then remove what no longer belongs.

    Killed at any moment, the store that was there stays or the new one is whole. Staging folders of other builds
    are removed, so that these raise when they commit: of two builds into one folder the first to end stays.

    Args:
        staging: a folder inside ``folder``, its name beginning with `STAGING`, with the shards that are new.
        folder: of the store.
        manifest: names shards that are in ``staging`` or in ``folder``.

    Raises:
        StoreError: the folder cannot be written, another build has ended since, or a shard is in neither folder.
    """
    with writing(folder), _alone(folder):
        with open(staging / MANIFEST, "w", encoding="utf-8") as file:
            file.write(manifest.to_json())
            file.flush()
            os.fsync(file.fileno())
        for shard in manifest.shards:
            if (staging / shard.name).exists():
                os.replace(staging / shard.name, folder / shard.name)
            elif not (folder / shard.name).is_file():
                raise StoreError(f"{folder / shard.name} is missing: the manifest to be written names it")
        sync_folder(folder)
        os.replace(staging / MANIFEST, folder / MANIFEST)
        sync_folder(folder)
        belonging = {shard.name for shard in manifest.shards}
        for entry in list(folder.iterdir()):
            if is_shard(entry) and entry.name not in belonging:
                entry.unlink()
        remove_staging(folder)


def remove_source(folder: str | os.PathLike[str], name: str) -> Manifest:
    """Take a source out of a store: its shards and the manifest are all that changes.

    Returns:
        The manifest that is left.

    Raises:
        StoreError: there is no store, it has no such source or no other, is of version 1, whose shards hold all
            sources, or cannot be written.
    """
    folder = Path(folder)
    manifest = Manifest.load(folder)
    if manifest.version == 1:
        raise StoreError(f"{folder} is a store of version 1, whose shards hold all sources: build it anew")
    if name not in manifest.sources:
        raise StoreError(f"{folder} has no source {name!r}, it has {', '.join(manifest.sources)}")
    left = {source: part for source, part in manifest.sources.items() if source != name}
    if not left:
        raise StoreError(f"{folder} has no source but {name!r}: remove the folder instead")
    manifest = Manifest.of(manifest.name, manifest.max_side, left)
    with staging_folder(folder) as staging:
        commit(staging, folder, manifest)
    return manifest


@contextmanager
def staging_folder(folder: Path) -> Iterator[Path]:
    """A new staging folder in the store's, which is made if it does not exist; it is gone at the end.

    Raises:
        StoreError: the folder holds other files and no store, or cannot be written.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        refuse_foreign_files(folder)
        staging = Path(tempfile.mkdtemp(prefix=STAGING, dir=folder))
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def refuse_foreign_files(folder: Path) -> None:
    """Raise StoreError unless the folder is empty or holds a store, or what a killed build left."""
    if (folder / MANIFEST).is_file():
        Manifest.load(folder)  # another program's manifest is not to be replaced
        return
    for entry in sorted(folder.iterdir()):
        if not (is_shard(entry) or entry.name.startswith(STAGING)):
            raise StoreError(f"{folder} holds {entry.name} and no store: expected an empty folder or a store")


def remove_staging(folder: Path) -> None:
    """Remove the staging folders of a store, those of a killed build among them.

    Each gets another name first: a worker that outlives its killed driver knows the old one alone, and would put files
    into a folder that is being removed.
    """
    for entry in list(folder.iterdir()):
        if entry.name.startswith(STAGING):
            doomed = entry
            if not entry.name.startswith(_REMOVED):
                with suppress(OSError):
                    doomed = entry.rename(folder / f"{_REMOVED}{os.getpid()}-{entry.name.removeprefix(STAGING)}")
            for _ in range(2):  # what was being opened by the old name may come in while the first one removes
                shutil.rmtree(doomed, ignore_errors=True)


def is_shard(path: Path) -> bool:
    """Whether a file is named as a shard is."""
    return path.name.startswith("shard-") and path.suffix == ".arrow"


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Say of an OSError that the store could not be written."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"cannot write a store into {folder}: {error}") from error


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other commits out meanwhile: each would remove the shards that the other moved in."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a network disk without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
