"""Checking a store, hash by hash."""

import hashlib
import os
from pathlib import Path

from dexcore.data.store.codec import decode
from dexcore.data.store.manifest import MANIFEST, NULLABLE, Manifest, Row, Shard, SourcePart, StoreError, Tally
from dexcore.data.store.phash import PHASH_BYTES
from dexcore.data.store.read import map_shard


def check_store(folder: str | os.PathLike[str]) -> list[str]:
    """Read a whole store, compare every hash and decode every image.

    Returns:
        What is wrong, a sentence each that names the shard (and the row); empty for a sound store. Nothing that is
        found keeps the rest from being checked.

    Raises:
        StoreError: there is no store, or no readable manifest.
    """
    folder = Path(folder)
    manifest = Manifest.load(folder)
    # Version 1 has one fingerprint over all rows, whatever their source.
    parts = manifest.sources or {"": SourcePart(manifest.fingerprint, {}, manifest.shards)}
    problems = []
    for source, part in parts.items():
        tally = Tally(manifest.version)
        found = []
        for shard in part.shards:
            found += _check_shard(folder, shard, manifest.version, source, tally)
        if not found and tally.fingerprint != part.fingerprint:
            found.append(f"{folder / MANIFEST}: the fingerprint{source and f' of {source}'} is not that of the images")
        elif not found and manifest.sources and tally.counts != part.counts:
            found.append(f"{folder / MANIFEST}: the counts of {source} are not those of the images")
        problems += found
    return problems


def _check_shard(folder: Path, shard: Shard, version: int, source: str, tally: Tally) -> list[str]:
    """What is wrong with a shard; its rows are added to ``tally``."""
    path = folder / shard.name
    try:
        batches = map_shard(folder, shard, version)
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except (StoreError, OSError) as error:
        return [str(error)]
    problems = []
    if digest != shard.sha256:
        problems.append(f"{path}: its sha256 is not the one in {MANIFEST}")
    number = 0
    for batch in batches:
        for row in batch.to_pylist():
            problem = _row_problem(row, source)
            if problem is None:
                tally.add([row])
            else:
                problems.append(f"{path}, row {number}: {problem}")
            number += 1
    if number != shard.images:
        problems.append(f"{path}: {number} images, {MANIFEST} says {shard.images}")
    return problems


def _row_problem(row: Row, source: str) -> str | None:
    """What is wrong with a row of ``source`` (of any where that is empty)."""
    missing = [name for name, value in row.items() if value is None and name not in NULLABLE]
    if missing or None in row["image"].values():
        return f"its {', '.join(missing) or 'image'} is missing"
    if len(row.get("phash", bytes(PHASH_BYTES))) != PHASH_BYTES:
        return f"its perceptual hash has {len(row['phash'])} bytes, expected {PHASH_BYTES}"
    data = row["image"]["bytes"]
    if hashlib.sha256(data).digest() != row["sha256"]:
        return "its bytes do not have its sha256"
    if source and row["source"] != source:
        return f"its source is {row['source']!r}, {MANIFEST} says {source!r}"
    try:
        decode(data, (row["height"], row["width"]), row["bit_depth"])
    except ValueError as error:
        return f"its image {error}"
    return None
