"""Checking a store, hash by hash."""

import hashlib
import os
from pathlib import Path

from dexcore.data.store.manifest import MANIFEST, Manifest, Shard, StoreError, Tally
from dexcore.data.store.read import map_shard


def check_store(folder: str | os.PathLike[str]) -> list[str]:
    """Read a whole store and compare every hash.

    Returns:
        What is wrong, a sentence each that names the file (and the row); empty for a sound store.

    Raises:
        StoreError: there is no store, or no readable manifest.
    """
    folder = Path(folder)
    manifest = Manifest.load(folder)
    problems = []
    tally = Tally()
    for shard in manifest.shards:
        try:
            problems += _check_shard(folder, shard, tally)
        except StoreError as error:
            problems.append(str(error))
    if not problems and (tally.fingerprint, tally.counts) != (manifest.fingerprint, manifest.counts):
        problems.append(f"{folder / MANIFEST}: fingerprint or counts are not those of the images")
    return problems


def _check_shard(folder: Path, shard: Shard, tally: Tally) -> list[str]:
    path = folder / shard.name
    batches = map_shard(folder, shard)
    problems = []
    with open(path, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
            problems.append(f"{path}: its sha256 is not the one in {MANIFEST}")
    number = 0
    for batch in batches:
        rows = batch.to_pylist()
        tally.add(rows)
        for row in rows:
            if hashlib.sha256(row["image"]["bytes"]).digest() != row["sha256"]:
                problems.append(f"{path}, row {number}: its bytes do not have its sha256")
            number += 1
    if number != shard.images:
        problems.append(f"{path}: {number} images, {MANIFEST} says {shard.images}")
    return problems
