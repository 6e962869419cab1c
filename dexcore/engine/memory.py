"""The memory of this process: how much it took at most, and how it treats what is freed."""

import ctypes
import sys

import torch

_MIB = 2**20
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h of glibc
_LARGEST_INT = 2**31 - 1


class NotEnoughMemoryError(RuntimeError):
    """A run needs more memory than there is; the message says whose, when, how much there is, and what takes less."""


def is_lack_of_memory(error: BaseException) -> bool:
    """Whether an error is one: PyTorch has a type of its own for accelerators alone."""
    said = ("can't allocate memory", "CUDA error: out of memory", "ALLOC_FAILED")  # of hosts, of pinned memory, cuBLAS
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(words in str(error) for words in said)


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


def memory_in_words(device: torch.device) -> str:
    """How much of a device's memory is taken and free now; elsewhere than on a GPU, what this process took at most."""
    if device.type != "cuda":
        return f"this process took {peak_memory(device) / _MIB:,.0f} MiB at most"
    free, total = torch.cuda.mem_get_info(device)
    allocated, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
    numbers = [f"{number / _MIB:,.0f}" for number in (allocated, reserved, free, total)]
    return "{} MiB allocated, {} reserved, {} free of {}".format(*numbers)
