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

import hashlib
import re
from array import array
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from dexcore.data.store.codec import decode
from dexcore.data.store.manifest import StoreError
from dexcore.data.store.near import HashIndex, cut_similarity, similarity
from dexcore.data.store.phash import PHASH_BYTES, perceptual_hash
from dexcore.data.store.read import Store

LEAST_SIMILAR = 0.95
LEAST_SIMILAR_IN_GROUP = 0.995
_LARGE_GROUP = 50  # images: in larger ones pieces are not looked for, as each pair is compared
_OTHER_SHAPE = 1.05  # a piece's sides are in another proportion
_AT_HAND = 64  # decoded images
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
    """Images to be compared, and what is known of them: some 100 bytes of each in memory.

    Args:
        batches: record batches with a store's columns; of a store of version 1, whose hashes are computed. They are
            looked through once.
        row: gives the batch and the place in it that hold an image, by its number. Without it all batches are kept.
        image: gives the pixels of an image by its number; by default they are decoded from its row.

    Attributes:
        sources, files, groups: a number for each image, equal for equal names.
        source_names: by their numbers.
        shapes: [n, 2].
        sha256, hashes: uint8 [n, 32], of the bytes, and perceptual.

    Raises:
        StoreError: a perceptual hash is none.
    """

    def __init__(
        self,
        batches: Iterable[Any],
        row: Callable[[int], tuple[Any, int]] | None = None,
        image: Callable[[int], np.ndarray] | None = None,
    ) -> None:
        self._batches: list[Any] = []
        self._row = row or self._kept_row
        self.image = lru_cache(_AT_HAND)(image or (lambda index: decoded(*self._row(index))))
        names: dict[str, int] = {}
        rows, sources, shapes, has_hashes = [0], array("I"), [], True
        files, groups, sha256, hashes = (bytearray() for _ in range(4))
        # By Python: Arrow's compute functions would start threads in a process that may be forked later.
        for batch in batches:
            if not batch.num_rows:
                continue
            rows.append(batch.num_rows)
            if row is None:
                self._batches.append(batch)
            sources.extend(names.setdefault(name, len(names)) for name in batch.column("source").to_pylist())
            files += b"".join(_digest(_PLACE.sub("", path)) for path in batch.column("image").field("path").to_pylist())
            groups += b"".join(map(_digest, batch.column("group").to_pylist()))
            shapes.append(np.stack([batch.column(name).to_numpy() for name in ("height", "width")], axis=1))
            sha256 += b"".join(batch.column("sha256").to_pylist())
            if has_hashes := "phash" in batch.schema.names:
                hashes += b"".join(batch.column("phash").to_pylist())
        if not shapes:
            raise ValueError("batches holds no image")
        self._starts = np.cumsum(rows)
        self.source_names = list(names)
        self.sources, self.files, self.groups = np.array(sources), _numbers(files), _numbers(groups)
        self.shapes = np.concatenate(shapes)
        self.sha256 = np.frombuffer(sha256, np.uint8).reshape(len(self), -1)
        if not has_hashes:
            for index in range(len(self)):
                hashes += perceptual_hash(self.image(index))
        if len(hashes) != PHASH_BYTES * len(self):
            raise StoreError(f"the perceptual hashes have {len(hashes)} bytes, expected {PHASH_BYTES} an image")
        self.hashes = np.frombuffer(hashes, np.uint8).reshape(-1, PHASH_BYTES)

    @classmethod
    def of(cls, store: Store) -> "Pictures":
        """The images of a store."""
        return cls(store.batches, image=store.image)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def path(self, index: int) -> str:
        """The path of an image, as its store has it."""
        batch, place = self._row(index)
        path: str = batch.column("image").field("path")[place].as_py()
        return path

    def source(self, index: int) -> str:
        """The name of an image's source."""
        batch, place = self._row(index)
        name: str = batch.column("source")[place].as_py()
        return name

    def _kept_row(self, index: int) -> tuple[Any, int]:
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._batches[number], index - int(self._starts[number])


def decoded(batch: Any, place: int) -> np.ndarray:
    """The image in one row of a record batch with a store's columns."""
    shape = (batch.column("height")[place].as_py(), batch.column("width")[place].as_py())
    data = batch.column("image").field("bytes")[place].as_buffer()
    return decode(data, shape, batch.column("bit_depth")[place].as_py())


def _digest(name: str) -> bytes:
    """8 bytes that stand for a name."""
    return hashlib.blake2b(name.encode(), digest_size=8).digest()


def _numbers(digests: bytearray) -> np.ndarray:
    """Equal names get equal numbers, in the order in which they come."""
    _, first, numbers = np.unique(np.frombuffer(digests, np.uint64), return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first)).astype(np.uint32)[numbers]


class _Exact:
    """Finds the first image that has some sha256: 12 bytes an image."""

    def __init__(self, sha256: np.ndarray) -> None:
        self._sha256 = sha256
        starts = _first_bytes(sha256)
        self._order = np.argsort(starts, kind="stable").astype(np.uint32)
        self._starts = starts[self._order]

    def first(self, sha256: np.ndarray) -> int | None:
        start = _first_bytes(sha256)
        place = int(np.searchsorted(self._starts, start))
        while place < len(self._starts) and self._starts[place] == start:
            if np.array_equal(self._sha256[self._order[place]], sha256):
                return int(self._order[place])
            place += 1
        return None


def _first_bytes(sha256: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(sha256[..., :8]).view(np.uint64)[..., 0]


class CopyFinder:
    """Finds copies of images among others.

    Args:
        pictures: the others; their hashes are indexed once.
    """

    def __init__(self, pictures: Pictures) -> None:
        self._pictures = pictures
        self._index = HashIndex(pictures.hashes)
        self._exact = _Exact(pictures.sha256)

    def find(self, queries: Pictures, but: Collection[str] = (), done: Callable[[int], object] = _untold) -> list[Copy]:
        """Find the images of ``queries`` that are copies, each of the nearest that is confirmed.

        Args:
            queries: what is searched for. That groups are the same is not known across stores.
            but: sources of the pictures in which nothing is found.
            done: called with 1 for every image.
        """
        names = self._pictures.source_names
        left_out = np.array([name in but for name in names])[self._pictures.sources]
        found = []
        for index, (near, far) in enumerate(self._index.near(queries.hashes)):
            done(1)
            same = self._exact.first(queries.sha256[index])
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
    exact = _Exact(pictures.sha256)
    by_group = np.argsort(pictures.groups, kind="stable").astype(np.uint32)
    ends = np.cumsum(sizes := np.bincount(pictures.groups))
    found = []
    for index, (near, far) in enumerate(HashIndex(pictures.hashes).near(pictures.hashes)):
        copy = _copy_before(pictures, index, near, far, kept, exact)
        group = pictures.groups[index]
        if copy is None and 1 < sizes[group] <= _LARGE_GROUP:
            members = by_group[ends[group] - sizes[group] : ends[group]]
            copy = _piece_or_whole(pictures, index, members[(members < index) & kept[members]].tolist())
        if copy is not None:
            kept[index] = False
            found.append(copy)
        done(1)
    return found


def _copy_before(
    pictures: Pictures, index: int, near: np.ndarray, far: np.ndarray, kept: np.ndarray, exact: "_Exact"
) -> Copy | None:
    before = exact.first(pictures.sha256[index])
    if before is not None and before != index:
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
