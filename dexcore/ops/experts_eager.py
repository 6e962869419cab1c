"""The experts in plain PyTorch: the fast path on the CPU, the fallback on every device.

It makes one GEMM an expert and direction over exactly its rows. The gates are applied after the second GEMM, at width
D, and the experts' outputs o are kept, so that the gates' gradients are the row sums <o, dy>: neither an extra GEMM
nor a pass over the hidden layer. In training in float32 o is without b2, which then takes part as one vector an image:
y gains sum_j gates_j b2_j; not of a single image, of which, as in inference, equal experts compute to the bit what a
dense layer does. On a device other than the CPU it reads the slots' experts on the host, once a call.

Axes as in `dexcore.ops.expert_mlp`.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dexcore.ops.activation import activate, activate_backward
from dexcore.ops.expert_types import (
    Director,
    ExpertArguments,
    Gradients,
    Kept,
    Needs,
    Settings,
    ThroughRouter,
    empty_gradients,
    empty_kept,
)
from dexcore.ops.mix_align import align_rows, teacher_scale
from dexcore.ops.routing import add_feature_gradient_, dense_gates

# Hidden rows worked on together: the director's, which are never stored, and a group of experts'.
_BLOCK_BYTES = 32 << 20


class _Plan:
    """The slots sorted by expert.

    Example: indices [[2, 0], [0, 1]] give the slots in the order 1, 2, 3, 0, of images 0, 1, 1, 0; expert 0 owns the
    first two, experts 1 and 2 one each.

    Attributes:
        images: [S], a sorted slot's image.
        order: [S], a sorted slot's place in indices.reshape(-1).
        places: [S], the reverse: where among the sorted the slots of image 0 lie, then those of image 1, ...
        sizes: rows of every expert.
        idle: experts without rows.
    """

    def __init__(self, indices_bk: Tensor, experts: int, tokens: int) -> None:
        sorted_s, self.order = indices_bk.reshape(-1).long().sort(stable=True)
        self.images = self.order.div(max(indices_bk.shape[1], 1), rounding_mode="floor")
        self.places = self.order.argsort()
        if indices_bk.is_cuda and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "eager experts read on the host which images are theirs, which a CUDA graph cannot capture: give "
                "backend='triton', or in float32 precision='tf32', by which 'auto' takes it"
            )
        chosen = sorted_s.tolist()
        if chosen and not 0 <= chosen[0] <= chosen[-1] < experts:
            wrong = chosen[0] if chosen[0] < 0 else chosen[-1]
            raise IndexError(f"indices must lie in 0..{experts - 1} (w1 holds {experts} experts), got {wrong}")
        counts = Counter(chosen)
        self.sizes = [counts[e] * tokens for e in range(experts)]
        self.idle = [e for e, size in enumerate(self.sizes) if not size]

    def groups(self, row_bytes: int) -> list["_Group"]:
        """The experts with rows, in order, in groups of at most ``_BLOCK_BYTES`` of hidden rows, or one expert."""
        groups: list[_Group] = []
        first = 0
        for expert, size in enumerate(self.sizes):
            if size and groups and (groups[-1].rows.stop - groups[-1].rows.start + size) * row_bytes <= _BLOCK_BYTES:
                groups[-1] = groups[-1].with_expert(expert, size)
            elif size:
                groups.append(_Group([expert], [size], slice(first, first + size)))
            first += size
        return groups


class _Group(NamedTuple):
    """Experts that follow one another, and their rows among the sorted.

    The GEMMs are an expert's each. The activation between them takes a group's rows at once: an expert's rows would
    still be in cache, but eight calls' set-up costs more than that saves.
    """

    experts: list[int]
    sizes: list[int]
    rows: slice

    def with_expert(self, expert: int, size: int) -> "_Group":
        rows = slice(self.rows.start, self.rows.stop + size)
        return _Group([*self.experts, expert], [*self.sizes, size], rows)

    def hidden(self, kept: Tensor, scratch: Tensor) -> Tensor:
        """The group's rows of what was kept, or else as many of the scratch's."""
        return kept[self.rows] if kept.numel() else scratch[: self.rows.stop - self.rows.start]


def _longest(groups: list[_Group]) -> int:
    return max((sum(group.sizes) for group in groups), default=0)


def _linear(x: Tensor, weight_t: Tensor, bias: Tensor | None, out: Tensor, scale: float = 1.0) -> Tensor:
    """out = scale (x weight_t + bias); all of one dtype."""
    if bias is None:
        torch.mm(x, weight_t, out=out)
        return out if scale == 1 else out.mul_(scale)
    return torch.addmm(bias, x, weight_t, beta=scale, alpha=scale, out=out)


def _by_expert(tensor: Tensor | None, count: int) -> Sequence[Tensor | None]:
    return (None,) * count if tensor is None else tensor.unbind(0)


def _transposed(weight: Tensor) -> Sequence[Tensor]:
    """Every expert's weight, transposed."""
    return weight.transpose(1, 2).unbind(0)


