"""`group_ema_`: directors follow their experts' weighted mean (GEMA, the method's section 2).

    director <- m director + (1 - m) sum_r weights_r experts_r,   but where that is not finite: as it was

The eager path is one fused matrix-vector product a block of a tensor, without stacked copies.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dexcore.checks import check_number
from dexcore.ops import copies
from dexcore.ops.backend import resolve
from dexcore.ops.checks import check_floating, check_same_device, check_shape
from dexcore.ops.library import define_op

_BLOCK = 1 << 18  # elements of a director worked on at once: they stay in cache


@torch.no_grad()
def group_ema_(
    directors: Sequence[Tensor],
    experts: Sequence[Tensor],
    weights: Sequence[Tensor],
    momentum: float,
    *,
    backend: str = "auto",
) -> None:
    """Move every director tensor towards its experts, in place.

    Args:
        directors: tensors of any shape, floating.
        experts: for each director its experts, [R, *director.shape].
        weights: for each director the experts' shares, [R], sum 1. An expert of weight 0 is not read; a director
            whose weights are all zero stays as it is.
        momentum: m, in [0, 1].
        backend: "auto", "triton" or "eager".

    An element of a director stays as it is where an expert in use, a weight or the result is not finite.

    The Triton kernel also writes the half-precision copies of parameters that the next forward under autocast will ask
    for, where the last one did (`dexcore.ops.copies`); then it reads experts of weight 0 too.

    A captured CUDA graph keeps the momentum of its capture. Arithmetic is float32 for half-precision tensors. Note that
    a half-precision director with a momentum near 1 stops moving, because (1 - m) times the distance is less than half
    its rounding.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, shape or device; the message names it.
    """
    if not len(directors) == len(experts) == len(weights):
        raise ValueError(
            f"directors, experts and weights must be equally long, got {len(directors)}, {len(experts)}, {len(weights)}"
        )
    check_number("momentum", momentum, "in 0..1", lambda momentum: 0 <= momentum <= 1)
    for i, (director, expert, weight) in enumerate(zip(directors, experts, weights, strict=True)):
        names = f"directors[{i}]", f"experts[{i}]", f"weights[{i}]"
        for name, tensor in zip(names, (director, expert, weight), strict=True):
            check_floating(name, tensor)
        check_shape(names[1], expert, ("R", *director.shape))
        check_shape(names[2], weight, (expert.shape[0],))
        check_same_device(**dict(zip(names, (director, expert, weight), strict=True)))
    if not directors:
        return
    dtype = functools.reduce(torch.promote_types, (t.dtype for t in (*directors, *experts)))
    chosen = resolve(backend, directors[0].device, dtype)
    _group_ema_(*GroupEmaCall(list(directors), list(experts), list(weights), float(momentum), chosen))


class GroupEmaCall(NamedTuple):
    """The op's arguments."""

    directors: list[Tensor]
    experts: list[Tensor]  # each [R, *director.shape]
    weights: list[Tensor]  # each [R]
    momentum: float
    backend: str


@torch.no_grad()
def _run(call: GroupEmaCall) -> None:
    directors, experts, weights, momentum, backend = call
    if backend == "triton":
        _run_triton(directors, experts, weights, momentum)
        return
    for director, expert, weight in zip(directors, experts, weights, strict=True):
        weight = weight.to(torch.promote_types(director.dtype, torch.float32))
        if director.device.type == "cpu":
            _move_on_cpu(director, expert, weight, momentum)
        else:
            director.copy_(_moved(director, expert, weight, momentum))


def _run_triton(directors: list[Tensor], experts: list[Tensor], weights: list[Tensor], momentum: float) -> None:
    """One launch, which also writes the half-precision copies that forwards ask for (`dexcore.ops.copies`)."""
    from dexcore.kernels.group_ema import group_ema

    of_directors, of_experts = copies.to_write(directors, experts)
    moved = [director.contiguous() for director in directors]
    # Gated experts come as halves of their rows: each expert's lie together, and are read where they are.
    read = [pool if len(pool) and pool[0].is_contiguous() else pool.contiguous() for pool in experts]
    group_ema(moved, read, weights, momentum, of_directors, of_experts)
    for director, new in zip(directors, moved, strict=True):
        if new is not director:
            director.copy_(new)
    torch.autograd.graph.increment_version(directors)  # a kernel's write is none that autograd sees
    copies.written([*directors, *experts], [*of_directors, *of_experts])


def _move_on_cpu(director: Tensor, expert: Tensor, weight: Tensor, momentum: float) -> None:
    if not weight.any():
        return
    flat = director.view(-1) if director.is_contiguous() else director.reshape(-1)
    rows = expert.reshape(expert.shape[0], -1)
    kept = flat.new_empty(min(_BLOCK, len(flat)))  # one for all blocks, so that it stays in cache
    for part, pool in zip(flat.split(_BLOCK), rows.split(_BLOCK, dim=1), strict=True):
        before = kept[: len(part)].copy_(part)
        moved = part if part.dtype == weight.dtype else part.to(weight.dtype)
        moved.addmv_(pool.t().to(weight.dtype), weight, beta=momentum, alpha=1 - momentum)
        if moved is not part:
            part.copy_(moved)
        if not math.isfinite(part.sum(dtype=weight.dtype)):  # or the sum alone overflows: the longer way is right too
            part.copy_(_moved(before, pool, weight, momentum))
    if not director.is_contiguous():
        director.copy_(flat.view(director.shape))


def _moved(director: Tensor, expert: Tensor, weight: Tensor, momentum: float) -> Tensor:
    """The director's new value, as it was where that is not finite, without a word from the device."""
    mean = torch.zeros_like(director, dtype=weight.dtype)
    for one, share in zip(expert, weight, strict=True):
        mean += torch.where(share != 0, one.to(weight.dtype) * share, 0)
    moved = (director.to(weight.dtype) * momentum + mean * (1 - momentum)).to(director.dtype)
    return torch.where(moved.isfinite() & (weight != 0).any(), moved, director)


_group_ema_ = define_op("group_ema_", GroupEmaCall, _run, lambda call: None, mutates=("directors",))
