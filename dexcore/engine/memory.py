"""The memory of this process: how much it took at most, and how it treats what is freed."""

import ctypes
import sys

import torch

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h of glibc
_LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> bool:
    """Ask the C library to keep freed memory for the next step instead of giving it back to the system.

    A training step on the CPU frees and asks for the same hundreds of megabytes each time: gradients and stored
    activations. glibc maps blocks above 32 MB anew, and the kernel clears every page again, which at ViT-B's width
    takes longer than all elementwise work of a layer. For a whole process, and for good: call it early in a program,
    never in a library.

    Returns:
        Whether it could be done: False where the C library is not glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _LARGEST_INT))


def peak_memory(device: torch.device) -> int:
    """The most memory in bytes that tensors took on an accelerator; elsewhere, that this process took."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # POSIX alone

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
