"""A store as a torch dataset, `MVUDataset`, for people and for pre-training."""

import hashlib
import operator
import os
from functools import cached_property
from typing import Any, get_args

import numpy as np
from torch.utils.data import Dataset, get_worker_info

from dexcore.checks import check_odd, check_whole
from dexcore.data.feed.adjacent import adjacent_slices
from dexcore.data.feed.cache import DecodedCache
from dexcore.data.modality import Modality
from dexcore.data.record import Split
from dexcore.data.store import Store
from dexcore.data.store.manifest import StoreError
from dexcore.extras import require

MODALITIES = tuple(Modality)


def open_mvu(path: str | os.PathLike[str], slices: int = 1) -> "MVUDataset":
    """Open a store of Medical Vision Universe images; ``slices`` as for `MVUDataset`.

    Raises:
        StoreError: there is no sound store; the message names the file and what was expected.
    """
    return MVUDataset(path, slices=slices)


class MVUDataset(Dataset[dict[str, Any]]):
    """The images of a store and what is known about them.

    Items are dictionaries for people: ``image`` (float32 in [0, 1], [H, W] or [H, W, 3]), ``index``, and the
    store's columns (``modality``, ``source``, ``anatomy``, ``group``, ``split``, ``synthetic``, ...) and
    ``path``. Pickles as its path, so it travels to the workers of a DataLoader.

    With ``slices`` above 1 an image is gray, and its channels are so many neighbouring slices of its volume, itself in
    the middle: [H, W, slices]. Where a neighbour is not there (at the volume's ends, or a build dropped it), the last
    slice before it is repeated. What has no neighbour stays [H, W], which stands for equal channels.

    Args:
        path: folder of the store.
        cache: bytes of memory for decoded images, shared with workers that are forked later; a worker that is spawned
            takes its share of as much.
        slices: neighbouring slices that an image shows, odd; 1: itself.

    Attributes:
        fingerprint: of the store's content (`Manifest.fingerprint`), and of which slices are neighbours where they are
            shown.
        name: of the store.
        slices: as given.
        modality_names: the ten, in the order of `modality`.
    """

    modality_names = tuple(modality.value for modality in MODALITIES)

    def __init__(self, path: str | os.PathLike[str], cache: int = 0, slices: int = 1) -> None:
        check_whole("cache", cache, 0)
        check_odd("slices", slices)
        self._store = Store(path)
        self.slices = slices
        self.fingerprint = self._store.manifest.fingerprint
        if slices > 1:
            self._beside = adjacent_slices(self._store)  # here, before workers are forked, which then share it
            told = f"{self.fingerprint} {slices} ".encode() + self._beside.astype("<i8").tobytes()
            self.fingerprint = hashlib.sha256(told).hexdigest()
        self.name = self._store.manifest.name
        self._cache_bytes = cache
        self._cache = self._empty_cache(1)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self._store.folder, self.fingerprint, self._cache_bytes, self.slices)

    def _empty_cache(self, parts: int) -> DecodedCache | None:
        size = min(self._cache_bytes // parts, self._decoded_bytes())
        return DecodedCache(len(self), size) if size else None

    def _decoded_bytes(self) -> int:
        """At most: what all images take in memory, as RGB of 8 bits or gray of 16."""
        height, width = (self._store.column(name).to_numpy().astype(np.int64) for name in ("height", "width"))
        return int((height * width * 3 + 64).sum())

    def __len__(self) -> int:
        return len(self._store)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = operator.index(index)  # a tensor's or NumPy's too
        pixels = self.read(index)
        image = pixels.astype(np.float32) / np.float32(np.iinfo(pixels.dtype).max)
        return {"image": image, "index": index, **self._store.row(index)}

    def read(self, index: int) -> np.ndarray:
        """Decode one image as stored: uint8 or uint16 [H, W], or uint8 [H, W, 3]; gray, of ``slices`` above 1.

        Raises:
            ImageDecodeError: it, or a neighbour, does not decode; the message names shard and row.
        """
        if self.slices == 1:
            return self._decoded(index)
        rows = self._channels(index)
        planes = {row: _gray(self._decoded(row)) for row in dict.fromkeys(rows)}
        if len(planes) == 1:
            return planes[rows[0]]
        return np.stack([planes[row] for row in rows], axis=2)

    def _channels(self, index: int) -> list[int]:
        """The rows of the slices that an image shows, in order."""
        rows = [operator.index(index)]
        for _ in range(self.slices // 2):
            rows = [int(self._beside[0, rows[0]]), *rows, int(self._beside[1, rows[-1]])]
        return rows

    def _decoded(self, index: int) -> np.ndarray:
        """One image as it is stored, kept once it is decoded."""
        if self._cache is None and self._cache_bytes:  # a spawned worker's first
            worker = get_worker_info()
            self._cache = self._empty_cache(worker.num_workers if worker else 1)
        if self._cache is None:
            return self._store.image(index)
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of a store of {len(self)}")
        pixels = self._cache.get(index)
        if pixels is None:
            pixels = self._store.image(index)
            self._cache.put(index, pixels)
        return pixels

    def item(self, index: int) -> np.ndarray:
        """Give what a transform of the user's is given: the image as it is stored."""
        return self.read(index)

    @cached_property
    def modality(self) -> np.ndarray:
        """The modality of every image, int64 [n]: its place in ``tuple(Modality)``."""
        codes, names = self._encoded("modality")
        return np.array([MODALITIES.index(Modality(name)) for name in names])[codes]

    @cached_property
    def source(self) -> np.ndarray:
        """The source of every image, str objects [n]."""
        return self._strings("source")

    @cached_property
    def group(self) -> np.ndarray:
        """The patient, volume, video or file of every image, str objects [n]."""
        return self._strings("group")

    @cached_property
    def normalization(self) -> np.ndarray:
        """How every image came to lie in [0, 1], a name of `dexcore.data.normalize`, str objects [n]."""
        return self._strings("normalization")

    @cached_property
    def split(self) -> np.ndarray:
        """The split of every image, str objects [n]: "train" or "heldout"."""
        return self._strings("split")

    @cached_property
    def synthetic(self) -> np.ndarray:
        """Whether an image was generated, bool [n]."""
        return self._store.column("synthetic").to_numpy()

    def indices(self, split: Split) -> np.ndarray:
        """Give the images of a split, int64, ascending.

        Raises:
            ValueError: there is no such split.
        """
        if split not in get_args(Split):
            raise ValueError(f"split is {split!r}, expected one of {', '.join(get_args(Split))}")
        return np.flatnonzero(self.split == split)

    @cached_property
    def path(self) -> np.ndarray:
        """Where every image came from, as a build noted it, str objects [n]."""
        paths = [batch.column("image").field("path").to_pylist() for batch in self._store.batches]
        return np.array([path for part in paths for path in part], dtype=object)

    def content_hash(self, index: int) -> str:
        """SHA-256 of one image as it is stored, in hex; with ``slices`` above 1 of all that it shows."""
        hashes = [self._store.column("sha256")[row].as_py() for row in self._channels(index)]
        return hashes[0].hex() if self.slices == 1 else hashlib.sha256(b"".join(hashes)).hexdigest()

    def _encoded(self, column: str) -> tuple[np.ndarray, list[str]]:
        coded = self._store.column(column).combine_chunks().dictionary_encode()
        return coded.indices.to_numpy(), coded.dictionary.to_pylist()

    def _strings(self, column: str) -> np.ndarray:
        codes, names = self._encoded(column)
        return np.array(names, dtype=object)[codes]


def _gray(pixels: np.ndarray) -> np.ndarray:
    cv2 = require("cv2", "train")
    return cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY) if pixels.ndim == 3 else pixels


def _reopen(path: str | os.PathLike[str], fingerprint: str, cache: int, slices: int) -> MVUDataset:
    dataset = MVUDataset(path, slices=slices)
    dataset._cache_bytes = cache  # its memory is taken when it is first used
    if dataset.fingerprint != fingerprint:
        raise StoreError(f"{path} changed since it was opened: fingerprint {dataset.fingerprint}, not {fingerprint}")
    return dataset
