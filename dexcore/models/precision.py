"""In which precision a model is computed, and where bfloat16 is fast."""

from contextlib import AbstractContextManager, nullcontext

import torch


def fast_bf16(device: torch.device) -> bool:
    """Whether ``device`` has matrix instructions for bfloat16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
    return False


def uses_bf16(device: torch.device, precision: str) -> bool:
    """Whether to compute in bf16 by ``precision``: ``fp32``, ``bf16``, or ``auto`` for what is fast there."""
    return precision == "bf16" or (precision == "auto" and fast_bf16(device))


def compute_dtype(device: torch.device, precision: str) -> torch.dtype:
    """What ``precision`` computes in on ``device``."""
    return torch.bfloat16 if uses_bf16(device, precision) else torch.float32


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """The context to compute losses in: bf16 autocast, or nothing."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if uses_bf16(device, precision) else nullcontext()
