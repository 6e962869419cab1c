"""How this process treats freed memory."""

import ctypes

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