def forward(given: ExpertArguments, keep: str, settings: Settings) -> tuple[Tensor, Kept]:
    """y [B, N, D], and what the backward needs."""
    x, w1, b1, w2, b2, gates, indices = given
    tokens, width = x.shape[1:]
    experts, columns, _ = w1.shape
    plan = _Plan(indices, experts, tokens)
    kept = empty_kept(given, keep, settings)
    x_rows = _gather(x, plan.images).view(-1, width).split(plan.sizes)
    o = kept.o if keep != "nothing" else x.new_empty((sum(plan.sizes), width))
    o_rows, w1_t, w2_t = o.split(plan.sizes), _transposed(w1), _transposed(w2)
    as_dense = keep == "nothing" or _is_alone(x)
    b2_apart = None if as_dense or not _is_full(x.dtype) else b2
    b1_e, b2_e = _by_expert(b1, experts), _by_expert(b2 if b2_apart is None else None, experts)
    groups = plan.groups(columns * x.element_size())
    keeps_z = keep in ("both", "z")
    scratch = x.new_empty((0 if keep == "both" else _longest(groups), w2.shape[2] if keeps_z else columns))
    for group in groups:
        z = group.hidden(kept.z, scratch)
        for e, z_rows in zip(group.experts, z.split(group.sizes), strict=True):
            _linear(x_rows[e], w1_t[e], b1_e[e], out=z_rows)
        a = activate(settings.activation, z, out=group.hidden(kept.a, scratch) if keeps_z else None)
        for e, a_rows in zip(group.experts, a.split(group.sizes), strict=True):
            _linear(a_rows, w2_t[e], b2_e[e], out=o_rows[e])
    mix = _mix_by_differences if as_dense else _sum_slots
    y = mix(o.view(-1, tokens * width), plan.places.view(gates.shape), gates).view(x.shape)
    if b2_apart is not None:
        y += (dense_gates(gates, indices, experts).sum(1) @ b2_apart).unsqueeze(1)
    return y.to(x.dtype), kept


