"""Random draws that are pure functions of (seed, epoch, sample, stream): no state, no order of calls.

A draw keyed this way does not depend on which rank, worker or batch position asks for it, and a resumed run
makes the draws that the interrupted one would have made.

The generator is Philox4x64 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): a cipher
from a 128-bit key and a 256-bit counter to 256 random bits. The words, 64 bits each:

    key      seed, stream
    counter  running, 0, sample, epoch        (lowest word first; numpy adds one to it for every block)

Two different tuples differ in a word that is never incremented (2^64 blocks would be needed to carry), so
their sequences never overlap. Philox itself is fixed for ever; numpy may change between releases how it
shapes bits into distributions (NEP 19).
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import numpy as np
import torch
from numpy.random.bit_generator import ISeedSequence

from dexcore.checks import check_kind, check_whole


class Stream(IntEnum):
    """What a draw is for. A number, once given, keeps its meaning: stored runs depend on it."""

    CYCLE = 0  # the order of a modality's images in one pass (as epoch); the modality is the sample
    SHUFFLE = 1  # the order of an epoch; the sample is 0
    AUGMENT = 2  # crop, flip and rotation
    MASK = 3  # the masked autoencoder's mask
    ROUTER = 4  # exploration noise of all routers
    REPLACE = 5  # which image stands in for one that cannot be decoded
    DROP = 6  # dropout and skipped blocks of a fine-tuning; the epoch is the step, the sample 0


class _Key(ISeedSequence):
    """Philox's key where NumPy expects a seed: given as ``key=``, it costs a needless seed from the system as well."""

    def __init__(self, seed: int, stream: Stream) -> None:
        self._words = np.array([seed, stream], dtype=np.uint64)

    def generate_state(self, n_words: int, dtype: object = np.uint64) -> np.ndarray:
        return self._words


def generator(seed: int, epoch: int, sample: int, stream: Stream) -> np.random.Generator:
    """Give the generator of one key.

    Args:
        seed: the run's seed, 0 to 2^64 - 1, as are the next two.
        epoch: the pass over the data.
        sample: the sample's id.
        stream: what the draws are for.

    Raises:
        TypeError: an argument is no whole number, which numpy would round in silence, or ``stream`` no `Stream`.
        ValueError: an argument is outside its range.
    """
    for name, value in (("seed", seed), ("epoch", epoch), ("sample", sample)):
        check_whole(name, value, 0, 2**64 - 1)
    check_kind("stream", stream, Stream, "a Stream")
    counter = np.array([0, 0, sample, epoch], dtype=np.uint64)
    # NumPy documents any ISeedSequence as a seed; its stubs name one of them only.
    return np.random.Generator(np.random.Philox(_Key(seed, stream), counter=counter))  # type: ignore[arg-type]


@contextmanager
def seeded_by(rng: np.random.Generator) -> Iterator[None]:
    """Seed the global generators of Python, NumPy and torch (the CPU's) by a draw of ``rng``; afterwards they are as
    they were. For code of others, which draws from them.
    """
    seed = int(rng.integers(2**32))
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
