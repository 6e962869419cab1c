"""A store as Parquet files for a hub: what every viewer opens."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dexcore.checks import check_whole
from dexcore.data.store.manifest import Row, StoreError, schema
from dexcore.data.store.read import Store
from dexcore.data.store.write import BATCH_BYTES
from dexcore.extras import require

_BATCH_ROWS = 100  # a row group: what a viewer fetches at a time


def export_parquet(
    folder: str | os.PathLike[str], out: str | os.PathLike[str], *, shard_bytes: int = 1 << 29
) -> list[Path]:
    """Write a store as Parquet with PNG images, in the layout that Hugging Face's ``load_dataset(out)`` opens.

    The files are ``data/SPLIT-00000-of-00003.parquet``, with all columns of the store but the hash of the bytes, which
    are others. An import gives every image and column back, in another order within a source.

    Args:
        folder: of the store.
        out: the folder to write; must not exist, or be empty.
        shard_bytes: a new file is begun when one holds this many bytes of images.

    Returns:
        The files.

    Raises:
        StoreError: there is no sound store, an image cannot be decoded, ``out`` holds files, or cannot be written. In
            ``out`` nothing is left.
        TypeError, ValueError: ``shard_bytes`` is no whole number, or below 1.
    """
    check_whole("shard_bytes", shard_bytes, 1)
    store = Store(folder)
    out = Path(out).absolute()
    try:
        if out.is_dir() and any(out.iterdir()):
            raise StoreError(f"{out} holds files, expected an empty folder or none")
        out.parent.mkdir(parents=True, exist_ok=True)
        staging = out.with_name(f".{out.name}-{os.getpid()}")
        staging.mkdir()
        try:
            names = _write_splits(store, staging, shard_bytes)
            os.replace(staging, out)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise StoreError(f"cannot write Parquet into {out}: {error}") from error
    return [out / name for name in names]


def _write_splits(store: Store, staging: Path, shard_bytes: int) -> list[str]:
    """Write all files; give their names below the folder."""
    (staging / "data").mkdir()
    splits = store.column("split").to_numpy()
    names = []
    for split in ("train", "heldout"):
        files = _write_files(store, np.flatnonzero(splits == split).tolist(), staging, shard_bytes)
        for number, path in enumerate(files):
            names.append(f"data/{split}-{number:05d}-of-{len(files):05d}.parquet")
            path.rename(staging / names[-1])
    return names


def _write_files(store: Store, indices: list[int], staging: Path, shard_bytes: int) -> list[Path]:
    parquet = require("pyarrow.parquet", "train")
    pa = require("pyarrow", "train")
    kept = schema(without=("sha256",))
    files: list[Path] = []
    writer, size = None, 0
    try:
        for rows in _batches(store, indices, min(shard_bytes, BATCH_BYTES)):
            if writer is None:
                files.append(staging / f"open-{len(files):05d}")
                writer, size = parquet.ParquetWriter(str(files[-1]), kept), 0
            writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=kept))
            size += sum(len(row["image"]["bytes"]) for row in rows)
            if size >= shard_bytes:
                writer.close()
                writer = None
    finally:
        if writer is not None:
            writer.close()
    return files


def _batches(store: Store, indices: list[int], batch_bytes: int) -> Iterator[list[Row]]:
    """The rows with their images as PNG."""
    rows: list[Row] = []
    size = 0
    for index in indices:
        row = store.row(index)
        row["image"] = {"bytes": _png(store.image(index)), "path": row.pop("path")}
        rows.append(row)
        size += len(row["image"]["bytes"])
        if len(rows) == _BATCH_ROWS or size >= batch_bytes:
            yield rows
            rows, size = [], 0
    if rows:
        yield rows


def _png(pixels: np.ndarray) -> bytes:
    cv2 = require("cv2", "train")
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".png", pixels)[1].tobytes()
