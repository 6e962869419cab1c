"""Which implementation runs: Triton where its kernels can, eager PyTorch everywhere else."""

import functools
import logging
import os
from importlib.util import find_spec

import torch

_log = logging.getLogger("dexcore")
_announced: set[str] = set()

BACKENDS = ("auto", "triton", "eager")
# What the kernels compute in; float64 is for eager alone.
TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class BackendUnavailableError(RuntimeError):
    """The backend asked for cannot run here; the message says why."""


def resolve(backend: str, device: torch.device, dtype: torch.dtype) -> str:
    """The backend that runs on tensors of this device, computing in this dtype: "eager" or "triton".

    "auto" is triton on CUDA and ROCm devices that the kernels are made for, else eager. The environment variable
    DEXCORE_BACKEND takes the place of "auto". What "auto" chose is logged once (INFO).

    Raises:
        ValueError: no such backend.
        BackendUnavailableError: "triton" was asked for and cannot run.
    """
    asked = backend
    if backend == "auto":
        asked = os.environ.get("DEXCORE_BACKEND", "auto")
    if asked not in BACKENDS:
        where = "backend" if asked == backend else "the environment variable DEXCORE_BACKEND"
        raise ValueError(f"{where} must be one of {', '.join(BACKENDS)}, got {asked!r}")
    if asked == "eager":
        return "eager"
    if asked == "auto" and device.type == "cpu":
        _announce("eager", "the fast path on the CPU")
        return "eager"
    obstacle = _obstacle(device, dtype)
    if asked == "triton" and obstacle:
        raise BackendUnavailableError(f"backend='triton' cannot run: {obstacle}; use 'eager' or 'auto'")
    if asked == "auto":
        _announce("eager" if obstacle else "triton", obstacle or f"kernels for {device.type}")
    return "eager" if obstacle else "triton"


def _announce(chosen: str, why: str) -> None:
    if not torch.compiler.is_compiling() and chosen not in _announced:
        _announced.add(chosen)
        _log.info("backend: %s (%s)", chosen, why)


@torch.compiler.assume_constant_result
def _obstacle(device: torch.device, dtype: torch.dtype) -> str:
    """Why the Triton kernels cannot run, or nothing."""
    if dtype not in TRITON_DTYPES:
        return f"the kernels compute in float32, float16 or bfloat16, not in {str(dtype).removeprefix('torch.')}"
    return _device_obstacle(device)


@functools.cache
def _device_obstacle(device: torch.device) -> str:
    if find_spec("triton") is None:
        return "the package triton is not installed"
    if device.type == "cpu":
        import triton

        if triton.knobs.runtime.interpret:
            return ""
        return "the tensors are on the CPU, where Triton only interprets, with TRITON_INTERPRET=1 set from the start"
    if device.type != "cuda":
        return f"the kernels run on CUDA and ROCm devices, the tensors are on {device.type}"
    from dexcore.kernels.configs import UnsupportedDeviceError, architecture_of

    try:
        architecture_of(device)
    except UnsupportedDeviceError as error:
        return str(error)
    return ""
