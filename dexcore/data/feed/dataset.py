"""A store as torch datasets: for people (`MVUDataset`) and for pre-training (`PretrainView`)."""

import logging
import operator
import os
from functools import cached_property
from typing import Any, get_args

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from dexcore.checks import check_kind, check_number, check_whole
from dexcore.data.feed.augment import CHANNEL_STATISTICS, MIN_AREA, augment, to_tensor
from dexcore.data.feed.keyed import Stream, generator
from dexcore.data.feed.order import SampleKey
from dexcore.data.modality import Modality
from dexcore.data.record import Split
from dexcore.data.store import Store
from dexcore.data.store.manifest import ImageDecodeError, StoreError
from dexcore.extras import require

_log = logging.getLogger(__name__)
_REPLACE_TRIES = 8
MODALITIES = tuple(Modality)


def open_mvu(path: str | os.PathLike[str]) -> "MVUDataset":
    """Open a store of Medical Vision Universe images.

    Raises:
        StoreError: there is no sound store; the message names the file and what was expected.
    """
    return MVUDataset(path)


class MVUDataset(Dataset[dict[str, Any]]):
    """The images of a store and what is known about them.

    Items are dictionaries for people: ``image`` (float32 in [0, 1], [H, W] or [H, W, 3]), ``index``, and the
    store's columns (``modality``, ``source``, ``anatomy``, ``group``, ``split``, ``synthetic``, ...) and
    ``path``. Pickles as its path, so it travels to the workers of a DataLoader.

    Attributes:
        fingerprint: of the store's content (`Manifest.fingerprint`).
        name: of the store.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._store = Store(path)
        self.fingerprint = self._store.manifest.fingerprint
        self.name = self._store.manifest.name

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self._store.folder, self.fingerprint)

    def __len__(self) -> int:
        return len(self._store)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = operator.index(index)  # a tensor's or NumPy's too
        pixels = self.read(index)
        image = pixels.astype(np.float32) / np.float32(np.iinfo(pixels.dtype).max)
        return {"image": image, "index": index, **self._store.row(index)}

    def read(self, index: int) -> np.ndarray:
        """Decode one image as stored: uint8 or uint16 [H, W], or uint8 [H, W, 3].

        Raises:
            ImageDecodeError: it does not decode; the message names shard and row.
        """
        return self._store.image(index)

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

    def _encoded(self, column: str) -> tuple[np.ndarray, list[str]]:
        coded = self._store.column(column).combine_chunks().dictionary_encode()
        return coded.indices.to_numpy(), coded.dictionary.to_pylist()

    def _strings(self, column: str) -> np.ndarray:
        codes, names = self._encoded(column)
        return np.array(names, dtype=object)[codes]


def _reopen(path: str | os.PathLike[str], fingerprint: str) -> MVUDataset:
    dataset = MVUDataset(path)
    if dataset.fingerprint != fingerprint:
        raise StoreError(f"{path} changed since it was opened: fingerprint {dataset.fingerprint}, not {fingerprint}")
    return dataset


class PretrainView(Dataset[dict[str, Any]]):
    """What a pre-training step needs of each sample, every draw keyed on (seed, epoch, sample id).

    An item depends on its key alone, on no rank, worker or batch position. It is a dictionary that a stock
    DataLoader stacks:

    - ``image`` float32 [3, size, size]: augmented and normalised;
    - ``modality`` int: place in ``tuple(Modality)``;
    - ``sample_id`` int: row in the store;
    - ``mask_noise`` float32 [num_patches], uniform in [0, 1);
    - ``router_noise`` float32 [sum(router_shape)], standard normal: the layers' noise end to end;
    - ``replaced`` bool: another image stands in for one that could not be decoded (then ``sample_id`` and
      ``modality`` are the stand-in's, the draws are still those of the one asked for). `ReplacementLimit`
      counts.

    Args:
        dataset: the store.
        indices: rows that take part; a key's ``position`` counts in them.
        size: pixels of the square output.
        seed: of all draws.
        num_patches: patches of an output image.
        router_shape: number of experts of each DEX layer.
        min_area: the smallest crop's share of an image's area.
        statistics: how channels are normalized, a name in `CHANNEL_STATISTICS`.

    Raises:
        TypeError, ValueError: an argument is of another type or out of its range; the message names it.
    """

    def __init__(
        self,
        dataset: MVUDataset,
        indices: np.ndarray,
        size: int,
        seed: int,
        num_patches: int,
        router_shape: list[int],
        min_area: float = MIN_AREA,
        statistics: str = "imagenet",
    ) -> None:
        check_kind("dataset", dataset, MVUDataset, "an MVUDataset")
        rows = np.asarray(indices)
        if rows.ndim != 1 or rows.size == 0 or rows.dtype.kind not in "iu":
            raise ValueError(
                f"indices must be at least one row [n], whole numbers, got {list(rows.shape)} {rows.dtype}"
            )
        if rows.min() < 0 or rows.max() >= len(dataset):
            raise ValueError(f"indices must be rows of the {len(dataset)} images, got {rows.min()} to {rows.max()}")
        check_whole("size", size, 1)
        check_whole("seed", seed, 0, 2**64 - 1)
        check_whole("num_patches", num_patches, 1)
        for experts in router_shape:
            check_whole("router_shape", experts, 1)
        check_number("min_area", min_area, "above 0 and at most 1", lambda x: 0 < x <= 1)
        if statistics not in CHANNEL_STATISTICS:
            raise ValueError(f"statistics must be one of {', '.join(CHANNEL_STATISTICS)}, got {statistics!r}")
        self.dataset = dataset
        self.indices = rows
        self.size = size
        self.seed = seed
        self.num_patches = num_patches
        self.router_shape = router_shape
        self.min_area = min_area
        self.statistics = statistics

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: SampleKey | tuple[int, int]) -> dict[str, Any]:
        if get_worker_info() is not None:
            # Workers run side by side: OpenCV's own threads in each would only contend.
            require("cv2", "train").setNumThreads(0)
        epoch, position = key
        asked = int(self.indices[position])
        sample_id, pixels = self._read(epoch, asked)
        image = augment(pixels, self.size, generator(self.seed, epoch, asked, Stream.AUGMENT), self.min_area)
        mask_rng = generator(self.seed, epoch, asked, Stream.MASK)
        router_rng = generator(self.seed, epoch, asked, Stream.ROUTER)
        return {
            "image": to_tensor(image, self.statistics),
            "modality": int(self.dataset.modality[sample_id]),
            "sample_id": sample_id,
            "mask_noise": torch.from_numpy(mask_rng.random(self.num_patches, dtype=np.float32)),
            "router_noise": torch.from_numpy(router_rng.standard_normal(sum(self.router_shape), dtype=np.float32)),
            "replaced": sample_id != asked,
        }

    def _read(self, epoch: int, asked: int) -> tuple[int, np.ndarray]:
        """Read a sample, or in place of a corrupt one another, always the same for the same key."""
        rng = generator(self.seed, epoch, asked, Stream.REPLACE)
        sample_id = asked
        for _ in range(_REPLACE_TRIES):
            try:
                return sample_id, self.dataset.read(sample_id)
            except ImageDecodeError as error:
                _log.warning("replaced: %s", error)
                sample_id = int(self.indices[rng.integers(len(self.indices))])
        raise StoreError(f"image {asked} and {_REPLACE_TRIES - 1} images in its place cannot be decoded")


class ReplacementLimit:
    """Counts replaced samples and fails above a rate. One bad image in the first batch is none yet.

    Args:
        rate: the largest share of replaced samples.
        at_least: samples the rate refers to while fewer were seen.

    Raises:
        TypeError, ValueError: ``rate`` is no share, or ``at_least`` no whole number.
    """

    def __init__(self, rate: float = 0.01, at_least: int = 1000) -> None:
        check_number("rate", rate, "a share from 0 to 1", lambda x: 0 <= x <= 1)
        check_whole("at_least", at_least, 0)
        self.rate = rate
        self.at_least = at_least
        self.seen = 0
        self.replaced = 0

    def update(self, replaced: torch.Tensor) -> None:
        """Count a batch.

        Args:
            replaced: bool [B], the batch's ``replaced``.

        Raises:
            StoreError: more than ``rate`` of the samples were replaced.
        """
        self.seen += replaced.numel()
        self.replaced += int(replaced.sum())
        if self.replaced > self.rate * max(self.seen, self.at_least):
            raise StoreError(
                f"{self.replaced} of {self.seen} samples could not be decoded, allowed is a share of "
                f"{self.rate}; check_store names what is damaged"
            )
