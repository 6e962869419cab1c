"""What the list of MVU's sources and that of the paper's downstream tasks share: names, recipes' files, lines."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TypeVar

from dexcore.data.sources.recipe import RecipeError

Entry = TypeVar("Entry")


def slug(name: str) -> str:
    """A name in small letters, digits and hyphens: that of its recipe's file."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def by_name(wanted: str, known: Mapping[str, Entry], refused: str) -> Entry:
    """An entry by its slug.

    Args:
        wanted: a slug.
        known: the entries by theirs; an entry has a ``name``.
        refused: the sentence where there is none; those that are near are named behind it.

    Raises:
        RecipeError: there is none.
    """
    if wanted in known:
        return known[wanted]
    near = [one for one in known if wanted and one.startswith(wanted)]
    near = near or difflib.get_close_matches(wanted, known, 3, 0.5)
    names = " or ".join(str(getattr(known[one], "name", one)) for one in near)
    raise RecipeError(f"{refused}{f'; did you mean {names}?' if near else ''}")


def recipe_file(package: str, name: str) -> Path:
    """The YAML of a recipe, by the package that has it and its slug."""
    # An installed package is a folder: setup tools unpack wheels.
    return Path(str(resources.files(package))) / "recipes" / f"{name}.yaml"


def layout_word(confirmed: bool) -> str:
    """How well a layout is known."""
    return "confirmed" if confirmed else "partly known"


def listed(columns: Sequence[tuple[str, int]], rows: Iterable[Sequence[object]]) -> list[str]:
    """Lines of aligned cells below their heads; a column of negative width is set to the right."""
    lines = [[head for head, _ in columns], *rows]
    return [
        "".join(
            f"{cell!s:>{-width}}" if width < 0 else f"{cell!s:<{width}}"
            for cell, (_, width) in zip(cells, columns, strict=True)
        ).rstrip()
        for cells in lines
    ]
