"""A contact sheet: what the images of a store look like."""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dexcore.checks import check_whole
from dexcore.data.modality import Modality
from dexcore.data.store.manifest import ImageDecodeError, StoreError
from dexcore.data.store.read import Store
from dexcore.extras import require
from dexcore.files import write_whole

_NAMES, _GAP = 190, 3  # pixels: width of the rows' names, between images
_INK, _PAPER, _BROKEN = 40, 255, 200
_FONT = 13


def show(folder: str | os.PathLike[str], file: str | os.PathLike[str], *, examples: int = 10, side: int = 128) -> int:
    """Write a PNG file with examples of every modality and source of a store, a row each.

    The examples are spread evenly over the rows of their source. An image that cannot be decoded is a crossed square.

    Args:
        folder: of the store.
        file: to write; one that is there is replaced.
        examples: images a row, at most.
        side: of the square that each is fitted into, pixels.

    Returns:
        How many images are shown.

    Raises:
        StoreError: there is no sound store, or the file cannot be written.
        TypeError, ValueError: ``examples`` or ``side`` is no whole number, or out of its range.
    """
    check_whole("examples", examples, 1, 100)
    check_whole("side", side, 16, 1024)
    store = Store(folder)
    rows = _rows(store, examples)
    step = side + _GAP
    columns = max(len(indices) for _, indices in rows)
    image_module = require("PIL.Image", "train")
    sheet = image_module.new("RGB", (_NAMES + step * columns, step * len(rows)), (_PAPER,) * 3)
    pen = require("PIL.ImageDraw", "train").Draw(sheet)
    font = require("PIL.ImageFont", "train").load_default(_FONT)
    for number, (names, indices) in enumerate(rows):
        top = number * step
        for line, name in enumerate(names):
            _write(pen, font, (6, top + side // 2 + (line - 1) * (_FONT + 3)), name)
        for place, index in enumerate(indices):
            left = _NAMES + place * step
            try:
                picture = image_module.fromarray(_eight_bit(store.image(index)))
            except ImageDecodeError:
                corners = (left, top, left + side - 1, top + side - 1)
                pen.rectangle(corners, fill=(_BROKEN,) * 3)
                pen.line(corners, (_INK,) * 3)
                pen.line((left, top + side - 1, left + side - 1, top), (_INK,) * 3)
                continue
            picture.thumbnail((side, side))
            sheet.paste(picture, (left + (side - picture.width) // 2, top + (side - picture.height) // 2))
    png = io.BytesIO()
    sheet.save(png, "PNG")
    try:
        write_whole(Path(file), png.getvalue())
    except OSError as error:
        raise StoreError(f"cannot write the contact sheet: {error}") from error
    return sum(len(indices) for _, indices in rows)


def _rows(store: Store, examples: int) -> list[tuple[tuple[str, str], list[int]]]:
    """The names and the images of each row of the sheet, in the order of `Modality`, then of the sources."""
    modalities, sources = (store.column(name).combine_chunks().dictionary_encode() for name in ("modality", "source"))
    names = [
        (modality, source)
        for modality in modalities.dictionary.to_pylist()
        for source in sources.dictionary.to_pylist()
    ]
    codes = modalities.indices.to_numpy() * len(sources.dictionary) + sources.indices.to_numpy()
    order = list(Modality)
    rows = []
    for code in sorted(np.unique(codes).tolist(), key=lambda code: (order.index(Modality(names[code][0])), code)):
        members = np.flatnonzero(codes == code)
        rows.append((names[code], evenly(members.tolist(), examples)))
    return rows


def evenly(members: Sequence[int], most: int) -> list[int]:
    """At most ``most`` of so many, spread evenly over them."""
    count = min(most, len(members))
    return [members[number * len(members) // count] for number in range(count)]


def _eight_bit(pixels: np.ndarray) -> np.ndarray:
    return pixels if pixels.dtype == np.uint8 else (pixels / np.float32(257) + np.float32(0.5)).astype(np.uint8)


def _write(pen: Any, font: Any, place: tuple[int, int], name: str) -> None:
    """Write a name, cut where it is too long for its column."""
    while name and pen.textlength(name, font) > _NAMES - 12:
        name = name.rstrip("…")[:-1] + "…" if len(name.rstrip("…")) > 1 else ""
    pen.text(place, name, (_INK,) * 3, font, anchor="lm")
