"""Copies of images: of one store's in another's, and within one.

Exact copies have the same bytes or pixels. Near-copies (rescaled, compressed, windowed, cropped by some 2 %) are found
by their perceptual hashes, at most 31 of 256 bits apart, and confirmed on pixels: the correlation of their details
after an alignment (`dexcore.data.store.near.similarity`) is at least 0.95. Slices of one volume, frames of one video
(what stands in a store under one file's name) are never copies of each other. Images of one group, a patient's most
often, must reach 0.995, since neighbouring slices come near; in return, pieces cut across the full width or height of
another image of their group are found too, which no hash shows.

Measured by bench/copies.py on 6,362 images of ten modalities: the thresholds are chosen on one half of the patients,
the counts are of the other. 0.95 is the largest hundredth that loses at most 1 % of made copies that their hashes
find; 0.995 lies just above the nearest neighbours. Of 197 copies each are missed: none in 8 bits, by JPEG of quality
75, at half and at 1.5 times the size; 33 at half the size and by JPEG; 30 windowed at their percentiles 2 and 98; 4
cropped by 2 %, 38 of these at half the size and by JPEG; 140 cropped by 5 %. Among 5,182,590 pairs of images 3 copies
are found. Of 326 pairs of neighbours in one file 28 would be taken for copies, were they of two groups, and none as
images of one. What is its own mirror image, as slices of a symmetric template are, has no stable hash: half of its
cosines are zero, and rescaled copies of it are missed.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

import numpy as np

from dexcore.data.store.codec import decode
from dexcore.data.store.manifest import StoreError
from dexcore.data.store.near import HashIndex, cut_similarity, similarity
from dexcore.data.store.phash import PHASH_BYTES, perceptual_hash
from dexcore.data.store.read import Store
from dexcore.extras import require

# The columns of a store that are compared; the paths and the bytes of images stand in another.
COMPARED = ("source", "group", "sha256", "height", "width", "phash")
LEAST_SIMILAR = 0.95
LEAST_SIMILAR_IN_GROUP = 0.995
_LARGE_GROUP = 50  # images: in larger ones pieces are not looked for, as each pair is compared
_OTHER_SHAPE = 1.05  # a piece's sides are in another proportion
_AT_HAND = 256  # decoded images
_PLACE = re.compile(r"(#[^#/.]+)+$")  # of an image in its file: "#z=12", "#3"


def _untold(images: int) -> None:
    """Nobody asks how far a search is."""


@dataclass(frozen=True)
class Copy:
    """An image that is a copy of another.

    Attributes:
        index: of the copy, in what was searched for.
        of: of the other image, in what was searched.
        distance: bits of 256 in which their perceptual hashes differ.
        similarity: of their details, to 1.
        exact: whether their pixels are equal.
    """

    index: int
    of: int
    distance: int
    similarity: float
    exact: bool


class Pictures:
    """Images to be compared, and what is known of them.

    Args:
        batches: record batches with a store's columns; of a store of version 1, whose hashes are computed.
        image: gives the pixels of an image by its number; decoded from ``batches`` if it is not given. With it their
            image column needs no bytes.

    Raises:
        StoreError: a perceptual hash is none.
    """

    def __init__(self, batches: Sequence[Any], image: Callable[[int], np.ndarray] | None = None) -> None:
        pa = require("pyarrow", "train")
        self._batches = [batch for batch in batches if batch.num_rows]
        self._starts = np.array([0, *accumulate(batch.num_rows for batch in self._batches)])
        self.image = lru_cache(_AT_HAND)(image or self._decode)
        if not self._batches:
            raise ValueError("batches holds no image")
        self.paths = pa.chunked_array([batch.column("image").field("path") for batch in self._batches])
        self.sources = self._column("source")
        self.sha256 = self._column("sha256")
        # Numbers in place of names: those of files, and of groups.
        # By Python: Arrow's compute functions would start threads in a process that may be forked later.
        self.files = _numbers(_PLACE.sub("", path.as_py()) for path in self.paths)
        self.groups = _numbers(group.as_py() for group in self._column("group"))
        self.shapes = np.stack([self._column(name).to_numpy() for name in ("height", "width")], axis=1)
        self.hashes = self._hashes()

    @classmethod
    def of(cls, store: Store) -> "Pictures":
        """The images of a store."""
        return cls(store.batches, store.image)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _column(self, name: str) -> Any:
        return require("pyarrow", "train").chunked_array([batch.column(name) for batch in self._batches])

    def _hashes(self) -> np.ndarray:
        if "phash" in self._batches[0].schema.names:
            data = b"".join(b"".join(batch.column("phash").to_pylist()) for batch in self._batches)
        else:
            data = b"".join(perceptual_hash(self.image(index)) for index in range(len(self)))
        if len(data) != PHASH_BYTES * len(self):
            raise StoreError(f"the perceptual hashes have {len(data)} bytes, expected {PHASH_BYTES} an image")
        return np.frombuffer(data, np.uint8).reshape(-1, PHASH_BYTES)

    def _decode(self, index: int) -> np.ndarray:
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return decoded(self._batches[number], index - int(self._starts[number]))


def decoded(batch: Any, place: int) -> np.ndarray:
    """The image in one row of a record batch with a store's columns."""
    shape = (batch.column("height")[place].as_py(), batch.column("width")[place].as_py())
    data = batch.column("image").field("bytes")[place].as_buffer()
    return decode(data, shape, batch.column("bit_depth")[place].as_py())


