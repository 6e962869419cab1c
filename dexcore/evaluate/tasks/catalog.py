"""The 26 downstream tasks of the paper: how each download must lie, and what is known of it."""

import csv
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from shlex import quote

from dexcore.data.assemble.walk import walk
from dexcore.data.sources.listing import by_name, layout_word, listed, recipe_file, slug
from dexcore.evaluate.tasks.layout import Layout, load_layout
from dexcore.evaluate.tasks.table import SPLITS


@dataclass(frozen=True)
class Downstream:
    """One task of the paper's list (a row of downstream_tasks.csv): its words, and images or slices by split."""

    name: str
    modality: str
    anatomy: str
    task: str
    targets: str
    counts: tuple[int, int, int]

    @property
    def slug(self) -> str:
        """The name as a file's: "idrid", "slsc-seg"."""
        return _slug(self.name)


def _slug(name: str) -> str:
    return slug(re.sub(r"\(.*\)", "", name))


@cache
def downstream() -> tuple[Downstream, ...]:
    """All 26, in the paper's order."""
    text = resources.files("dexcore.evaluate.tasks").joinpath("downstream_tasks.csv").read_text(encoding="utf-8")
    return tuple(
        Downstream(
            row["name"],
            row["modality"],
            row["anatomy"],
            row["task"],
            row["targets"],
            (int(row["train"]), int(row["val"]), int(row["test"])),
        )
        for row in csv.DictReader(text.splitlines())
    )


def downstream_task(name: str) -> Downstream:
    """A task by its name, in any case, with spaces or hyphens.

    Raises:
        RecipeError: there is none of this name; the message names those nearest to it.
    """
    refused = f"{name!r} is no task of the paper: `dexcore eval tasks` lists the 26"
    return by_name(_slug(name), {one.slug: one for one in downstream()}, refused)


def layout_of(task: Downstream) -> Layout:
    """How its download lies."""
    return load_layout(_file(task))


def tasks_table(root: Path | None = None) -> list[str]:
    """The 26 tasks, a line each: images in the paper by split, how well the layout is known, its images below a folder.

    Raises:
        ValueError: the folder cannot be read.
    """
    paths = [found.path for found in walk(root).files] if root is not None else []
    rows: list[tuple[object, ...]] = []
    for task in downstream():
        layout = layout_of(task)
        files = str(len(layout.images(paths)) or "-") if root is not None else ""
        rows.append((task.name, task.modality, task.task, *task.counts, "", layout_word(layout.confirmed), files))
    sums = (sum(task.counts[split] for task in downstream()) for split in range(len(SPLITS)))
    rows.append(("in all", "", "", *sums, "", "", ""))
    counts = [(split, -8) for split in SPLITS]
    last = "files" if root is not None else ""
    return listed([("task", 18), ("modality", 12), ("kind", 16), *counts, ("", 2), ("layout", 14), (last, 0)], rows)


def task_page(name: str, root: Path | None = None) -> list[str]:
    """A task: what the paper says, its recipe with what is known of it, and its files below a folder.

    Raises:
        RecipeError: there is no such task.
        ValueError: the folder cannot be read.
    """
    task = downstream_task(name)
    layout = layout_of(task)
    counts = ", ".join(f"{split} {count:,}" for split, count in zip(SPLITS, task.counts, strict=True))
    lines = [
        f"# {task.name}: {task.targets} ({task.anatomy}, {task.modality}).",
        f"# In the paper, images or slices: {counts}. No lists of files, no seeds: other splits, not comparable.",
        f"# The layout is {layout_word(layout.confirmed)}.",
    ]
    if not layout.take:
        lines.append("# Its files are not known: make a table of them (dexcore eval import csv).")
    elif root is None:
        lines.append(f"# dexcore eval import {task.slug} FOLDER --out DIR")
    else:
        found = layout.images(one.path for one in walk(root).files)
        lines.append(f"# Below {root}: {f'{len(found)} files, as {found[0]}' if found else 'none of its files'}.")
        if found:
            lines.append(f"# dexcore eval import {task.slug} {quote(str(root))} --out DIR")
    return [*lines, _file(task).read_text(encoding="utf-8").rstrip()]


def _file(task: Downstream) -> Path:
    return recipe_file("dexcore.evaluate.tasks", task.slug)
