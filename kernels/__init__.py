"""Hand-written Triton kernels, one family a file; installed as ``dexcore.kernels``."""

from dexcore.kernels.warmup import warm_up

__all__ = ["warm_up"]