def _numbers(names: Iterable[str]) -> np.ndarray:
    """Equal names get equal numbers."""
    known: dict[str, int] = {}
    return np.array([known.setdefault(name, len(known)) for name in names])


class CopyFinder:
    """Finds copies of images among others.

    Args:
        pictures: the others; their hashes are indexed once.
    """

    def __init__(self, pictures: Pictures) -> None:
        self._pictures = pictures
        self._index = HashIndex(pictures.hashes)
        self._first: dict[bytes, int] = {}
        for index, sha256 in enumerate(pictures.sha256):
            self._first.setdefault(sha256.as_py(), index)

    def find(self, queries: Pictures, but: Sequence[str] = (), done: Callable[[int], object] = _untold) -> list[Copy]:
        """Find the images of ``queries`` that are copies, each of the nearest that is confirmed.

        Args:
            queries: what is searched for. That groups are the same is not known across stores.
            but: sources of the pictures in which nothing is found.
            done: called with 1 for every image.
        """
        left_out = np.isin(self._pictures.sources.to_numpy(), list(but)) if but else np.zeros(len(self._pictures), bool)
        found = []
        for index, (near, far) in enumerate(self._index.near(queries.hashes)):
            done(1)
            same = self._first.get(queries.sha256[index].as_py())
            if same is not None and not left_out[same]:
                found.append(Copy(index, same, 0, 1.0, True))
                continue
            for other, distance in zip(near.tolist(), far.tolist(), strict=True):
                if left_out[other]:
                    continue
                copy = _confirmed(queries, index, self._pictures, other, distance, LEAST_SIMILAR)
                if copy is not None:
                    found.append(copy)
                    break
        return found


def copies_within(pictures: Pictures, done: Callable[[int], object] = _untold) -> list[Copy]:
    """Find the images that are copies of one before them which is none itself, in order.

    ``done`` is called with 1 for every image.
    """
    kept = np.ones(len(pictures), bool)
    first: dict[bytes, int] = {}
    members: defaultdict[int, list[int]] = defaultdict(list)
    sizes = np.bincount(pictures.groups)
    found = []
    for index, (near, far) in enumerate(HashIndex(pictures.hashes).near(pictures.hashes)):
        copy = _copy_before(pictures, index, near, far, kept, first)
        group = int(pictures.groups[index])
        if copy is None and 1 < sizes[group] <= _LARGE_GROUP:
            copy = _piece_or_whole(pictures, index, members[group])
        if copy is None:
            members[group].append(index)
        else:
            kept[index] = False
            found.append(copy)
        done(1)
    return found


def _copy_before(
    pictures: Pictures, index: int, near: np.ndarray, far: np.ndarray, kept: np.ndarray, first: dict[bytes, int]
) -> Copy | None:
    before = first.setdefault(pictures.sha256[index].as_py(), index)
    if before != index:
        return Copy(index, before, 0, 1.0, True)
    fit = (near < index) & kept[near] & (pictures.files[near] != pictures.files[index])
    for other, distance in zip(near[fit].tolist(), far[fit].tolist(), strict=True):
        grouped = pictures.groups[other] == pictures.groups[index]
        least = LEAST_SIMILAR_IN_GROUP if grouped else LEAST_SIMILAR
        copy = _confirmed(pictures, index, pictures, other, distance, least)
        if copy is not None:
            return copy
    return None


def _confirmed(
    queries: Pictures, index: int, pictures: Pictures, other: int, distance: int, least: float
) -> Copy | None:
    one, two = queries.image(index), pictures.image(other)
    if distance == 0 and np.array_equal(one, two):
        return Copy(index, other, 0, 1.0, True)
    alike = similarity(one, two)
    return Copy(index, other, distance, alike, False) if alike >= least else None


def _piece_or_whole(pictures: Pictures, index: int, others: Sequence[int]) -> Copy | None:
    """A copy of other proportions in the same group."""
    for other in others:
        if pictures.files[other] == pictures.files[index]:
            continue
        by_width = [pictures.shapes[number][0] / pictures.shapes[number][1] for number in (index, other)]
        if max(by_width) < _OTHER_SHAPE * min(by_width):
            continue
        alike = cut_similarity(pictures.image(index), pictures.image(other))
        if alike >= LEAST_SIMILAR_IN_GROUP:
            differing = np.bitwise_count(pictures.hashes[index] ^ pictures.hashes[other])
            return Copy(index, other, int(differing.sum()), alike, False)
    return None
