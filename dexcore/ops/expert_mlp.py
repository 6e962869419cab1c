"""`expert_mlp`: the gate-weighted sum of the chosen experts, image-wise (the method's steps 5 and 6).

    y[b] = sum_j gates[b, j] (act(x[b] W1_e^T + b1_e) W2_e^T + b2_e),   e = indices[b, j]

Axes: b images, n tokens, d width, h hidden, r experts, k chosen; s slots, the B*k pairs (image, choice) sorted by
expert.

The eager path makes one GEMM an expert and direction over exactly its rows. The gates are applied after the second
GEMM, at width D, and the experts' outputs o are kept, so that the gates' gradients are the row sums <o, dy>: neither
an extra GEMM nor a pass over the hidden layer. ``keep`` says what else the backward finds stored:

    "both"  z = x W1^T + b1 and act(z)    2 B k N H elements
    "z"     z; act(z) is computed again     B k N H
    "none"  z is computed again too, by one more GEMM

On a device other than the CPU it reads the experts' counts on the host, once a call.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dexcore.ops.activation import ACTIVATIONS, activate, activate_backward
from dexcore.ops.backend import resolve
from dexcore.ops.checks import (
    check_choice,
    check_floating,
    check_integer,
    check_same_device,
    check_shape,
    refuse_transforms,
)

KEEPS = ("both", "z", "none")
PRECISIONS = ("ieee", "tf32", "tf32x3")


def expert_mlp(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    gates: Tensor,
    indices: Tensor,
    activation: str = "gelu",
    keep: str = "both",
    precision: str = "ieee",
    *,
    backend: str = "auto",
) -> Tensor:
    """Apply to every token of an image the image's top-k experts, and sum them by the gates.

    Args:
        x: [B, N, D], floating.
        w1, b1: [R, H, D] and [R, H] or None: the experts' first layers.
        w2, b2: [R, D, H] and [R, D] or None: their second layers.
        gates: [B, k], floating; kept in float32.
        indices: [B, k], int64 or int32, each in 0..R-1.
        activation: "gelu" (erf), "gelu_tanh", "relu" or "silu".
        keep: what the backward finds stored: "both", "z" or "none" (see the module).
        precision: of float32 dot products: "ieee", "tf32" or "tf32x3". On the CPU always "ieee".
        backend: "auto", "triton" or "eager".

    Returns:
        [B, N, D] in x's dtype, or in autocast's where that is on. Differentiable once in all but ``indices``; each
        gradient has its input's dtype.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, shape or device; the message names it.
        IndexError: an index outside 0..R-1.
    """
    check_expert_arguments(x, w1, b1, w2, b2, gates, indices, activation, keep, precision)
    settings = (activation, precision, compute_dtype(x), resolve(backend))
    tensors = (x, w1, b1, w2, b2, gates, indices)
    refuse_transforms("expert_mlp", *tensors)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return _ExpertMlp.apply(*tensors, keep, *settings)
    return _expert_mlp(*tensors, "nothing", *settings)[0]


def check_expert_arguments(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    gates: Tensor,
    indices: Tensor,
    activation: str,
    keep: str,
    precision: str,
) -> None:
    """Raise an error that names the first argument that does not fit the others."""
    for name, tensor in (("x", x), ("w1", w1), ("b1", b1), ("w2", w2), ("b2", b2), ("gates", gates)):
        if tensor is not None or name not in ("b1", "b2"):
            check_floating(name, tensor)  # type: ignore[arg-type]
    check_integer("indices", indices)
    check_shape("x", x, ("B", "N", "D"))
    batch, tokens, width = x.shape
    if tokens < 1:
        raise ValueError("x must hold at least one token an image, got N = 0")
    check_shape("w1", w1, ("R", "H", width))
    experts, hidden, _ = w1.shape
    check_shape("w2", w2, (experts, width, hidden))
    if b1 is not None:
        check_shape("b1", b1, (experts, hidden))
    if b2 is not None:
        check_shape("b2", b2, (experts, width))
    check_shape("gates", gates, (batch, "k"))
    check_shape("indices", indices, (batch, gates.shape[1]))
    check_same_device(x=x, w1=w1, b1=b1, w2=w2, b2=b2, gates=gates, indices=indices)
    check_choice("activation", activation, ACTIVATIONS)
    check_choice("keep", keep, KEEPS)
    check_choice("precision", precision, PRECISIONS)


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype the GEMMs run in: autocast's where it is on (never for float64), else x's."""
    if x.dtype != torch.float64 and torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


