"""Shared by all tests: offline, deterministic, two threads; Triton's kernels are interpreted, but for ``-m gpu``."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(2)


def pytest_configure(config):
    # Before any test imports Triton. Tests on a GPU need compiled kernels, and a run of their own.
    marks = config.option.markexpr
    if "gpu" not in marks or "not gpu" in marks:
        os.environ["TRITON_INTERPRET"] = "1"
    else:
        # Before cuBLAS starts: without it older PyTorch refuses deterministic algorithms, which fill memory with NaN.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


# On a slow machine no test is wrong; under CI hypothesis leaves this check out by itself.
slow = [HealthCheck.too_slow]
settings.register_profile("dexcore", deadline=None, derandomize=True, max_examples=25, suppress_health_check=slow)
settings.load_profile("dexcore")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
