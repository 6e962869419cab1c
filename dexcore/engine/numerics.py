"""How PyTorch computes inside a run: by deterministic algorithms alone, by TF32. After it all is as before."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from dexcore.engine.config import ConfigError

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
_DETERMINISTIC_WORKSPACES = (":4096:8", ":16:8")  # NVIDIA's


@contextmanager
def deterministic(on: bool, field: str = "deterministic") -> Iterator[None]:
    """Where ``on``, PyTorch refuses what it cannot compute twice alike inside. Enter it before CUDA is used.

    Args:
        on: False does nothing.
        field: what users know it as.

    Raises:
        ConfigError: CUDA was used in this process already, without the workspaces that cuBLAS needs for it.
    """
    if not on:
        yield
        return
    given, cudnn = os.environ.get(_WORKSPACE), torch.backends.cudnn
    if given not in _DETERMINISTIC_WORKSPACES and torch.cuda.is_initialized():
        raise ConfigError(
            f"{field}: expected {_WORKSPACE}={_DETERMINISTIC_WORKSPACES[0]} in the environment where CUDA was used "
            f"before, got {given!r}"
        )
    algorithms = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = cudnn.benchmark
    try:
        if given not in _DETERMINISTIC_WORKSPACES:
            os.environ[_WORKSPACE] = _DETERMINISTIC_WORKSPACES[0]
        torch.use_deterministic_algorithms(True)
        cudnn.benchmark = False
        yield
    finally:
        cudnn.benchmark = benchmark
        torch.use_deterministic_algorithms(algorithms[0], warn_only=algorithms[1])
        if given is None:
            os.environ.pop(_WORKSPACE, None)
        else:
            os.environ[_WORKSPACE] = given


@contextmanager
def tf32(on: bool) -> Iterator[None]:
    """Where ``on``, float32 products of matrices take TF32 inside, on devices that have it."""
    if not on:
        yield
        return
    # PyTorch's older word sets the state that its newer ones read; the other way round reading the older one fails.
    word, before = torch.get_float32_matmul_precision(), [part.fp32_precision for part in _products()]
    try:
        torch.set_float32_matmul_precision("high")
        yield
    finally:
        torch.set_float32_matmul_precision(word)
        for part, precision in zip(_products(), before, strict=True):
            part.fp32_precision = precision


def numerics() -> dict[str, bool]:
    """What holds now, to be written down."""
    algorithms = torch.are_deterministic_algorithms_enabled()
    return {"deterministic": algorithms, "tf32": _products()[0].fp32_precision == "tf32"}


def _products() -> tuple[Any, Any]:
    """PyTorch's settings of products of matrices, on GPUs and on CPUs."""
    backends: Any = torch.backends
    return backends.cuda.matmul, backends.mkldnn.matmul
