"""What would make a task's numbers worthless, each said in a sentence that names the culprit.

Everything is read: labels, images and masks of all splits. Nothing is chosen by it.
"""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from dexcore.data.assemble.leak import find_records
from dexcore.evaluate.tasks.pixels import PixelsError, geometry_problem, read_plane
from dexcore.evaluate.tasks.places import file_of
from dexcore.evaluate.tasks.spec import TaskError
from dexcore.evaluate.tasks.table import SPLITS, Row
from dexcore.evaluate.tasks.task import Task
from dexcore.measures.bootstrap import FEWEST_CASES

_MOST = 20  # sentences about rows; what a wrong rule makes of all rows is said once


@dataclass
class Checked:
    """What a check found.

    Attributes:
        problems: sentences; with one the task is refused.
        notes: what stands beside every number of the task.
        seen: images of the test split that stand in a store, "exact" or "near".
    """

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seen: dict[str, str] = field(default_factory=dict)


def check_task(task: Task, stores: Sequence[str | os.PathLike[str]] = ()) -> Checked:
    """Read all of a task, and say what is wrong with it.

    Args:
        task: opened.
        stores: folders of stores that models were pre-trained on: test images are looked for in them.

    Raises:
        StoreError: a store is not sound.
    """
    found = Checked()
    said = _torn_groups(task)
    read = _Read(task)
    said += read.problems
    if not read.problems:  # else counts would be of half the rows
        said += _classes(task, read.held)
        said += _same_pixels(read.pixels)
    for store in stores:
        said += _in_store(task, read.sound, store, found.seen)
    found.problems = [f"task {task.name}: {sentence}" for sentence in said]
    found.notes = _notes(task)
    return found


def _torn_groups(task: Task) -> list[str]:
    """Cases, volumes and files that are in two splits."""
    problems = []
    kinds = {
        "case": [(row.case, row) for row in task.rows],
        "volume": [(row.volume, row) for row in task.rows if row.volume],
    }
    told: set[str] = set()
    for kind, members in kinds.items():
        splits: defaultdict[str, dict[str, Row]] = defaultdict(dict)
        for name, row in members:
            splits[name or ""].setdefault(row.split, row)
        for name, rows in splits.items():
            if len(rows) > 1 and name not in told:
                told.add(name)
                where = " and ".join(f"{split} (line {row.line})" for split, row in rows.items())
                problems.append(f"{kind} {name} is in {where}: what is learned of it in one is scored in the other")
    return _shortened(problems)


class _Read:
    """All rows, read once.

    Attributes:
        problems: what could not be.
        held: by row's image, the indices of the classes that it has.
        pixels: by hash of pixels, the rows that have them.
        sound: the rows whose images could be read.
    """

    def __init__(self, task: Task) -> None:
        self.problems: list[str] = []
        self.held: dict[str, np.ndarray] = {}
        self.pixels: defaultdict[bytes, list[Row]] = defaultdict(list)
        self.sound: list[Row] = []
        reference = task.reference()
        compared: set[tuple[str, ...]] = set()
        prefix = f"task {task.name}: "
        for row in task.rows:
            try:
                task.image(row)
                self.sound.append(row)
                plane = read_plane(task.spec.located(row.image)).pixels
                if plane.min() < plane.max():
                    shape = repr((plane.shape, plane.dtype.str)).encode()
                    self.pixels[hashlib.sha256(shape + np.ascontiguousarray(plane).tobytes()).digest()].append(row)
                if task.spec.is_segmentation:
                    self._compare(task, row, reference.mask_paths(row), compared)
                    self.held[row.image] = _classes_in(reference.mask(row), len(task.classes))
                else:
                    label = reference.label(row)
                    flags = np.zeros(len(task.classes), bool)
                    flags[label] = True
                    self.held[row.image] = flags
            except TaskError as error:
                self.problems.append(str(error).removeprefix(prefix))
        self.problems = _shortened(self.problems)

    def _compare(self, task: Task, row: Row, masks: Iterable[str], compared: set[tuple[str, ...]]) -> None:
        for mask in filter(None, masks):
            pair = file_of(row.image), file_of(mask)
            if pair in compared:
                continue
            compared.add(pair)
            try:
                problem = geometry_problem(*map(task.spec.located, (row.image, mask)))
            except (PixelsError, OSError, ValueError):
                continue  # said when the mask is read
            if problem:
                self.problems.append(f"{task.spec.table}, line {row.line}: {problem}")


