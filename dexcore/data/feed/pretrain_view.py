"""What a pre-training step is given: images changed at random, and the draws that go with them."""

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, default_collate, get_worker_info

from dexcore.checks import check_kind, check_number, check_whole
from dexcore.data.feed.augment import CHANNEL_STATISTICS, PAPER, Augmentation, augment, to_tensor
from dexcore.data.feed.dataset import MVUDataset
from dexcore.data.feed.keyed import Stream, generator, seeded_by
from dexcore.data.feed.order import SampleKey
from dexcore.data.feed.own import OwnImages
from dexcore.data.store.manifest import ImageDecodeError, StoreError
from dexcore.extras import require

Images = MVUDataset | OwnImages

_log = logging.getLogger(__name__)
_REPLACE_TRIES = 8


class PretrainView(Dataset[dict[str, Any]]):
    """What a pre-training step needs of each sample, every draw keyed on (seed, epoch, sample id).

    An item depends on its key alone, on no rank, worker or batch position. It is a dictionary that a stock
    DataLoader stacks (with ``collate_fn=collate`` without a copy of the images, but for that from a worker):

    - ``image`` float32 [channels, size, size]: augmented and normalised, or what ``transform`` made of it;
    - ``modality`` int: place in the data set's ``modality_names``;
    - ``sample_id`` int: row in the data set;
    - ``mask_noise`` float32 [num_patches], uniform in [0, 1);
    - ``router_noise`` float32 [sum(router_shape)], standard normal: the layers' noise end to end;
    - ``replaced`` bool: another image stands in for one that could not be decoded (then ``sample_id`` and
      ``modality`` are the stand-in's, the draws are still those of the one asked for). `ReplacementLimit`
      counts.

    Args:
        dataset: a store, or the user's images (`OwnImages`).
        indices: rows that take part; a key's ``position`` counts in them.
        size: pixels of the square output.
        seed: of all draws.
        num_patches: patches of an output image.
        router_shape: number of experts of each DEX layer.
        augmentation: how images are changed at random.
        statistics: how channels are normalized, a name in `CHANNEL_STATISTICS`.
        channels: of the output: gray is repeated, RGB becomes gray where it is 1.
        mirrored: modalities that ``augmentation.flip`` is for, by their names; others are never mirrored. None: all.
        transform: makes the network's input of an item instead, as the data set gave it: a float tensor
            [channels, size, size]. Python's, NumPy's and torch's global generators are seeded by the key before it is
            called, and are afterwards as they were.

    Raises:
        TypeError, ValueError: an argument is of another type or out of its range; the message names it.
    """

    def __init__(
        self,
        dataset: Images,
        indices: np.ndarray,
        size: int,
        seed: int,
        num_patches: int,
        router_shape: list[int],
        augmentation: Augmentation = PAPER,
        statistics: str = "imagenet",
        channels: int = 3,
        mirrored: Collection[str] | None = None,
        transform: Callable[[Any], torch.Tensor] | None = None,
    ) -> None:
        check_kind("dataset", dataset, Images, "an MVUDataset or OwnImages")
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
        check_kind("augmentation", augmentation, Augmentation, "an Augmentation")
        check_whole("channels", channels, 1)
        if statistics not in CHANNEL_STATISTICS:
            raise ValueError(f"statistics must be one of {', '.join(CHANNEL_STATISTICS)}, got {statistics!r}")
        self.dataset = dataset
        self.indices = rows
        self.size = size
        self.seed = seed
        self.num_patches = num_patches
        self.router_shape = router_shape
        self.statistics = statistics
        self.channels = channels
        self.transform = transform
        # By modality, an entry a name of the data set's.
        self.augmentations = [
            augmentation if mirrored is None or name in mirrored else replace(augmentation, flip=0.0)
            for name in dataset.modality_names
        ]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: SampleKey | tuple[int, int]) -> dict[str, Any]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[SampleKey | tuple[int, int]]) -> "Items":
        """What a DataLoader asks for: the items of a batch, whose images lie in one array."""
        # NumPy asks for huge pages. In ordinary ones the system's first touch may take as long as decoding.
        images = torch.from_numpy(np.empty((len(keys), self.channels, self.size, self.size), np.float32))
        return Items([self._item(key, out) for key, out in zip(keys, images, strict=True)], images)

    def _item(self, key: SampleKey | tuple[int, int], out: torch.Tensor) -> dict[str, Any]:
        """The item of a key; its image is written to ``out``."""
        if get_worker_info() is not None:
            # Workers run side by side: OpenCV's own threads in each would only contend.
            require("cv2", "train").setNumThreads(0)
        epoch, position = key
        asked = int(self.indices[position])
        sample_id = self._read(epoch, asked, out)
        mask_rng = generator(self.seed, epoch, asked, Stream.MASK)
        router_rng = generator(self.seed, epoch, asked, Stream.ROUTER)
        return {
            "image": out,
            "modality": int(self.dataset.modality[sample_id]),
            "sample_id": sample_id,
            "mask_noise": torch.from_numpy(mask_rng.random(self.num_patches, dtype=np.float32)),
            "router_noise": torch.from_numpy(router_rng.standard_normal(sum(self.router_shape), dtype=np.float32)),
            "replaced": sample_id != asked,
        }

    def _read(self, epoch: int, asked: int, out: torch.Tensor) -> int:
        """Make a sample, or in place of a corrupt one another, always the same for the same key; gives its id."""
        sample_id, rng = asked, None
        for _ in range(_REPLACE_TRIES):
            try:
                self._write_image(sample_id, generator(self.seed, epoch, asked, Stream.AUGMENT), out)
                return sample_id
            except ImageDecodeError as error:
                _log.warning("replaced: %s", error)
                rng = rng or generator(self.seed, epoch, asked, Stream.REPLACE)
                sample_id = int(self.indices[rng.integers(len(self.indices))])
        raise StoreError(f"image {asked} and {_REPLACE_TRIES - 1} images in its place cannot be decoded")

    def _write_image(self, sample_id: int, rng: np.random.Generator, out: torch.Tensor) -> None:
        if self.transform is None:
            settings = self.augmentations[self.dataset.modality[sample_id]]
            pixels = augment(self.dataset.read(sample_id), self.size, rng, settings)
            to_tensor(pixels, self.statistics, self.channels, out)
            return
        with seeded_by(rng):
            made = self.transform(self.dataset.item(sample_id))
        if not (isinstance(made, torch.Tensor) and made.is_floating_point() and made.shape == out.shape):
            found = f"{made.dtype} {list(made.shape)}" if isinstance(made, torch.Tensor) else type(made).__name__
            raise TypeError(f"transform must give a float tensor {list(out.shape)}, got {found}")
        out.copy_(made.detach())


class Items(list[dict[str, Any]]):
    """The items of a batch, and their images side by side.

    Attributes:
        images: float32 [B, channels, size, size]; each item's ``image`` is a part of it.
    """

    def __init__(self, items: list[dict[str, Any]], images: torch.Tensor) -> None:
        super().__init__(items)
        self.images = images


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack a batch as ``default_collate`` does; the images of `Items` without a copy."""
    if not isinstance(items, Items):
        return default_collate(items)
    rest = default_collate([{name: value for name, value in item.items() if name != "image"} for item in items])
    return {"image": items.images, **rest}


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
