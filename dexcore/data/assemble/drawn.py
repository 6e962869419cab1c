"""A source whose images are drawn by `SyntheticMVU`, not read: it has no files, and its items are numbers."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import overload

from dexcore.data.assemble.discover import Classified, Item
from dexcore.data.assemble.split import Grouping
from dexcore.data.assemble.walk import Found, SourceFiles
from dexcore.data.readers.kind import Kind
from dexcore.data.record import ImageRecord
from dexcore.data.sources.recipe import Recipe
from dexcore.data.synthetic import SyntheticMVU


@dataclass(frozen=True)
class DrawnItems(Sequence[Item]):
    """The images that a source's recipe wants, an item each, made when it is asked for; a slice is as small.

    Attributes:
        recipe: of the source.
        key: of its groups.
        numbers: of the images, which stand in the place of paths.
    """

    recipe: Recipe
    key: bytes
    numbers: range

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> "DrawnItems": ...
    def __getitem__(self, index: int | slice) -> "Item | DrawnItems":
        if isinstance(index, slice):
            return replace(self, numbers=self.numbers[index])
        number = self.numbers[index]
        return next(iter(replace(self, numbers=range(number, number + 1))))

    def __iter__(self) -> Iterator[Item]:
        grouping, modalities = Grouping(self.recipe, self.key), _source(self.recipe).modalities
        for number in self.numbers:
            group, split = grouping.place(str(number), None)
            modality = modalities[number % len(modalities)]
            yield Item((Found(str(number), 0, 0),), Kind.SYNTHETIC, modality, group, split)


def drawn_items(source: SourceFiles, key: bytes) -> Classified:
    """The items of a source whose images are drawn."""
    drawing = source.recipe.synthetic
    assert drawing is not None
    return Classified(DrawnItems(source.recipe, key, range(drawing.images)))


def draw(recipe: Recipe, item: Item) -> ImageRecord:
    """Draw the image of an item of `drawn_items`."""
    record = _source(recipe).record(int(os.path.basename(item.files[0].path)), item.split)
    return replace(record, source=recipe.name)


def _source(recipe: Recipe) -> SyntheticMVU:
    drawing = recipe.synthetic
    assert drawing is not None
    return SyntheticMVU(drawing.modalities or None, drawing.size, drawing.seed)
