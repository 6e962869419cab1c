"""What of the machine a run uses: its device, and processes that prepare batches."""

import os
import textwrap

import torch

from dexcore.engine.config import ConfigError
from dexcore.ops.backend import BackendUnavailableError, resolve


def choose_device(name: str, local_rank: int | None = None, field: str = "device") -> torch.device:
    """``auto``: the accelerator PyTorch finds, else the CPU; or the device of that name.

    Args:
        name: as the user gave it.
        local_rank: of this process among those of its machine, each of which gets an accelerator of its own; None
            for a process alone.
        field: what users know it as.

    Raises:
        ConfigError: there is no such device here, or not one for each process.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        name = str(accelerator or "cpu")
    try:
        device = torch.device(name)
        if local_rank is not None and device.type != "cpu":
            if device.index is not None:
                raise ConfigError(
                    f"{field}: expected auto, cpu or {device.type} where several processes share a machine, got "
                    f"{name!r}; each takes a device of its own"
                )
            device = torch.device(device.type, local_rank)
        torch.zeros(1, device=device).item()  # "meta" holds no numbers
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = textwrap.shorten(str(error).splitlines()[0], 160, placeholder=" ...")
        of_rank = "" if local_rank is None else f" for process {local_rank} of this machine"
        raise ConfigError(
            f"{field}: expected auto or a device that is here, got {name!r}{of_rank} ({reason})"
        ) from error
    return device


def check_backend(backend: str, device: torch.device) -> None:
    """Refuse a ``model.backend`` that cannot run on ``device``.

    Raises:
        ConfigError: it cannot, or there is no such backend.
    """
    try:
        resolve(backend, device, torch.float32)
    except (BackendUnavailableError, ValueError) as error:
        raise ConfigError(f"model.backend: {error}") from error


def choose_workers(asked: int, processes: int) -> int:
    """How many processes prepare a training process's batches, of which ``processes`` share the machine."""
    if asked >= 0:
        return asked
    return min(max(len(os.sched_getaffinity(0)) // processes - 2, 0), 8)


def device_name(device: torch.device) -> str:
    """What people call ``device``."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
