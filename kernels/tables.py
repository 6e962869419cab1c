"""Tables on the device in which a kernel finds the tensors that it works through, kept while these stay where they are.

A table is a function of its key, which holds all that it depends on: addresses, shapes, strides and dtypes. It holds no
tensor that it points to. The tables used last are kept, and those that a CUDA graph reads for good: nobody says when a
graph goes.
"""

from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

import torch
from torch import Tensor

Key = TypeVar("Key", bound=Hashable)
Table = TypeVar("Table")


class Tables(Generic[Key, Table]):
    """The tables of one kernel.

    Args:
        build: makes a table on the device of its key.
        most: how many of those used last are kept.
        missing: the message where a capture needs a table that is not there.
    """

    def __init__(self, build: Callable[[Key], Table], most: int, missing: str) -> None:
        self._build, self._most, self._missing = build, most, missing
        self._recent: dict[Key, Table] = {}  # the last used last
        self._captured: dict[Key, Table] = {}
        self._lock = Lock()  # autograd's threads launch too

    def __len__(self) -> int:
        """Tables used last; those of graphs do not count."""
        return len(self._recent)

    def __contains__(self, key: Key) -> bool:
        return key in self._recent or key in self._captured

    def find(self, key: Key, device: torch.device) -> Table:
        """The table kept for a key, or a new one.

        Raises:
            RuntimeError: a CUDA graph is being captured, and there is none: it cannot be copied to the device within.
        """
        with self._lock:
            found = self._recent.pop(key, self._captured.get(key))
            if is_capturing(device):
                if found is None:
                    raise RuntimeError(self._missing)
                self._captured[key] = found
            found = self._build(key) if found is None else found
            self._recent[key] = found
            if len(self._recent) > self._most:
                self._recent.pop(next(iter(self._recent)))
            return found


def is_capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured on the current stream."""
    return device.type == "cuda" and torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def tensor_of_block(counts: list[int], device: torch.device) -> Tensor:
    """[programs] int32: the tensor that a program works on, where tensor t has ``counts[t]`` blocks."""
    tensors = torch.arange(len(counts), dtype=torch.int32)
    return tensors.repeat_interleave(torch.tensor(counts)).to(device)
