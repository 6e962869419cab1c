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

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dexcore.ops.activation import ACTIVATIONS, activate, activate_backward
from dexcore.ops.backend import resolve
from dexcore.ops.checks import check_choice, check_floating, check_integer, check_same_device, check_shape

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
    batch, _, width = x.shape
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
    """What the eager forward leaves for its backward, in expert order; empty where it was not kept."""

    z: Tensor  # [B*k*N, H]
    a: Tensor  # [B*k*N, H]
    o: Tensor  # [B*k, N, D]


class _Group(NamedTuple):
    """The slots of one expert: its number, its images and its places in slot order."""

    expert: int
    images: Tensor
    slots: Tensor
    start: int
    stop: int


def _groups(indices_bk: Tensor, experts: int) -> Iterator[_Group]:
    """Sort the slots by expert; experts without images are left out.

    Example: indices [[2, 0], [0, 1]] give slots in the order 1, 2, 3, 0, of images 0, 1, 1, 0; expert 0 owns the
    first two, experts 1 and 2 one each.
    """
    flat = indices_bk.reshape(-1)
    order = flat.argsort(stable=True)
    images = order.div(max(indices_bk.shape[1], 1), rounding_mode="floor")
    counted = torch.stack(torch.unique_consecutive(flat[order], return_counts=True)).tolist()
    start = 0
    for expert, count in zip(*counted, strict=True):
        if not 0 <= expert < experts:
            raise IndexError(
                f"indices must lie in 0..{experts - 1} (w1 holds {experts} experts), got {expert}"
            )
        stop = start + count
        yield _Group(expert, images[start:stop], order[start:stop], start, stop)
        start = stop


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    """out = x weight^T + bias, in x's dtype."""
    weight = weight.to(x.dtype).t()
    if bias is None:
        return torch.mm(x, weight, out=out)
    return torch.addmm(bias.to(x.dtype), x, weight, out=out)


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
    batch, tokens, width = x.shape
    experts, hidden, _ = w1.shape
    groups = list(_groups(indices, experts))
    kept = empty_kept(x, w1, indices, keep, compute)
    longest = tokens * max((g.stop - g.start for g in groups), default=0)
    scratch_h = x.new_empty((longest if keep in ("nothing", "none", "z") else 0, hidden), dtype=compute)
    scratch_d = x.new_empty((longest if keep == "nothing" else 0, width), dtype=compute)
    y = x.new_zeros(x.shape, dtype=torch.promote_types(compute, torch.float32))
    gates_s = gates.reshape(-1).to(y.dtype)
    for g in groups:
        rows = slice(g.start * tokens, g.stop * tokens)
        count = rows.stop - rows.start
        x_g = x.index_select(0, g.images).to(compute).view(count, width)
        z = kept.z[rows] if keep in ("both", "z") else scratch_h[:count]
        a = kept.a[rows] if keep == "both" else scratch_h[:count]
        o = scratch_d[:count] if keep == "nothing" else kept.o[g.start : g.stop].view(count, width)
        linear(x_g, w1[g.expert], None if b1 is None else b1[g.expert], out=z)
        activate(activation, z, out=a)
        linear(a, w2[g.expert], None if b2 is None else b2[g.expert], out=o)
        y.index_add_(0, g.images, o.view(-1, tokens, width) * gates_s[g.slots].view(-1, 1, 1))
    return y.to(compute), kept


def empty_kept(x: Tensor, w1: Tensor, indices: Tensor, keep: str, compute: torch.dtype) -> Kept:
    """Room for what ``keep`` stores."""
    slots, (_, tokens, width), hidden = indices.numel(), x.shape, w1.shape[1]
    return Kept(
        z=x.new_empty((slots * tokens, hidden) if keep in ("both", "z") else (0, hidden), dtype=compute),
        a=x.new_empty((slots * tokens, hidden) if keep == "both" else (0, hidden), dtype=compute),
        o=x.new_empty((0 if keep == "nothing" else slots, tokens, width), dtype=compute),
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
    tokens, width = x.shape[1:]
    hidden = w1.shape[1]
    groups = list(_groups(indices, w1.shape[0]))
    grads = empty_gradients(x, w1, b1, w2, b2, gates, needs)
    needs_x, needs_w1, needs_b1, needs_w2, needs_b2, needs_gates = needs
    needs_z = needs_x or needs_w1 or needs_b1
    accumulate = torch.promote_types(compute, torch.float32)
    grad_x = x.new_zeros(x.shape if needs_x else (0,), dtype=accumulate)
    grad_gates_s = grads.gates.view(-1)
    gates_s = gates.reshape(-1).to(accumulate)
    longest = tokens * max((g.stop - g.start for g in groups), default=0)
    scratch_u = x.new_empty((longest if needs_z else 0, hidden), dtype=compute)
    scratch_a = x.new_empty((0 if kept.a.numel() else longest, hidden), dtype=compute)
    scratch_z = x.new_empty((0 if kept.z.numel() else longest, hidden), dtype=compute)
    _zero_idle_experts(grads, {g.expert for g in groups})
    for g in groups:
        e, rows = g.expert, slice(g.start * tokens, g.stop * tokens)
        count = rows.stop - rows.start
        dy = grad_y.index_select(0, g.images).to(compute)
        if needs_gates:
            o = kept.o[g.start : g.stop]
            grad_gates_s[g.slots] = (o * dy).sum((1, 2), dtype=accumulate).to(gates.dtype)
        do = (dy * gates_s[g.slots].view(-1, 1, 1)).to(compute).view(count, width)
        if needs_b2:
            grads.b2[e] = do.sum(0)
        x_g = x.index_select(0, g.images).to(compute).view(count, width)
        if kept.z.numel():
            z = kept.z[rows]
        else:
            z = linear(x_g, w1[e], None if b1 is None else b1[e], out=scratch_z[:count])
        if needs_w2:
            a = kept.a[rows] if kept.a.numel() else activate(activation, z, out=scratch_a[:count])
            _mm_into(do.t(), a, grads.w2[e])
        if needs_z:
            dz = torch.mm(do, w2[e].to(compute), out=scratch_u[:count])
            activate_backward(activation, dz, z)
            if needs_b1:
                grads.b1[e] = dz.sum(0)
            if needs_w1:
                _mm_into(dz.t(), x_g, grads.w1[e])
            if needs_x:
                dx = torch.mm(dz, w1[e].to(compute)).view(-1, tokens, width)
                grad_x.index_add_(0, g.images, dx.to(accumulate))
    return grads._replace(x=grad_x.to(x.dtype))


def _mm_into(a: Tensor, b: Tensor, out: Tensor) -> None:
    """out = a b, where ``out`` may have another dtype."""
    if out.dtype == a.dtype:
        torch.mm(a, b, out=out)
    else:
        out.copy_(a @ b)


def _zero_idle_experts(grads: Gradients, active: set[int]) -> None:
    for tensor in (grads.w1, grads.b1, grads.w2, grads.b2):
        for expert in range(tensor.shape[0]):
            if expert not in active:
                tensor[expert].zero_()


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
        return tuple(
            experts_backward(grad_y, x, w1, b1, w2, b2, gates, indices, kept, needs, activation, compute)
        )  # type: ignore[return-value]


@_expert_mlp_backward.register_fake
def _(
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
    return tuple(empty_gradients(x, w1, b1, w2, b2, gates, needs))  # type: ignore[return-value]


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
