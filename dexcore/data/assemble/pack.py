"""Rows of finished tasks into the shards of a source, in order and without exact copies."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dexcore.data.assemble.read import Task, task_schema
from dexcore.data.assemble.reasons import Reject
from dexcore.data.store.manifest import Row, SourcePart
from dexcore.data.store.write import SourceWriter
from dexcore.extras import require


def is_done(task: Task) -> bool:
    """Whether both files of a task are there and whole."""
    try:
        return read_outcome(task)["size"] == Path(f"{task.target}.arrow").stat().st_size
    except (OSError, ValueError, KeyError, TypeError):
        return False


def read_outcome(task: Task) -> dict[str, Any]:
    """A task's outcome: ``size`` of its rows' file, ``rejects`` as (path, reason)."""
    return json.loads(Path(f"{task.target}.json").read_bytes())


def pack(
    staging: Path, source: str, tasks: Sequence[Task], shard_bytes: int
) -> tuple[SourcePart, Counter[str], list[Reject]]:
    """Write a source's shards.

    Args:
        staging: the folder they are written to.
        source: its name.
        tasks: all of it, in order, done.
        shard_bytes: as in `write_store`.

    Returns:
        What the manifest holds of the source; the images by "modality/kind"; what the tasks rejected, and the copies.
        A copy is an image of exactly the pixels of one before it.
    """
    writer = SourceWriter(staging, source, shard_bytes)
    kept: Counter[str] = Counter()
    rejects: list[Reject] = []
    seen: dict[bytes, str] = {}
    for task in tasks:
        rejects += [Reject(*reject) for reject in read_outcome(task)["rejects"]]
        for row in _rows(task):
            kind, path = row.pop("kind"), row["image"]["path"]
            if row["sha256"] in seen:
                rejects.append(Reject(path, f"exact copy: of {seen[row['sha256']]}"))
                continue
            seen[row["sha256"]] = path
            kept[f"{row['modality']}/{kind}"] += 1
            writer.add(row)
    return writer.close(), kept, rejects


def _rows(task: Task) -> Iterator[Row]:
    pa = require("pyarrow", "train")
    with pa.ipc.open_stream(pa.memory_map(f"{task.target}.arrow")) as reader:
        if not reader.schema.equals(task_schema()):
            raise ValueError(f"{task.target}.arrow has other columns than it must")
        for batch in reader:
            yield from batch.to_pylist()
