"""How a command that trains ends after an error: a line on stderr, and a number."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

import torch

EXIT_ERROR = 2


def failed(rank: int, reason: str) -> int:
    """Tell why, and give what the process should return."""
    print(f"error: {reason}" if rank == 0 else f"error on rank {rank}: {reason}", file=sys.stderr, flush=True)
    return EXIT_ERROR


def is_lack_of_memory(error: Exception) -> bool:
    """Whether it is one: PyTorch has a type of its own for accelerators alone."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


@contextmanager
def silence() -> Iterator[None]:
    """Nothing is shown: the main rank alone shows help and errors of a command line."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield
