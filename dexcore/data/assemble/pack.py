"""Rows of finished tasks into the shards of a source, in order; copies are found on the way."""

import json
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dexcore.data.assemble.examples import KEPT, Drawn, Example, picture
from dexcore.data.assemble.progress import Progress
from dexcore.data.assemble.read import Task, task_schema
from dexcore.data.assemble.reasons import Reject
from dexcore.data.store.copies import Copy, Pictures, copies_within
from dexcore.data.store.manifest import SourcePart
from dexcore.data.store.show import evenly
from dexcore.data.store.write import SourceWriter
from dexcore.extras import require


def is_done(task: Task) -> bool:
    """Whether both files of a task are there and whole."""
    try:
        return read_outcome(task)["size"] == Path(f"{task.target}.arrow").stat().st_size
    except (OSError, ValueError, KeyError, TypeError):
        return False


def read_outcome(task: Task) -> dict[str, Any]:
    """A task's outcome: ``size`` of its rows' file, ``rejects`` as (path, reason), ``examples`` of them."""
    return json.loads(Path(f"{task.target}.json").read_bytes())


@dataclass
class Packed:
    """What became of a source's images.

    Attributes:
        part: what the manifest holds of the source.
        kept: the images by "modality/kind".
        rejects: what the tasks rejected, and the copies.
        near_copies: images that are kept though they are near-copies of others.
        groups: of the images that are kept.
        examples: of them and of the rejects, for the report.
    """

    part: SourcePart
    kept: Counter[str]
    rejects: list[Reject]
    near_copies: int
    groups: int
    examples: list[Example]


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
    kept: defaultdict[str, array[int]] = defaultdict(lambda: array("q"))
    rejects: list[Reject] = []
    drawn = Drawn()
    known = _pictures(tasks)
    copies: dict[int, Copy] = {}
    if known is not None:
        with Progress(len(known), f"{source} compared", unit="image") as progress:
            copies = {copy.index: copy for copy in copies_within(known, progress.update)}
    near = number = 0
    for task in tasks:
        outcome = read_outcome(task)
        rejects += [Reject(*reject) for reject in outcome["rejects"]]
        for example in outcome["examples"]:
            drawn.add(Example(**example))
        for row in (row for batch in _batches(task) for row in batch.to_pylist()):
            copy = copies.get(number)
            kind = row.pop("kind")
            if copy is not None and known is not None:
                stays = not (copy.exact or drop_near)
                reject = Reject(row["image"]["path"], _copy_of(copy, known))
                if drawn.wants(reject.path, reject.reason, stays):
                    both = tuple(picture(known.image(index)) for index in (number, copy.of))
                    drawn.add(Example(reject.path, row["modality"], reject.reason, stays, both))
                near += stays
                if not stays:
                    rejects.append(reject)
                    number += 1
                    continue
            kept[f"{row['modality']}/{kind}"].append(number)
            number += 1
            writer.add(row)
    groups = len(np.unique(known.groups[np.concatenate(list(kept.values()))])) if known else 0
    counts = Counter({name: len(indices) for name, indices in kept.items()})
    examples = [*_kept_examples(known, kept), *drawn] if known else [*drawn]
    return Packed(writer.close(), counts, rejects, near, groups, examples)


def _copy_of(copy: Copy, known: Pictures) -> str:
    return f"{'exact copy' if copy.exact else 'near-copy'}: of {known.path(copy.of)}"


def _kept_examples(known: Pictures, kept: Mapping[str, Sequence[int]]) -> Iterator[Example]:
    """Images of every modality and kind, spread evenly over their rows."""
    for name, indices in sorted(kept.items()):
        for index in evenly(indices, max(1, KEPT // len(kept))):
            modality, _, _ = name.partition("/")
            yield Example(known.path(index), modality, "", True, (picture(known.image(index)),))


def _pictures(tasks: Sequence[Task]) -> Pictures | None:
    """The images of all tasks. What is compared of them is in memory, but their bytes: maps are closed again.

    Whatever was read through an open map would count as this process's memory, up to the whole source.
    """
    counts = np.array([sum(batch.num_rows for batch in _batches(task)) for task in tasks], np.int64)
    ends = np.cumsum(counts)
    if not counts.any():
        return None

    def row(index: int) -> tuple[Any, int]:
        number = int(np.searchsorted(ends, index, side="right"))
        place = index - int(ends[number] - counts[number])
        for batch in _batches(tasks[number]):
            if place < batch.num_rows:
                return batch, place
            place -= batch.num_rows
        raise IndexError(f"image {index} of {ends[-1]}")

    return Pictures((batch for task in tasks for batch in _batches(task)), row)


def _batches(task: Task) -> list[Any]:
    """The rows of a task, mapped as long as they are held."""
    pa = require("pyarrow", "train")
    with pa.ipc.open_stream(pa.memory_map(f"{task.target}.arrow")) as reader:
        if not reader.schema.equals(task_schema()):
            raise ValueError(f"{task.target}.arrow has other columns than it must")
        return list(reader)
