"""The 26 downstream tasks of the paper: how each download must lie, and what is known of it."""

import csv
import difflib
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from shlex import quote

from dexcore.data.assemble.walk import walk
from dexcore.data.sources.recipe import RecipeError
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
        return slug(re.sub(r"\(.*\)", "", self.name))


def slug(name: str) -> str:
    """A name in small letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


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
    by_slug = {one.slug: one for one in downstream()}
    wanted = slug(re.sub(r"\(.*\)", "", name))
    if wanted not in by_slug:
        near = [one.name for known, one in by_slug.items() if wanted and known.startswith(wanted)]
        near = near or [by_slug[known].name for known in difflib.get_close_matches(wanted, by_slug, 3, 0.5)]
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise RecipeError(f"{name!r} is no task of the paper: `dexcore eval tasks` lists the 26{hint}")
    return by_slug[wanted]


def layout_of(task: Downstream) -> Layout:
    """How its download lies."""
    return load_layout(_file(task))


def tasks_table(root: Path | None = None) -> list[str]:
    """The 26 tasks, a line each: images in the paper by split, how well the layout is known, its images below a folder.

    Raises:
        ValueError: the folder cannot be read.
    """
    paths = [found.path for found in walk(root).files] if root is not None else []
    head = f"{'task':<18}{'modality':<12}{'kind':<16}{'train':>8}{'val':>8}{'test':>8}  {'layout':<14}"
    lines = [f"{head}{'files' if root is not None else ''}".rstrip()]
    for task in downstream():
        layout = layout_of(task)
        counts = "".join(f"{count:>8}" for count in task.counts)
        known = "confirmed" if layout.confirmed else "partly known"
        files = str(len(layout.images(paths)) or "-") if root is not None else ""
        lines.append(f"{task.name:<18}{task.modality:<12}{task.task:<16}{counts}  {known:<14}{files}".rstrip())
    sums = "".join(f"{sum(task.counts[split] for task in downstream()):>8}" for split in range(3))
    return [*lines, f"{'in all':<46}{sums}"]


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
        f"# The layout is {'confirmed' if layout.confirmed else 'partly known'}.",
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
    # An installed package is a folder: setup tools unpack wheels.
    return Path(str(resources.files("dexcore.evaluate.tasks"))) / "recipes" / f"{task.slug}.yaml"