class Kept(NamedTuple):
    """What the eager forward leaves for its backward, rows sorted by expert; empty where it was not kept."""

    z: Tensor  # [B*k*N, H]
    a: Tensor  # [B*k*N, H]
    o: Tensor  # [B*k*N, D]


class _Plan:
    """The slots sorted by expert.

    Example: indices [[2, 0], [0, 1]] give the slots in the order 1, 2, 3, 0, of images 0, 1, 1, 0; expert 0 owns the
    first two, experts 1 and 2 one each.

    Attributes:
        images: [S], a sorted slot's image.
        experts: [S], a sorted slot's expert.
        order: [S], a sorted slot's place in indices.reshape(-1).
        places: [S], the reverse: where among the sorted the slots of image 0 lie, then those of image 1, ...
        sizes: rows of every expert.
        active, idle: experts with rows, and without.
    """

    def __init__(self, indices_bk: Tensor, experts: int, tokens: int) -> None:
        flat = indices_bk.reshape(-1).long()
        self.experts, self.order = flat.sort(stable=True)
        self.images = self.order.div(max(indices_bk.shape[1], 1), rounding_mode="floor")
        self.places = self.order.argsort()
        if flat.numel():
            lowest, highest = int(self.experts[0]), int(self.experts[-1])
            if lowest < 0 or highest >= experts:
                wrong = lowest if lowest < 0 else highest
                raise IndexError(f"indices must lie in 0..{experts - 1} (w1 holds {experts} experts), got {wrong}")
        self.sizes = [count * tokens for count in flat.bincount(minlength=experts).tolist()]
        self.active = [e for e, size in enumerate(self.sizes) if size]
        self.idle = [e for e, size in enumerate(self.sizes) if not size]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    """out = x weight^T + bias; all of one dtype."""
    if bias is None:
        return torch.mm(x, weight.t(), out=out)
    return torch.addmm(bias, x, weight.t(), out=out)


def _by_expert(tensor: Tensor | None, count: int, dtype: torch.dtype) -> Sequence[Tensor | None]:
    return (None,) * count if tensor is None else tensor.to(dtype).unbind(0)


def experts_forward(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    gates: Tensor,
    indices: Tensor,
    keep: str,
    activation: str,
    compute: torch.dtype,
) -> tuple[Tensor, Kept]:
    """The eager forward; ``keep`` may also be "nothing", where no backward follows."""
    tokens, width = x.shape[1:]
    experts, hidden, _ = w1.shape
    plan = _Plan(indices, experts, tokens)
    kept = empty_kept(x, w1, indices, keep, compute)
    x_rows = _gather(x, plan.images, compute).view(-1, width).split(plan.sizes)
    o = kept.o if keep != "nothing" else x.new_empty((sum(plan.sizes), width), dtype=compute)
    o_rows, w1_e, w2_e = o.split(plan.sizes), w1.to(compute).unbind(0), w2.to(compute).unbind(0)
    b1_e, b2_e = _by_expert(b1, experts, compute), _by_expert(b2, experts, compute)
    z_rows, a_rows = (t.split(plan.sizes) if t.numel() else None for t in (kept.z, kept.a))
    scratch = x.new_empty((0 if z_rows and a_rows else max(plan.sizes), hidden), dtype=compute)
    for e in plan.active:
        z = z_rows[e] if z_rows else scratch[: plan.sizes[e]]
        a = a_rows[e] if a_rows else scratch[: plan.sizes[e]]
        linear(x_rows[e], w1_e[e], b1_e[e], out=z)
        activate(activation, z, out=a)
        linear(a, w2_e[e], b2_e[e], out=o_rows[e])
    o_bkx = o.view(-1, tokens * width).index_select(0, plan.places).view(*gates.shape, tokens * width)
    return _weighted_sum(o_bkx, gates).view(x.shape).to(compute), kept


