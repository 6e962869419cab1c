"""A dense layer by oneDNN, for CPUs where what PyTorch calls is the slower: in float32 Intel's MKL, in bf16 oneDNN too,
but with the bias copied into the result first.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

ONEDNN_DTYPES = (torch.float32, torch.bfloat16)


def faster_by_onednn(device: torch.device) -> bool:
    """Whether a dense layer on ``device`` is faster by `linear` than by `torch.nn.functional.linear`.

    So it is on AMD's CPUs with AVX-512 (measured on Zen 4: ``python -m bench.step`` times the published step with
    either). It takes an operator that PyTorch has for its compiler, and documents nowhere. Where PyTorch has none, or
    cannot name the CPU (before 2.11), this is false.
    """
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return False
    here = torch.cpu.get_capabilities()
    amd_with_avx512 = str(here.get("cpu_name", "")).startswith("AMD") and bool(here.get("avx512_f"))
    return amd_with_avx512 and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`torch.nn.functional.linear` on the CPU: x [..., I], weight [O, I], bias [O] or None.

    All of one of `ONEDNN_DTYPES`; x needs two axes at least. The sums are plain float32, in another order than MKL's.
    """
    return _Linear.apply(x, weight, bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        to_x, to_weight, to_bias = ctx.needs_input_grad
        rows = grad.flatten(0, -2)
        return (
            _product(grad, weight.t(), None) if to_x else None,
            rows.t() @ x.flatten(0, -2) if to_weight else None,  # oneDNN has no advantage in this one
            rows.sum(0) if to_bias else None,
        )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y = torch.ops.mkldnn._linear_pointwise(x.flatten(0, -2), weight, bias, "none", [], "")
    return y.unflatten(0, x.shape[:-1])
