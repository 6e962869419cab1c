"""Shared by all tests: offline, deterministic, two threads; Triton's kernels are interpreted, but for ``-m gpu``."""

import os
import sys
from itertools import pairwise

# Before anything imports timm, and timm Triton. Tests on a GPU need compiled kernels, and a run of their own.
ON_GPU = any(option == "-m" and "gpu" in marks and "not gpu" not in marks for option, marks in pairwise(sys.argv))
if ON_GPU:
    # Before cuBLAS starts: without it older PyTorch refuses deterministic algorithms, which fill memory with NaN.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
else:
    os.environ["TRITON_INTERPRET"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

torch.set_num_threads(2)

# On a slow machine no test is wrong; under CI hypothesis leaves this check out by itself.
slow = [HealthCheck.too_slow]
settings.register_profile("dexcore", deadline=None, derandomize=True, max_examples=25, suppress_health_check=slow)
settings.load_profile("dexcore")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