def _gather(tensor_bnd: Tensor, images: Tensor, dtype: torch.dtype) -> Tensor:
    """The slots' images, [S, N*D]: an image is one row, since index_select is slow on three axes."""
    return tensor_bnd.flatten(1).index_select(0, images).to(dtype)


def _weighted_sum(o_bkx: Tensor, gates_bk: Tensor) -> Tensor:
    """sum_k gates o, accumulated in float32 at least."""
    if o_bkx.dtype == gates_bk.dtype:
        return torch.bmm(gates_bk.unsqueeze(1), o_bkx).squeeze(1)
    return (o_bkx * gates_bk.unsqueeze(-1)).sum(1, dtype=torch.promote_types(o_bkx.dtype, torch.float32))


def empty_kept(x: Tensor, w1: Tensor, indices: Tensor, keep: str, compute: torch.dtype) -> Kept:
    """Room for what ``keep`` stores."""
    rows, hidden, width = indices.numel() * x.shape[1], w1.shape[1], x.shape[2]
    return Kept(
        z=x.new_empty((rows if keep in ("both", "z") else 0, hidden), dtype=compute),
        a=x.new_empty((rows if keep == "both" else 0, hidden), dtype=compute),
        o=x.new_empty((0 if keep == "nothing" else rows, width), dtype=compute),
    )


class Gradients(NamedTuple):
    """Of the experts' arguments; empty where it was not asked for."""

    x: Tensor
    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor
    gates: Tensor


def experts_backward(
    grad_y: Tensor,
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    gates: Tensor,
    indices: Tensor,
    kept: Kept,
    needs: list[bool],
    activation: str,
    compute: torch.dtype,
) -> Gradients:
    """The eager backward; ``needs`` says for x, w1, b1, w2, b2 and gates whether the gradient is wanted."""
    batch, tokens, width = x.shape
    experts, hidden, _ = w1.shape
    plan = _Plan(indices, experts, tokens)
    needs_x, needs_w1, needs_b1, needs_w2, needs_b2, needs_gates = needs
    needs_z = needs_x or needs_w1 or needs_b1
    grads = empty_gradients(x, w1, b1, w2, b2, gates, needs)
    for tensor in (grads.w1, grads.b1, grads.w2, grads.b2):
        for e in plan.idle if tensor.numel() else ():
            tensor[e].zero_()
    accumulate = torch.promote_types(compute, torch.float32)

    dy_sx = _gather(grad_y, plan.images, compute)
    if needs_gates:
        by_slot = (kept.o.view_as(dy_sx) * dy_sx).sum(1, dtype=accumulate)
        grads.gates.copy_(by_slot[plan.places].view(gates.shape))
    gates_s = gates.reshape(-1)[plan.order].to(accumulate).unsqueeze(1)
    do_sx = dy_sx.mul_(gates_s) if compute == accumulate else (dy_sx * gates_s).to(compute)
    if needs_b2:
        sums_sd = do_sx.view(-1, tokens, width).sum(1, dtype=accumulate)
        grads.b2.copy_(sums_sd.new_zeros(grads.b2.shape).index_add_(0, plan.experts, sums_sd))

    x_rows = _gather(x, plan.images, compute).view(-1, width).split(plan.sizes)
    do_rows = do_sx.view(-1, width).split(plan.sizes)
    w1_e, w2_e, b1_e = w1.to(compute).unbind(0), w2.to(compute).unbind(0), _by_expert(b1, experts, compute)
    dw1_e, db1_e, dw2_e = (grad.unbind(0) if grad.numel() else () for grad in grads[1:4])
    dx = do_sx.new_empty((sum(plan.sizes) if needs_x else 0, width))
    dx_rows = dx.split(plan.sizes) if needs_x else ()
    z_rows, a_rows = (t.split(plan.sizes) if t.numel() else None for t in (kept.z, kept.a))
    longest = max(plan.sizes)
    scratch_u, scratch_a, scratch_z = (
        dx.new_empty((longest if needed else 0, hidden)) for needed in (needs_z, needs_w2 and not a_rows, not z_rows)
    )
    for e in plan.active:
        size = plan.sizes[e]
        z = z_rows[e] if z_rows else linear(x_rows[e], w1_e[e], b1_e[e], out=scratch_z[:size])
        if needs_w2:
            a = a_rows[e] if a_rows else activate(activation, z, out=scratch_a[:size])
            _mm_into(do_rows[e].t(), a, dw2_e[e])
        if not needs_z:
            continue
        dz = torch.mm(do_rows[e], w2_e[e], out=scratch_u[:size])
        activate_backward(activation, dz, z)
        if needs_b1:
            torch.sum(dz, 0, dtype=grads.b1.dtype, out=db1_e[e])
        if needs_w1:
            _mm_into(dz.t(), x_rows[e], dw1_e[e])
        if needs_x:
            torch.mm(dz, w1_e[e], out=dx_rows[e])
    if needs_x:
        dx_bkx = dx.view(-1, tokens * width).index_select(0, plan.places).view(*gates.shape, tokens * width)
        if x.dtype == accumulate:
            torch.sum(dx_bkx, 1, dtype=accumulate, out=grads.x.view(batch, tokens * width))
        else:
            grads.x.copy_(dx_bkx.sum(1, dtype=accumulate).view(x.shape))
    return grads


