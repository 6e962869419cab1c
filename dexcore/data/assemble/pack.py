"""Rows of finished tasks into the shards of a source, in order; copies are found on the way."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dexcore.data.assemble.read import Task, task_schema
from dexcore.data.assemble.reasons import Reject
from dexcore.data.store.copies import Pictures, copies_within
from dexcore.data.store.manifest import SourcePart
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


@dataclass
class Packed:
    """What became of a source's images.

    Attributes:
        part: what the manifest holds of the source.
        kept: the images by "modality/kind".
        rejects: what the tasks rejected, and the copies.
        near_copies: images that are kept though they are near-copies of others.
    """

    part: SourcePart
    kept: Counter[str]
    rejects: list[Reject]
    near_copies: int


def pack(staging: Path, source: str, tasks: Sequence[Task], shard_bytes: int, drop_near: bool) -> Packed:
    """Write a source's shards, without exact copies (`dexcore.data.store.copies`).

    Args:
        staging: the folder they are written to.
        source: its name.
        tasks: all of it, in order, done.
        shard_bytes: as in `write_store`.
        drop_near: leave out near-copies too.
    """
    writer = SourceWriter(staging, source, shard_bytes)
    kept: Counter[str] = Counter()
    rejects: list[Reject] = []
    batches = [_batches(task) for task in tasks]
    pictures = [batch for piece in batches for batch in piece if batch.num_rows]
    known = Pictures(pictures) if pictures else None
    copies = {copy.index: copy for copy in copies_within(known)} if known is not None else {}
    near = number = 0
    for task, piece in zip(tasks, batches, strict=True):
        rejects += [Reject(*reject) for reject in read_outcome(task)["rejects"]]
        for row in (row for batch in piece for row in batch.to_pylist()):
            copy = copies.get(number)
            number += 1
            kind = row.pop("kind")
            if copy is not None and known is not None and (copy.exact or drop_near):
                what = "exact copy" if copy.exact else "near-copy"
                rejects.append(Reject(row["image"]["path"], f"{what}: of {known.paths[copy.of].as_py()}"))
                continue
            near += copy is not None
            kept[f"{row['modality']}/{kind}"] += 1
            writer.add(row)
    return Packed(writer.close(), kept, rejects, near)


def _batches(task: Task) -> list[Any]:
    """The rows of a task, mapped."""
    pa = require("pyarrow", "train")
    with pa.ipc.open_stream(pa.memory_map(f"{task.target}.arrow")) as reader:
        if not reader.schema.equals(task_schema()):
            raise ValueError(f"{task.target}.arrow has other columns than it must")
        return list(reader)