def align_director(
    x: Tensor, director: Director, y: Tensor, gradient: Tensor | None, align: str, settings: Settings
) -> Tensor:
    """Sum of the rows' alignment losses of y against the director's output; their gradients go to ``gradient``.

    The director runs in blocks of rows whose hidden layer stays in cache, and each block is aligned at once.
    """
    columns, width = director.dw1.shape
    rows = x.shape[:-1].numel()
    blocks = max(1, -(-rows * columns * y.itemsize // _BLOCK_BYTES))
    block = max(1, -(-rows // blocks))
    scratch_h, scratch_d = y.new_empty((min(rows, block), columns)), y.new_empty((min(rows, block), width))
    total = x.new_zeros((), dtype=torch.promote_types(x.dtype, torch.float32))
    w1_t, w2_t, scale = director.dw1.t(), director.dw2.t(), teacher_scale(align)
    parts = [None if t is None else t.reshape(-1, width).split(block) for t in (x, y, gradient)]
    for i in range(-(-rows // block)):
        x_block, y_block, gradient_block = (None if part is None else part[i] for part in parts)
        count = x_block.shape[0]  # type: ignore[union-attr]
        hidden_block = _linear(x_block, w1_t, director.db1, out=scratch_h[:count])  # type: ignore[arg-type]
        hidden_block = activate(settings.activation, hidden_block, out=None)
        teacher = _linear(hidden_block, w2_t, director.db2, out=scratch_d[:count], scale=scale)
        total += align_rows(y_block, teacher, align, gradient_block)  # type: ignore[arg-type]
    return total


def _is_alone(x: Tensor) -> bool:
    """Whether it is one image: its experts' GEMMs have a dense layer's rows, and what else makes equal experts equal to
    that to the bit (b2 in the GEMM, `_mix_by_differences`) costs little there, in training too.
    """
    return len(x) == 1


def _is_full(dtype: torch.dtype) -> bool:
    """Whether it is no half precision. In that, gate gradients from o without b2 err more."""
    return dtype in (torch.float32, torch.float64)


def _gather(tensor_bnd: Tensor, images: Tensor) -> Tensor:
    """The slots' images, [S, N*D]: an image is one row, since index_select is slow on three axes."""
    return tensor_bnd.flatten(1).index_select(0, images)


def _sum_slots(o_sx: Tensor, places_bk: Tensor, gates_bk: Tensor | None) -> Tensor:
    """[B, X]: each image's slots summed, weighted by its gates if given; accumulated in float32 at least."""
    if _is_full(o_sx.dtype):  # gather and sum in one pass
        return F.embedding_bag(places_bk, o_sx, mode="sum", per_sample_weights=gates_bk)
    o_bkx = o_sx.index_select(0, places_bk.reshape(-1)).view(*places_bk.shape, -1)
    if gates_bk is not None:
        o_bkx = o_bkx * gates_bk.unsqueeze(-1)
    return o_bkx.sum(1, dtype=torch.float32)


def _mix_by_differences(o_sx: Tensor, places_bk: Tensor, gates_bk: Tensor) -> Tensor:
    """`_sum_slots` as sum(g) o_0 + sum_j g_j (o_j - o_0), which with gates that sum to 1, up to rounding, makes of
    equal outputs that output to the bit: a model just upcycled computes what the dense one does.

    It reads and writes more than a batch in training should.
    """
    precision = torch.promote_types(o_sx.dtype, torch.float32)
    gates_bk = gates_bk.to(precision)
    total_b1 = gates_bk.sum(1, keepdim=True)
    rounding = gates_bk.shape[1] * torch.finfo(precision).eps
    total_b1 = total_b1.masked_fill((total_b1 - 1).abs() <= rounding, 1)
    first_bx, *others = (o_sx.index_select(0, places_b).to(precision) for places_b in places_bk.unbind(1))
    y_bx = first_bx * total_b1
    for gate_b, o_bx in zip(gates_bk.unbind(1)[1:], others, strict=True):
        y_bx.addcmul_(gate_b[:, None], o_bx.sub_(first_bx))
    return y_bx


def backward(
    grad_y: Tensor,
    given: ExpertArguments,
    kept: Kept,
    needs: Needs,
    settings: Settings,
    x_dtype: torch.dtype,
    weight_dtype: torch.dtype,
    router: ThroughRouter | None = None,
) -> Gradients:
    """The gradients that are asked for."""
    x, w1, b1, w2, b2, gates, indices = given
    tokens, width = x.shape[1:]
    (experts, columns, _), hidden = w1.shape, w2.shape[2]
    plan = _Plan(indices, experts, tokens)
    grads = empty_gradients(given, needs, x_dtype, weight_dtype)
    for tensor in (grads.w1, grads.b1, grads.w2, grads.b2):
        for e in plan.idle if tensor.numel() else ():
            tensor[e].zero_()
    accumulate = torch.promote_types(x.dtype, torch.float32)

    dy_sx = _gather(grad_y, plan.images)
    if needs.gates:
        by_slot = (kept.o.view_as(dy_sx) * dy_sx).sum(1, dtype=accumulate)
        grads.gates.copy_(by_slot.index_select(0, plan.places).view(gates.shape))
    if b2 is not None and (needs.gates or needs.b2):
        dy_bd = grad_y.sum(1, dtype=gates.dtype)
        if needs.gates and _is_full(x.dtype) and not _is_alone(x):  # o is without b2
            grads.gates.add_((dy_bd @ b2.t()).gather(1, indices.long()))
        if needs.b2:
            grads.b2.copy_(dense_gates(gates, indices, experts).sum(1).t() @ dy_bd)
    do_sx = dy_sx.mul_(gates.reshape(-1).index_select(0, plan.order).unsqueeze(1))

    x_rows = _gather(x, plan.images).view(-1, width).split(plan.sizes)
    do_rows = do_sx.view(-1, width).split(plan.sizes)
    w1_e, w2_e, w1_t, b1_e = w1.unbind(0), w2.unbind(0), _transposed(w1), _by_expert(b1, experts)
    dw1_e, db1_e, dw2_e = (grad.unbind(0) if grad.numel() else () for grad in (grads.w1, grads.b1, grads.w2))
    dx = do_sx.new_empty((sum(plan.sizes) if needs.x else 0, width))
    dx_rows = dx.split(plan.sizes) if needs.x else ()
    groups = plan.groups(columns * x.element_size())
    is_gated = columns != hidden  # then a's gradient has its place, since it is no room for z's
    scratch_dz, scratch_z, scratch_a = (
        dx.new_empty((_longest(groups) if needed else 0, size))
        for needed, size in (
            (needs.z, columns),
            (not kept.z.numel(), columns),
            ((needs.w2 and not kept.a.numel()) or (needs.z and is_gated), hidden),
        )
    )
    for group in groups:
        z = group.hidden(kept.z, scratch_z)
        if not kept.z.numel():
            for e, z_rows in zip(group.experts, z.split(group.sizes), strict=True):
                _linear(x_rows[e], w1_t[e], b1_e[e], out=z_rows)
        if needs.w2:
            a = group.hidden(kept.a, scratch_a)
            if not kept.a.numel():
                activate(settings.activation, z, out=a)
            for e, a_rows in zip(group.experts, a.split(group.sizes), strict=True):
                _mm_into(do_rows[e].t(), a_rows, dw2_e[e])
        if not needs.z:
            continue
        dz = scratch_dz[: len(z)]
        da = scratch_a[: len(z)] if is_gated else dz
        for e, da_rows in zip(group.experts, da.split(group.sizes), strict=True):
            torch.mm(do_rows[e], w2_e[e], out=da_rows)
        activate_backward(settings.activation, da, z, out=dz)
        for e, dz_rows in zip(group.experts, dz.split(group.sizes), strict=True):
            if needs.b1:
                torch.sum(dz_rows, 0, dtype=weight_dtype, out=db1_e[e])
            if needs.w1:
                _mm_into(dz_rows.t(), x_rows[e], dw1_e[e])
            if needs.x:
                torch.mm(dz_rows, w1_e[e], out=dx_rows[e])
    if needs.x:
        summed = _sum_slots(dx.view(-1, tokens * width), plan.places.view(gates.shape), None)
        grads = grads._replace(x=summed.view(x.shape).to(x_dtype))
    if router is not None:
        grad_feature = router.feature_gradient(grads.gates)
        if needs.x:
            add_feature_gradient_(grads.x, grad_feature, router.pool)
    return grads


def _mm_into(a: Tensor, b: Tensor, out: Tensor) -> None:
    """out = a b, where ``out`` may have another dtype."""
    if out.dtype == a.dtype:
        torch.mm(a, b, out=out)
    else:
        out.copy_(a @ b)
