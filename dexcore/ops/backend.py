"""Which implementation runs: Triton where its kernels can, eager PyTorch everywhere else."""

import functools
import logging
import os
from importlib.util import find_spec
from typing import NamedTuple

import torch

_log = logging.getLogger("dexcore")
_announced: set[str] = set()

BACKENDS = ("auto", "triton", "eager")
# What the kernels compute in; float64 is for eager alone.
TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class BackendUnavailableError(RuntimeError):
    """The backend asked for cannot run here; the message says why."""


class Choice(NamedTuple):
    """What runs, "eager" or "triton", and why."""

    backend: str
    reason: str

    def __str__(self) -> str:
        return f"{self.backend} ({self.reason})"


def resolve(
    backend: str,
    device: torch.device,
    dtype: torch.dtype,
    precision: str | None = None,
) -> str:
    """`choose`'s backend; what "auto" chose is logged, each choice and reason once (INFO)."""
    choice, automatic = _choose(backend, device, dtype, precision)
    if automatic:
        _announce(choice)
    return choice.backend


def choose(
    backend: str,
    device: torch.device,
    dtype: torch.dtype,
    precision: str | None = None,
) -> Choice:
    """The backend that runs on tensors of this device, computing in this dtype.

    "auto" is triton on CUDA and ROCm devices that the kernels are made for, else eager; but in float32 at precision
    "ieee" an NVIDIA GPU runs the experts eagerly. The environment variable DEXCORE_BACKEND takes the place of "auto".

    Args:
        backend: "auto", "triton" or "eager".
        device: of the tensors.
        dtype: what is computed in.
        precision: of float32 dot products, for what spends its time there: the experts. None for the rest.

    Raises:
        ValueError: no such backend.
        BackendUnavailableError: "triton" was asked for and cannot run.
    """
    return _choose(backend, device, dtype, precision)[0]


def _choose(backend: str, device: torch.device, dtype: torch.dtype, precision: str | None) -> tuple[Choice, bool]:
    """The choice, and whether it was left to "auto"."""
    asked = backend
    if backend == "auto":
        asked = os.environ.get("DEXCORE_BACKEND", "auto")
    if asked not in BACKENDS:
        where = "backend" if asked == backend else "the environment variable DEXCORE_BACKEND"
        raise ValueError(f"{where} must be one of {', '.join(BACKENDS)}, got {asked!r}")
    if asked == "eager":
        return Choice("eager", "asked for"), False
    if asked == "auto" and device.type == "cpu":
        return Choice("eager", "the fast path on the CPU"), True
    obstacle = _obstacle(device, dtype)
    if asked == "triton":
        if obstacle:
            raise BackendUnavailableError(f"backend='triton' cannot run: {obstacle}; use 'eager' or 'auto'")
        return Choice("triton", "asked for"), False
    if not obstacle and dtype == torch.float32 and precision == "ieee" and not torch.version.hip:
        # There the kernels' dots are FMAs of operands from shared memory, 15 to 30 TFLOP/s on an H100, where cuBLAS
        # does about 50: a prediction, not measured. AMD's matrix cores multiply IEEE float32.
        obstacle = "experts in float32 at precision 'ieee' have no tensor cores, and without them cuBLAS leads"
    return Choice("eager", obstacle) if obstacle else Choice("triton", f"kernels for {device.type}"), True


def _announce(choice: Choice) -> None:
    if not torch.compiler.is_compiling() and str(choice) not in _announced:
        _announced.add(str(choice))
        _log.info("backend: %s", choice)


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
