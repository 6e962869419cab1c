"""`dex_mlp`: experts, director and alignment loss of a DEX layer in one op (the method's steps 5 to 8).

Axes as in `dexcore.ops.expert_mlp`. The eager path runs the director in blocks of rows whose hidden layer stays in
cache and is never stored, and aligns each block at once.
"""

from typing import Any

import torch
from torch import Tensor

from dexcore.ops.activation import activate
from dexcore.ops.backend import resolve
from dexcore.ops.checks import check_choice, check_floating, check_same_device, check_shape, refuse_transforms
from dexcore.ops.expert_mlp import (
    Kept,
    check_expert_arguments,
    compute_dtype,
    empty_gradients,
    empty_kept,
    experts_backward,
    experts_forward,
    linear,
)
from dexcore.ops.mix_align import ALIGNS, align_rows, scaled_gradient

# The director's hidden rows worked on together; they are never stored.
_BLOCK_BYTES = 32 << 20


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
    settings = (activation, align, precision, compute_dtype(x), resolve(backend))
    trained = (x, w1, b1, w2, b2, gates)
    refuse_transforms("dex_mlp", *trained, dw1, db1, dw2, db2)
    tensors = (*trained, indices, *(None if t is None else t.detach() for t in (dw1, db1, dw2, db2)))
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in trained):
        y, loss = _DexMlp.apply(*tensors, keep, *settings)
    else:
        y, loss, *_ = _dex_mlp(*tensors, "nothing", *settings)
    return y, loss


@torch.library.custom_op("dexcore::dex_mlp", mutates_args=())
def _dex_mlp(
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
    compute: torch.dtype,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    with torch.autocast(x.device.type, enabled=False):
        y, kept = experts_forward(x, w1, b1, w2, b2, gates, indices, keep, activation, compute)
        gradient = y.new_empty(x.shape if keep != "nothing" else (0, *x.shape[1:]))
        director = [None if t is None else t.to(compute) for t in (dw1, db1, dw2, db2)]
        total = _align_director(x, director, y, gradient if keep != "nothing" else None, activation, align)
    return y, total / max(x.shape[:-1].numel(), 1), *kept, gradient


def _align_director(
    x: Tensor,
    director: list[Tensor | None],
    y: Tensor,
    gradient: Tensor | None,
    activation: str,
    align: str,
) -> Tensor:
    """Sum of the rows' alignment losses of y against the director's output; their gradients go to ``gradient``."""
    dw1, db1, dw2, db2 = director
    hidden, width = dw1.shape  # type: ignore[union-attr]
    rows = x.shape[:-1].numel()
    blocks = max(1, -(-rows * hidden * y.itemsize // _BLOCK_BYTES))
    block = max(1, -(-rows // blocks))
    scratch_h, scratch_d = y.new_empty((min(rows, block), hidden)), y.new_empty((min(rows, block), width))
    total = x.new_zeros((), dtype=torch.promote_types(x.dtype, torch.float32))
    parts = [None if t is None else t.reshape(-1, width).split(block) for t in (x, y, gradient)]
    for i in range(-(-rows // block)):
        x_block, y_block, gradient_block = (None if part is None else part[i] for part in parts)
        count = x_block.shape[0]  # type: ignore[union-attr]
        hidden_block = linear(x_block.to(y.dtype), dw1, db1, out=scratch_h[:count])  # type: ignore[arg-type, union-attr]
        activate(activation, hidden_block, out=hidden_block)
        teacher = linear(hidden_block, dw2, db2, out=scratch_d[:count])  # type: ignore[arg-type]
        total += align_rows(y_block, teacher, align, gradient_block)  # type: ignore[arg-type]
    return total


@_dex_mlp.register_fake
def _(
    x: Tensor, w1: Tensor, b1: Any, w2: Any, b2: Any, gates: Any, indices: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    keep, compute = rest[4], rest[8]
    y = x.new_empty(x.shape, dtype=compute)
    loss = x.new_empty((), dtype=torch.promote_types(x.dtype, torch.float32))
    gradient = y.new_empty(x.shape if keep != "nothing" else (0, *x.shape[1:]))
    return y, loss, *empty_kept(x, w1, indices, keep, compute), gradient


@torch.library.custom_op("dexcore::dex_mlp_backward", mutates_args=())
def _dex_mlp_backward(
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
    compute: torch.dtype,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    with torch.autocast(x.device.type, enabled=False):
        total = (grad_y + scaled_gradient(grad_loss, gradient)).to(compute)
        kept = Kept(z, a, o)
        return tuple(experts_backward(total, x, w1, b1, w2, b2, gates, indices, kept, needs, activation, compute))  # type: ignore[return-value]


@_dex_mlp_backward.register_fake
def _(grad_y: Any, grad_loss: Any, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    x, w1, b1, w2, b2, gates = arguments[:6]
    return tuple(empty_gradients(x, w1, b1, w2, b2, gates, arguments[11]))  # type: ignore[return-value]


class _DexMlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        y, loss, *kept = _dex_mlp(*arguments)
        ctx.save_for_backward(*arguments[:7], *kept)
        activation, _, precision, compute, backend = arguments[12:]
        ctx.settings = activation, precision, compute, backend
        return y, loss

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor, grad_loss: Tensor) -> tuple[Any, ...]:
        needs = list(ctx.needs_input_grad[:6])
        grads = _dex_mlp_backward(grad_y, grad_loss, *ctx.saved_tensors, needs, *ctx.settings)
        return *(grad if needed else None for grad, needed in zip(grads, needs, strict=True)), *[None] * 11
