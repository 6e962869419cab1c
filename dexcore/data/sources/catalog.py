"""The 44 recipes of Medical Vision Universe: YAML files of this package, in the words of `schema`.

Modality, anatomy and normalization stand in mvu_sources.csv, once.
"""

import difflib
import re
from dataclasses import replace
from functools import cache
from importlib import resources
from pathlib import Path

from dexcore.data.modality import SOURCES, Source
from dexcore.data.sources.recipe import Recipe, RecipeError
from dexcore.data.sources.schema import load_recipe


def recipes() -> list[Recipe]:
    """All 44, in the order of mvu_sources.csv."""
    return [_recipe(source) for source in SOURCES]


def recipe(name: str) -> Recipe:
    """A recipe by the name of its source, in any case, with spaces or hyphens.

    Raises:
        RecipeError: there is none of this name; the message names those nearest to it.
    """
    return _recipe(source_of(name))


def source_of(name: str) -> Source:
    """A source by its name, as in `recipe`.

    Raises:
        RecipeError: there is none of this name.
    """
    by_slug = {_slug(source.name): source for source in SOURCES}
    wanted = _slug(name)
    if wanted not in by_slug:
        near = [by_slug[slug].name for slug in by_slug if wanted and slug.startswith(wanted)]
        near = near or [by_slug[slug].name for slug in difflib.get_close_matches(wanted, by_slug, 3, 0.5)]
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise RecipeError(f"{name!r} is no source of MVU: `dexcore mvu sources` lists the {len(SOURCES)}{hint}")
    return by_slug[wanted]


def recipe_text(name: str) -> str:
    """A source's recipe as a dataset.yaml, with what is known of its layout, home and terms."""
    source = source_of(name)
    lines = [
        f"# {source.images:,} images in the paper. The layout is {layout_word(_recipe(source))}.",
        _file(source).read_text(encoding="utf-8").rstrip(),
        f"modality: {source.modality}",
        f"anatomy: {source.anatomy}",
        f"normalization: {source.normalization}",
    ]
    return "\n".join(lines)


def layout_word(recipe: Recipe) -> str:
    """How well a layout is known."""
    return "confirmed" if recipe.confirmed else "partly known"


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _file(source: Source) -> Path:
    # An installed package is a folder: setup tools unpack wheels.
    return Path(str(resources.files("dexcore.data.sources"))) / "recipes" / f"{_slug(source.name)}.yaml"


@cache
def _recipe(source: Source) -> Recipe:
    return replace(
        load_recipe(_file(source), source.name),
        modality=source.modality,
        anatomy=source.anatomy,
        normalization=source.normalization,
        public=True,
    )