def _mm_into(a: Tensor, b: Tensor, out: Tensor) -> None:
    """out = a b, where ``out`` may have another dtype."""
    if out.dtype == a.dtype:
        torch.mm(a, b, out=out)
    else:
        out.copy_(a @ b)


def empty_gradients(
    x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, gates: Tensor, needs: list[bool]
) -> Gradients:
    """Room for the gradients, contiguous, each in its input's dtype."""
    return Gradients(
        *(
            x.new_empty(0) if tensor is None or not needed else tensor.new_empty(tensor.shape)
            for tensor, needed in zip((x, w1, b1, w2, b2, gates), needs, strict=True)
        )
    )


@torch.library.custom_op("dexcore::expert_mlp", mutates_args=())
def _expert_mlp(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    gates: Tensor,
    indices: Tensor,
    keep: str,
    activation: str,
    precision: str,
    compute: torch.dtype,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    with torch.autocast(x.device.type, enabled=False):
        y, kept = experts_forward(x, w1, b1, w2, b2, gates, indices, keep, activation, compute)
    return y, *kept


@_expert_mlp.register_fake
def _(
    x: Tensor, w1: Tensor, b1: Any, w2: Any, b2: Any, gates: Any, indices: Tensor, keep: str, *settings: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    compute = settings[2]
    return x.new_empty(x.shape, dtype=compute), *empty_kept(x, w1, indices, keep, compute)


@torch.library.custom_op("dexcore::expert_mlp_backward", mutates_args=())
def _expert_mlp_backward(
    grad_y: Tensor,
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
    needs: list[bool],
    activation: str,
    precision: str,
    compute: torch.dtype,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    with torch.autocast(x.device.type, enabled=False):
        kept = Kept(z, a, o)
        return tuple(experts_backward(grad_y, x, w1, b1, w2, b2, gates, indices, kept, needs, activation, compute))  # type: ignore[return-value]


@_expert_mlp_backward.register_fake
def _(grad_y: Any, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    x, w1, b1, w2, b2, gates = arguments[:6]
    return tuple(empty_gradients(x, w1, b1, w2, b2, gates, arguments[10]))  # type: ignore[return-value]


class _ExpertMlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        y, *kept = _expert_mlp(*arguments)
        ctx.save_for_backward(*arguments[:7], *kept)
        ctx.settings = arguments[8:]
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Any, ...]:
        needs = list(ctx.needs_input_grad[:6])
        grads = _expert_mlp_backward(grad_y, *ctx.saved_tensors, needs, *ctx.settings)
        return *(grad if needed else None for grad, needed in zip(grads, needs, strict=True)), *[None] * 6
