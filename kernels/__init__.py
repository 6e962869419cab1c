"""Hand-written Triton kernels, one family a file; installed as ``dexcore.kernels``."""