def _classes_in(mask: np.ndarray, classes: int) -> np.ndarray:
    if mask.ndim == 3:
        return np.asarray(mask.any(axis=(1, 2)))
    return np.asarray(np.bincount(mask.ravel(), minlength=classes)[:classes] > 0)


def _classes(task: Task, held: dict[str, np.ndarray]) -> list[str]:
    """Splits that lack a class, or have one case of it."""
    problems = []
    # Class 0 of a segmentation is what is left: no score is about it.
    asked = range(1 if task.kind == "segmentation" else 0, len(task.classes))
    for split in SPLITS:
        rows = task.split(split)
        if not rows:
            if split == "test":
                problems.append("has no row of split test: there is nothing to score")
            continue
        if split == "val":
            continue
        cases: list[set[str]] = [set() for _ in task.classes]
        without: list[set[str]] = [set() for _ in task.classes]
        for row in rows:
            for index in asked:
                (cases if held[row.image][index] else without)[index].add(row.case)
        for index in asked:
            name = task.classes[index]
            if not cases[index]:
                problems.append(f"{split} has no case of class {name}: no score of it can be computed")
            elif split == "test" and len(cases[index]) == 1:
                [case] = cases[index]
                problems.append(f"test has one case of class {name}, {case}: a score of it says nothing")
            elif split == "test" and task.kind == "multilabel" and not without[index]:
                problems.append(f"test has no case without {name}: no score of it can be computed")
    return problems


def _same_pixels(pixels: dict[bytes, list[Row]]) -> list[str]:
    pairs = []
    for rows in pixels.values():
        first = rows[0]
        pairs += [(first, other) for other in rows[1:] if other.split != first.split]
    if not pairs:
        return []
    one, two = pairs[0]
    more = f", and so have {len(pairs) - 1} more pairs" if len(pairs) > 1 else ""
    return [
        f"{one.image} (line {one.line}, {one.split}) and {two.image} (line {two.line}, {two.split}) have the same "
        f"pixels{more}"
    ]


def _in_store(task: Task, sound: Sequence[Row], store: str | os.PathLike[str], seen: dict[str, str]) -> list[str]:
    """Test images that are in a store."""
    lines = {row.image: row.line for row in sound if row.split == "test"}
    leaks = find_records(store, (task.record(row) for row in sound if row.split == "test"))
    problems = []
    for leaked in leaks.leaked:
        how = "exact" if leaked.exact else "near"
        seen[leaked.path] = "exact" if "exact" in (how, seen.get(leaked.path)) else "near"
        copy = "an exact copy" if leaked.exact else "a near-copy"
        problems.append(
            f"test image {leaked.path} (line {lines[leaked.path]}) is {copy} of {leaked.of} ({leaked.source}) in "
            f"{os.fspath(store)}: a model trained on it has seen the image"
        )
    return _shortened(problems)


def _notes(task: Task) -> list[str]:
    notes = []
    if task.spec.cases == "unknown":
        notes.append("images taken as independent: the table knows no cases, intervals are too narrow")
    cases = len({row.case for row in task.split("test")})
    if 0 < cases < FEWEST_CASES:
        notes.append(f"few cases: {cases} in test, intervals of fewer than {FEWEST_CASES} are not to be trusted")
    if not task.split("val"):
        notes.append("no val split: what is chosen is chosen on folds of train")
    marked = Counter(row.seen for row in task.split("test") if row.seen)
    if marked:
        notes.append(f"seen in pre-training: {marked['exact']} test images exactly, {marked['near']} nearly")
    return notes


def _shortened(problems: list[str]) -> list[str]:
    if len(problems) <= _MOST:
        return problems
    return [*problems[:_MOST], f"and {len(problems) - _MOST} more of this kind"]
