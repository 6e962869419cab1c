"""Which images of a store are neighbouring slices of a volume, by the paths that a build gives its slices."""

from typing import Any

import numpy as np

from dexcore.data.record import SLICE_PATH
from dexcore.data.store import Store
from dexcore.data.store.manifest import StoreError
from dexcore.extras import require

# Slices are of one volume where these agree too; of a store that a build wrote they do wherever the paths do.
_OF_A_VOLUME = ("source", "group", "split", "height", "width", "bit_depth")


def adjacent_slices(store: Store) -> np.ndarray:
    """The rows of the slices before and after each image in its volume, int64 [2, n].

    They are one place apart in the same volume, at the same time point, across the same axis. Where there is none, it
    is the image's own row: at a volume's ends, beside a slice that a build dropped, of a frame of a video, of a
    picture.

    Raises:
        StoreError: two images say that they are the same slice, or none has a neighbour.
    """
    pc: Any = require("pyarrow.compute", "train")
    pa: Any = require("pyarrow", "train")
    paths = pa.chunked_array([batch.column("image").field("path") for batch in store.batches], pa.string())
    said = pc.extract_regex(paths, SLICE_PATH)
    rows = np.flatnonzero(pc.is_valid(said).to_numpy())
    said = said.take(rows)
    place = pc.struct_field(said, "place").cast(pa.int64()).to_numpy()
    volume = np.zeros(len(rows), np.int64)
    of_path = [pc.struct_field(said, name) for name in ("volume", "axis")]
    for column in (*of_path, *(store.column(name).take(rows) for name in _OF_A_VOLUME)):
        codes = column.combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
        volume = np.unique(volume * (codes.max(initial=0) + 1) + codes, return_inverse=True)[1]
    order = np.lexsort((place, volume))
    steps = np.where(np.diff(volume[order]) == 0, np.diff(place[order]), -1)
    if not steps.all():
        first, second = rows[order[np.flatnonzero(steps == 0)[0] :][:2]].tolist()
        raise StoreError(f"{store.where(first)} and {second} are the same slice: {store.row(first)['path']}")
    adjacent = np.flatnonzero(steps == 1)
    if not len(adjacent):
        raise StoreError(
            f"{store.folder}: no two images are neighbouring slices of a volume, expected slices = 1 ({len(rows)} of "
            f"{len(store)} say by their path that they are slices; a volume's agree in {', '.join(_OF_A_VOLUME)})"
        )
    lower, upper = rows[order[adjacent]], rows[order[adjacent + 1]]
    found = np.tile(np.arange(len(store)), (2, 1))
    found[0, upper], found[1, lower] = lower, upper
    return found
