"""`group_ema_`: directors follow their experts' weighted mean (GEMA, the method's section 2).

    director <- m director + (1 - m) sum_r weights_r experts_r

The eager path is one fused matrix-vector product a tensor, without stacked copies.
"""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from dexcore.checks import check_number
from dexcore.ops.backend import resolve
from dexcore.ops.checks import check_floating, check_same_device, check_shape
from dexcore.ops.library import define_op


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
        weights: for each director the experts' shares, [R], sum 1. A director whose weights are all zero stays as
            it is.
        momentum: m, in [0, 1].
        backend: "auto", "triton" or "eager".

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
    _group_ema_(list(directors), list(experts), list(weights), float(momentum), chosen)
    if chosen == "triton":  # a kernel's write is none that autograd sees
        torch.autograd.graph.increment_version(list(directors))


@torch.no_grad()
def _run(directors: list[Tensor], experts: list[Tensor], weights: list[Tensor], momentum: float, backend: str) -> None:
    if backend == "triton":
        from dexcore.kernels.group_ema import group_ema

        moved = [director.contiguous() for director in directors]
        group_ema(moved, [expert.contiguous() for expert in experts], weights, momentum)
        for director, new in zip(directors, moved, strict=True):
            if new is not director:
                director.copy_(new)
        return
    on_cpu = directors[0].device.type == "cpu"
    # A layer's tensors share their weights: one look at each.
    used = {key: bool(weight.any()) for key, weight in {id(w): w for w in weights}.items()} if on_cpu else {}
    for director, expert, weight in zip(directors, experts, weights, strict=True):
        precision = torch.promote_types(director.dtype, torch.float32)
        columns = expert.reshape(expert.shape[0], -1).t().to(precision)
        if on_cpu and not used[id(weight)]:
            continue
        weight = weight.to(precision)
        if on_cpu and director.dtype == precision and director.is_contiguous():
            director.view(-1).addmv_(columns, weight, beta=momentum, alpha=1 - momentum)
            continue
        step = (1 - momentum) * (weight != 0).any()  # no branch on the host on other devices
        director.copy_(director.to(precision).lerp(torch.mv(columns, weight).view(director.shape), step.to(precision)))


_group_ema_ = define_op("group_ema_", _run, lambda *arguments: None, mutates=("directors",))
