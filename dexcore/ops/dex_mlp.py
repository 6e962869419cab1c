"""`dex_mlp`: experts, director and alignment loss of a DEX layer in one op (the method's steps 5 to 8).

Axes as in `dexcore.ops.expert_mlp`. Triton's kernels run the director in the experts' launches, and align where the
experts' outputs are summed.
"""

from typing import Any

import torch
from torch import Tensor

from dexcore.ops import experts_eager
from dexcore.ops.backend import resolve
from dexcore.ops.checks import check_choice, check_floating, check_same_device, check_shape, refuse_transforms
from dexcore.ops.expert_mlp import allowed_keep, cast, check_expert_arguments, compute_dtype, returned, run_backward
from dexcore.ops.expert_types import Director, Experts, Gradients, Kept, Needs, empty_gradients, empty_kept
from dexcore.ops.library import define_op
from dexcore.ops.mix_align import ALIGNS, add_scaled_gradient


def dex_mlp(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    dw1: Tensor,
    db1: Tensor | None,
    dw2: Tensor,
    db2: Tensor | None,
    gates: Tensor,
    indices: Tensor,
    activation: str = "gelu",
    align: str = "kd",
    keep: str = "both",
    precision: str = "ieee",
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """`expert_mlp`, and its alignment loss against the director's output.

    Args:
        x, w1, b1, w2, b2, gates, indices, activation, keep, precision, backend: as for `expert_mlp`.
        dw1, db1, dw2, db2: [H, D], [H] or None, [D, H], [D] or None: the director. It is a target and gets no
            gradient.
        align: "kd", "cosine" or "mse", as for `mix_align`.

    Returns:
        y [B, N, D] as `expert_mlp` returns it, and the loss, 0-dim, float32 (float64 for float64 input).

    Raises:
        TypeError, ValueError, IndexError: as `expert_mlp`.
    """
    check_expert_arguments(x, w1, b1, w2, b2, gates, indices, activation, keep, precision)
    _, hidden, width = w1.shape
    director = {
        "dw1": (dw1, (hidden, width)),
        "db1": (db1, (hidden,)),
        "dw2": (dw2, (width, hidden)),
        "db2": (db2, (width,)),
    }
    for name, (tensor, shape) in director.items():
        if tensor is not None or name in ("dw1", "dw2"):
            check_floating(name, tensor)  # type: ignore[arg-type]
            check_shape(name, tensor, shape)  # type: ignore[arg-type]
    check_same_device(x=x, dw1=dw1, db1=db1, dw2=dw2, db2=db2)
    check_choice("align", align, ALIGNS)
    compute = compute_dtype(x)
    chosen = resolve(backend, x.device, compute)
    keep = allowed_keep(keep, compute, chosen, backend)
    given = Experts(x, w1, b1, w2, b2, gates, indices)
    target = Director(*(None if t is None else t.detach().to(compute) for t in (dw1, db1, dw2, db2)))  # type: ignore[arg-type]
    refuse_transforms("dex_mlp", *given, *target)
    settings = (activation, align, precision, chosen)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given):
        return _DexMlp.apply(*given, *target, keep, *settings, compute)
    y, loss, *_ = _dex_mlp(*cast(given, compute), *target, "nothing", *settings)
    return y, loss


def _run(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    gates: Tensor,
    indices: Tensor,
    dw1: Tensor,
    db1: Tensor | None,
    dw2: Tensor,
    db2: Tensor | None,
    keep: str,
    activation: str,
    align: str,
    precision: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    given, director = Experts(x, w1, b1, w2, b2, gates, indices), Director(dw1, db1, dw2, db2)
    if backend == "triton":
        from dexcore.ops import experts_triton

        y, total, kept, gradient = experts_triton.forward_align(given, director, keep, activation, align, precision)
    else:
        y, kept = experts_eager.forward(given, keep, activation)
        gradient = _empty_gradient(x, keep)
        wanted = gradient if keep != "nothing" else None
        total = experts_eager.align_director(x, director, y, wanted, activation, align)
    return y, total / max(x.shape[:-1].numel(), 1), *kept, gradient


def _empty_gradient(x: Tensor, keep: str) -> Tensor:
    return x.new_empty(x.shape if keep != "nothing" else (0, *x.shape[1:]))


def _fake(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    w1, indices, keep, backend = rest[0], rest[5], rest[10], rest[-1]
    loss = x.new_empty((), dtype=torch.promote_types(x.dtype, torch.float32))
    return x.new_empty(x.shape), loss, *empty_kept(x, w1, indices, keep, backend), _empty_gradient(x, keep)


def _run_backward(
    grad_y: Tensor,
    grad_loss: Tensor,
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    gates: Tensor,
    indices: Tensor,
    z: Tensor,
    a: Tensor,
    o: Tensor,
    gradient: Tensor,
    needs: list[bool],
    activation: str,
    precision: str,
    backend: str,
    x_dtype: torch.dtype,
    weight_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    given, kept = Experts(x, w1, b1, w2, b2, gates, indices), Kept(z, a, o)
    total = add_scaled_gradient(grad_y, grad_loss, gradient, backend)
    return run_backward(total, given, kept, needs, activation, precision, backend, x_dtype, weight_dtype)


def _fake_backward(grad_y: Tensor, grad_loss: Tensor, *arguments: Any) -> Gradients:
    needs, dtypes = arguments[11], arguments[-2:]
    return empty_gradients(Experts(*arguments[:7]), Needs(*needs), *dtypes)


_dex_mlp = define_op("dex_mlp", _run, _fake)
_dex_mlp_backward = define_op("dex_mlp_backward", _run_backward, _fake_backward)


class _DexMlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        keep, activation, align, precision, backend, compute = arguments[11:]
        given = cast(Experts(*arguments[:7]), compute)
        y, loss, *kept = _dex_mlp(*given, *arguments[7:11], keep, activation, align, precision, backend)
        ctx.save_for_backward(*given, *kept)
        ctx.settings = activation, precision, backend
        ctx.dtypes = [None if t is None else t.dtype for t in arguments[:6]]
        return y, loss

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor, grad_loss: Tensor) -> tuple[Any, ...]:
        needs = list(ctx.needs_input_grad[:6])
        grads = _dex_mlp_backward(grad_y, grad_loss, *ctx.saved_tensors, needs, *ctx.settings, *ctx.dtypes[:2])
        return *returned(grads, ctx.dtypes, needs), *[None] * 11
