"""The 44 recipes of Medical Vision Universe: YAML files of this package, in the words of `schema`.

Modality, anatomy and normalization stand in mvu_sources.csv, once.
"""

from dataclasses import replace
from functools import cache
from pathlib import Path

from dexcore.data.modality import SOURCES, Source
from dexcore.data.sources.listing import by_name, layout_word, recipe_file, slug
from dexcore.data.sources.recipe import Recipe
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
    refused = f"{name!r} is no source of MVU: `dexcore mvu sources` lists the {len(SOURCES)}"
    return by_name(slug(name), {slug(source.name): source for source in SOURCES}, refused)


def recipe_text(name: str) -> str:
    """A source's recipe as a dataset.yaml, with what is known of its layout, home and terms."""
    source = source_of(name)
    lines = [
        f"# {source.images:,} images in the paper. The layout is {layout_word(_recipe(source).confirmed)}.",
        _file(source).read_text(encoding="utf-8").rstrip(),
        f"modality: {source.modality}",
        f"anatomy: {source.anatomy}",
        f"normalization: {source.normalization}",
    ]
    return "\n".join(lines)


def _file(source: Source) -> Path:
    return recipe_file("dexcore.data.sources", slug(source.name))


@cache
def _recipe(source: Source) -> Recipe:
    return replace(
        load_recipe(_file(source), source.name),
        modality=source.modality,
        anatomy=source.anatomy,
        normalization=source.normalization,
        public=True,
    )
