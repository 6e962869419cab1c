"""Writing a store: whole or not at all.

A build writes into a temporary folder inside the store's; until its manifest is renamed into place, the store
is the one that was there before, or none. The format is in `dexcore.data.store.manifest`.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import get_args

import numpy as np

from dexcore.checks import check_kind, check_whole
from dexcore.data.modality import Modality
from dexcore.data.normalize import NORMALIZATIONS
from dexcore.data.record import ImageRecord, Split
from dexcore.data.store.manifest import (
    MANIFEST,
    Manifest,
    Row,
    Shard,
    StoreError,
    Tally,
    schema,
)
from dexcore.data.store.png import encode_png, quantize
from dexcore.extras import require
from dexcore.files import sync_folder

_BUILDING = ".building-"
# Rows are written in batches that bound a build's memory; a reader walks over one header a batch.
_BATCH_ROWS = 256
_BATCH_BYTES = 16 << 20


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
    records and on the versions of OpenCV and pyarrow alone.

    Args:
        records: the images; consumed one by one.
        folder: made if it does not exist; must be empty or hold a store (or what a killed build left). Of two
            builds into one folder at a time the first to end stays, and the other raises.
        name: of the store, for people.
        shard_bytes: a new shard is begun when one holds this many bytes of images.
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
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _refuse_foreign_files(folder)
        staging = Path(tempfile.mkdtemp(prefix=_BUILDING, dir=folder))
    tally = Tally()
    shards: list[Shard] = []
    shard: _ShardWriter | None = None
    try:
        for rows in _batches(records, max_side, min(shard_bytes, _BATCH_BYTES)):
            tally.add(rows)
            with _writing(folder):
                shard = shard or _ShardWriter(staging, len(shards))
                shard.write(rows)
                if shard.image_bytes >= shard_bytes:
                    shards.append(shard.close())
                    shard = None
        if tally.images == 0:
            raise ValueError("records is empty, expected at least one image")
        with _writing(folder):
            if shard is not None:
                shards.append(shard.close())
            manifest = tally.manifest(name, max_side, shards)
            _commit(staging, folder, manifest)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return manifest


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"cannot write a store into {folder}: {error}") from error


def _refuse_foreign_files(folder: Path) -> None:
    if (folder / MANIFEST).is_file():
        Manifest.load(folder)  # another program's manifest is not to be replaced
        return
    for entry in sorted(folder.iterdir()):
        if not (_is_shard(entry) or entry.name.startswith(_BUILDING)):
            raise StoreError(f"{folder} holds {entry.name} and no store: expected an empty folder or a store")


def _is_shard(path: Path) -> bool:
    return path.name.startswith("shard-") and path.suffix == ".arrow"


def _batches(records: Iterable[ImageRecord], max_side: int, batch_bytes: int) -> Iterator[list[Row]]:
    """Encode the records and gather their rows."""
    rows: list[Row] = []
    size = 0
    for record in records:
        rows.append(_row(record, max_side))
        size += len(rows[-1]["image"]["bytes"])
        if len(rows) == _BATCH_ROWS or size >= batch_bytes:
            yield rows
            rows, size = [], 0
    if rows:
        yield rows


def _row(record: ImageRecord, max_side: int) -> Row:
    """Check and encode one record.

    Raises:
        TypeError: it is no `ImageRecord`.
        ValueError: the record is not as `ImageRecord` says; the message names its path.
    """
    check_kind("records", record, ImageRecord, "images with what is known about them (ImageRecord)")
    image = record.image
    problem = _text_problem(record)
    if problem is not None:
        pass
    elif not isinstance(image, np.ndarray):
        problem = f"image is a {type(image).__name__}, expected a numpy array"
    elif image.dtype != np.float32 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)):
        problem = f"image is {image.dtype} {list(image.shape)}, expected float32 [H, W] or [H, W, 3]"
    elif image.size == 0 or not (image.min() >= 0.0 and image.max() <= 1.0):  # NaN fails both
        problem = "image is empty, not finite or outside [0, 1]"
    elif record.modality not in list(Modality):
        problem = f"modality is {record.modality!r}, expected one of {', '.join(Modality)}"
    elif not isinstance(record.synthetic, bool):
        problem = f"synthetic is {record.synthetic!r}, expected True or False"
    elif record.split not in get_args(Split):
        problem = f"split is {record.split!r}, expected one of {', '.join(get_args(Split))}"
    if problem is not None:
        raise ValueError(f"record {record.path!r}: {problem}")
    bit_depth = 8 if record.normalization == "div255" or image.ndim == 3 else 16
    pixels = quantize(image, bit_depth, max_side)
    png = encode_png(pixels)
    return {
        "image": {"bytes": png, "path": record.path},
        "modality": Modality(record.modality).value,
        "source": record.source,
        "anatomy": record.anatomy,
        "normalization": record.normalization,
        "group": record.group,
        "synthetic": record.synthetic,
        "split": record.split,
        "height": pixels.shape[0],
        "width": pixels.shape[1],
        "bit_depth": bit_depth,
        "sha256": hashlib.sha256(png).digest(),
    }


def _text_problem(record: ImageRecord) -> str | None:
    """What is wrong with a record's texts: a file's name that is not UTF-8, for example."""
    for name in ("path", "source", "anatomy", "normalization", "group"):
        text = getattr(record, name)
        if not isinstance(text, str):
            return f"{name} is {text!r}, expected a text"
        try:
            text.encode()
        except UnicodeEncodeError:
            return f"{name} is {text!r}, which UTF-8 cannot hold"
    if record.normalization not in NORMALIZATIONS:
        return f"normalization is {record.normalization!r}, expected one of {', '.join(NORMALIZATIONS)}"
    return None


class _ShardWriter:
    """One shard under way."""

    def __init__(self, staging: Path, number: int) -> None:
        self._pa = require("pyarrow", "train")
        self._schema = schema()
        self._number = number
        self._path = staging / "shard.arrow"
        self._stream = self._pa.ipc.new_stream(str(self._path), self._schema)
        self._images = 0
        self.image_bytes = 0

    def write(self, rows: list[Row]) -> None:
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


def _commit(staging: Path, folder: Path, manifest: Manifest) -> None:
    """Move the shards, then the manifest; then remove what no longer belongs."""
    text = json.dumps(asdict(manifest), indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    with open(staging / MANIFEST, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    for shard in manifest.shards:
        os.replace(staging / shard.name, folder / shard.name)
    sync_folder(folder)
    os.replace(staging / MANIFEST, folder / MANIFEST)
    sync_folder(folder)
    belonging = {shard.name for shard in manifest.shards}
    for entry in list(folder.iterdir()):
        if entry.name.startswith(_BUILDING):
            shutil.rmtree(entry, ignore_errors=True)
        elif _is_shard(entry) and entry.name not in belonging:
            entry.unlink()
