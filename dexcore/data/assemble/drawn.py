"""A source whose images are drawn by `SyntheticMVU`, not read: it has no files, and its items are numbers."""

import os
from dataclasses import replace

from dexcore.data.assemble.discover import Classified, Item
from dexcore.data.assemble.split import Grouping
from dexcore.data.assemble.walk import Found, SourceFiles
from dexcore.data.readers.kind import Kind
from dexcore.data.record import ImageRecord
from dexcore.data.sources.recipe import Recipe
from dexcore.data.synthetic import SyntheticMVU


def drawn_items(source: SourceFiles, grouping: Grouping) -> Classified:
    """The images that a source's recipe wants, an item each; their numbers stand in the place of paths."""
    drawing = source.recipe.synthetic
    assert drawing is not None
    mvu = _source(source.recipe)
    items = []
    for index in range(drawing.images):
        group, split = grouping.place(str(index), None)
        modality = mvu.modalities[index % len(mvu.modalities)]
        items.append(Item((Found(str(index), 0, 0),), Kind.SYNTHETIC, modality, group, split))
    return Classified(items)


def draw(recipe: Recipe, item: Item) -> ImageRecord:
    """Draw the image of an item of `drawn_items`."""
    record = _source(recipe).record(int(os.path.basename(item.files[0].path)), item.split)
    return replace(record, source=recipe.name)


def _source(recipe: Recipe) -> SyntheticMVU:
    drawing = recipe.synthetic
    assert drawing is not None
    return SyntheticMVU(drawing.modalities or None, drawing.size, drawing.seed)
