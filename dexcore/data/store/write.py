"""Writing a store: whole or not at all. The format is in `dexcore.data.store.manifest`."""

import os
from collections.abc import Iterable
from pathlib import Path

from dexcore.checks import check_kind, check_whole
from dexcore.data.record import ImageRecord
from dexcore.data.store.commit import ShardWriter, commit, staging_folder, writing
from dexcore.data.store.manifest import Manifest, Row, Shard, SourcePart, Tally
from dexcore.data.store.row import encode_row

# Rows are written in batches that bound a build's memory; a reader walks over one header a batch.
BATCH_ROWS = 256
BATCH_BYTES = 16 << 20


def write_store(
    records: Iterable[ImageRecord],
    folder: str | os.PathLike[str],
    *,
    name: str,
    shard_bytes: int = 1 << 30,
    max_side: int = 512,
) -> Manifest:
    """Write images as a store; a store that is there already is replaced when the new one is complete.

    Images are scaled down to a shorter side of ``max_side`` (area interpolation). Gray stays gray; what was
    normalised by div255 and all RGB is stored at 8 bit, other gray at 16 bit. The bytes written depend on the
    records and on the versions of OpenCV, imagecodecs and pyarrow alone. The store's rows stand by the names of
    their sources; the order of ``records`` is kept inside each.

    Args:
        records: the images; consumed one by one. Each source has a batch in memory.
        folder: made if it does not exist; must be empty or hold a store (or what a killed build left). Of two
            builds into one folder at a time the first to end stays, and the other raises.
        name: of the store, for people.
        shard_bytes: a source's next shard is begun when one holds this many bytes of images.
        max_side: the largest shorter side, pixels.

    Returns:
        The manifest that was written.

    Raises:
        TypeError: ``name`` is no text, or a number no whole number.
        ValueError: a record is not as `ImageRecord` says, or there is none, or a number is out of its range.
        StoreError: the folder holds other files, or cannot be written.
    """
    check_kind("name", name, str, "a text")
    check_whole("shard_bytes", shard_bytes, 1)
    check_whole("max_side", max_side, 1)
    folder = Path(folder)
    with staging_folder(folder) as staging:
        sources: dict[str, SourceWriter] = {}
        for record in records:
            row = encode_row(record, max_side)
            source = row["source"]
            if source not in sources:
                sources[source] = SourceWriter(staging, source, shard_bytes)
            with writing(folder):
                sources[source].add(row)
        if not sources:
            raise ValueError("records is empty, expected at least one image")
        with writing(folder):
            parts = {source: writer.close() for source, writer in sources.items()}
        manifest = Manifest.of(name, max_side, parts)
        commit(staging, folder, manifest)
    return manifest


class SourceWriter:
    """The shards of one source: rows one by one, written batch by batch.

    Args:
        staging: the folder of the shards, as for `ShardWriter`.
        source: its name.
        shard_bytes: the next shard is begun when one holds this many bytes of images.

    Raises:
        OSError: a file cannot be written; so do the methods.
    """

    def __init__(self, staging: Path, source: str, shard_bytes: int) -> None:
        self._staging = staging
        self._source = source
        self._shard_bytes = shard_bytes
        self._rows: list[Row] = []
        self._size = 0
        self._shards: list[Shard] = []
        self._open: ShardWriter | None = None
        self._tally = Tally()

    def add(self, row: Row) -> None:
        self._rows.append(row)
        self._size += len(row["image"]["bytes"])
        if len(self._rows) == BATCH_ROWS or self._size >= min(self._shard_bytes, BATCH_BYTES):
            self._write_batch()

    def close(self) -> SourcePart:
        if self._rows:
            self._write_batch()
        if self._open is not None:
            self._shards.append(self._open.close())
        return self._tally.part(self._shards)

    def _write_batch(self) -> None:
        self._tally.add(self._rows)
        self._open = self._open or ShardWriter(self._staging, self._source, len(self._shards))
        self._open.write(self._rows)
        self._rows, self._size = [], 0
        if self._open.image_bytes >= self._shard_bytes:
            self._shards.append(self._open.close())
            self._open = None
