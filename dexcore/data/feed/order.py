"""The global order of samples: a function of (seed, epoch), cut into batches for any number of ranks.

Every rank computes the same order and takes its slice of every global batch, so the samples of step t are the
same whatever the number of ranks and workers, and a resume at step t goes on at the exact sample.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from dexcore.checks import check_kind, check_number, check_whole
from dexcore.data.feed.keyed import Stream, generator

# Epoch e shifts the apportionment by the fractional part of e / golden ratio. These fractions fill [0, 1)
# evenly, so a modality that is due 2.3 samples an epoch gets 2.3 in the long run.
_INVERSE_GOLDEN_RATIO = (5**0.5 - 1) / 2


class SampleKey(NamedTuple):
    """What the sampler hands to the dataset.

    Attributes:
        epoch: which pass over its modality shows this sample, the ``epoch`` of its keyed draws. Without
            balancing it is the epoch; with it a rare modality passes several times an epoch, with new draws
            each time.
        position: the sample's place in ``modality_ids``.
    """

    epoch: int
    position: int


class GlobalOrder:
    """The order of all samples, for every epoch.

    Every modality goes through a permutation of its own images, then through another one, so all its images
    come up before one comes up again. An epoch takes from each what it is due and shuffles.

    Args:
        modality_ids: integers [n], the modality of each sample (any labels).
        seed: of the permutations, 0 to 2^64 - 1.
        balance: 0 keeps the natural shares s_m of the modalities, 1 gives every modality an equal share;
            between, shares are proportional to s_m ** (1 - balance).
        epoch_size: samples an epoch; None is n, so that with ``balance=0`` an epoch is a permutation of all.

    Raises:
        TypeError: an argument is of another kind; the message names it, as the next does.
        ValueError: an argument is out of its range.
    """

    def __init__(
        self, modality_ids: np.ndarray, seed: int, balance: float = 0.0, epoch_size: int | None = None
    ) -> None:
        modality_ids = np.asarray(modality_ids)
        if modality_ids.ndim != 1 or modality_ids.size == 0 or modality_ids.dtype.kind not in "iu":
            raise ValueError(
                f"modality_ids has shape {modality_ids.shape} and dtype {modality_ids.dtype}, "
                "expected a vector of at least one integer"
            )
        check_whole("seed", seed, 0, 2**64 - 1)
        check_number("balance", balance, "from 0 (natural) to 1 (equal shares)", lambda x: 0 <= x <= 1)
        if epoch_size is not None:
            check_whole("epoch_size", epoch_size, 1)
        self.seed = seed
        self.epoch_size = modality_ids.size if epoch_size is None else epoch_size
        _, codes, sizes = np.unique(modality_ids, return_inverse=True, return_counts=True)
        self._members = np.split(np.argsort(codes, kind="stable"), np.cumsum(sizes)[:-1])
        weights = (sizes / sizes.sum()) ** (1.0 - balance)
        edges = np.concatenate([[0.0], np.cumsum(weights / weights.sum())]) * self.epoch_size
        # Rounded, so that the natural shares are whole numbers and an epoch is exactly one pass.
        self._edges = np.round(edges, 6)

    def epoch(self, epoch: int) -> np.ndarray:
        """Give the samples of an epoch in their order, int64 [epoch_size]; raises as `keys`."""
        return self.keys(epoch)[:, 1]

    def keys(self, epoch: int) -> np.ndarray:
        """Give the `SampleKey` of an epoch's samples in their order, int64 [epoch_size, 2].

        Raises:
            TypeError, ValueError: ``epoch`` is no whole number, or negative.
        """
        check_whole("epoch", epoch, 0)
        before = self._counts(np.arange(epoch)).sum(axis=0)
        after = before + self._counts(np.array([epoch]))[0]
        parts = [
            self._passes(modality, start, stop)
            for modality, (start, stop) in enumerate(zip(before.tolist(), after.tolist(), strict=True))
        ]
        keys = np.concatenate(parts)
        return keys[generator(self.seed, epoch, 0, Stream.SHUFFLE).permutation(len(keys))]

    def _counts(self, epochs: np.ndarray) -> np.ndarray:
        """Apportion each epoch among the modalities by systematic sampling, int64 [epochs, modalities]."""
        offset = (epochs[:, None] * _INVERSE_GOLDEN_RATIO) % 1.0
        return np.diff(np.ceil(self._edges[None] - offset), axis=1).astype(np.int64)

    def _passes(self, modality: int, start: int, stop: int) -> np.ndarray:
        """Give the keys ``start`` to ``stop`` of a modality's endless sequence of permutations."""
        members = self._members[modality]
        size = len(members)
        parts = [np.empty((0, 2), np.int64)]
        for cycle in range(start // size, -(-stop // size)):
            order = generator(self.seed, cycle, modality, Stream.CYCLE).permutation(members)
            order = order[max(start - cycle * size, 0) : stop - cycle * size]
            parts.append(np.stack([np.full_like(order, cycle), order], axis=1))
        return np.concatenate(parts)


class GlobalBatchSampler(Sampler[list[SampleKey]]):
    """Batches of one rank, for a stock ``DataLoader(dataset, batch_sampler=...)``.

    Global batch t holds samples t * batch_size up to (t + 1) * batch_size of the epochs laid end to end: a
    batch may hold the last samples of one epoch and the first of the next, and no sample is dropped. Rank r
    gets the r-th of ``world_size`` equal parts.

    Args:
        order: the global order.
        batch_size: samples a step over all ranks; a multiple of ``world_size``.
        rank: of this process.
        world_size: number of processes.
        start_step: the first step to yield: steps done before a resume.
        total_steps: the step before which to stop.

    Raises:
        TypeError: an argument is of another kind; the message names it, as the next does.
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        order: GlobalOrder,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
        *,
        total_steps: int,
    ) -> None:
        check_kind("order", order, GlobalOrder, "a GlobalOrder")
        check_whole("world_size", world_size, 1)
        check_whole("rank", rank, 0, world_size - 1)
        check_whole("batch_size", batch_size, 1)
        if batch_size % world_size:
            raise ValueError(f"batch_size is {batch_size}, expected a multiple of world_size ({world_size})")
        check_whole("total_steps", total_steps, 0)
        check_whole("start_step", start_step, 0, total_steps)
        self.order = order
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.start_step = start_step
        self.total_steps = total_steps

    def __len__(self) -> int:
        return self.total_steps - self.start_step

    def __iter__(self) -> Iterator[list[SampleKey]]:
        share = self.batch_size // self.world_size
        size = self.order.epoch_size
        epoch, keys = -1, np.empty((0, 2), np.int64)
        for step in range(self.start_step, self.total_steps):
            batch = []
            first = step * self.batch_size + self.rank * share
            for place in range(first, first + share):
                if place // size != epoch:
                    epoch = place // size
                    keys = self.order.keys(epoch)
                batch.append(SampleKey(*keys[place % size].tolist()))
            yield batch

    def state(self, step: int, fingerprint: str) -> dict[str, int | str]:
        """Describe the order after ``step`` steps, for a checkpoint.

        Args:
            step: steps that were trained on (not merely loaded ahead).
            fingerprint: of the store the samples come from.

        Returns:
            ``seed``, ``epoch`` (the one the next sample belongs to), ``consumed`` (samples over all ranks and
            epochs) and ``fingerprint``.

        Raises:
            TypeError, ValueError: ``step`` is no whole number, or negative.
        """
        check_whole("step", step, 0)
        consumed = step * self.batch_size
        return {
            "seed": self.order.seed,
            "epoch": consumed // self.order.epoch_size,
            "consumed": consumed,
            "fingerprint": fingerprint,
        }
