"""Gradients of biases and gates: sums over tokens, tiles and slots, each in a fixed order.

Axes: b images, n tokens, d width, h hidden, r experts, k chosen; S = B k slots; rows = S N, sorted by expert.
All sums are in float32.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from dexcore.kernels.launch import launch
from dexcore.kernels.numerics import rounded
from dexcore.kernels.plan import Plan

_COLUMNS = 128
_SUMMANDS = 32


def token_sums(dy: Tensor) -> Tensor:
    """[B, D] float32, the sums over the tokens of dy [B, N, D]."""
    batch, tokens, width = dy.shape
    sums = dy.new_empty((batch, width), dtype=torch.float32)
    launch(
        _token_sums_kernel,
        (batch * triton.cdiv(width, _COLUMNS),),
        dy,
        sums,
        tokens,
        width,
        COLUMNS=_COLUMNS,
        SUMMANDS=_SUMMANDS,
        num_warps=4,
    )
    return sums


def token_sums_bytes(batch: int, tokens: int, width: int, itemsize: int) -> int:
    """Unique bytes of `token_sums`."""
    return batch * width * (tokens * itemsize + 4)


def bias1_gradient(bias_parts: Tensor, plan: Plan, dtype: torch.dtype) -> Tensor:
    """[R, H] of ``dtype``, the sums over each expert's tiles of bias_parts [T, H] (`expert_dact`)."""
    hidden = bias_parts.shape[1]
    grad = bias_parts.new_empty((plan.num_experts, hidden), dtype=dtype)
    launch(
        _bias1_kernel,
        (plan.num_experts * triton.cdiv(hidden, _COLUMNS),),
        bias_parts,
        grad,
        plan.tile_starts,
        hidden,
        COLUMNS=_COLUMNS,
        SUMMANDS=_SUMMANDS,
        num_warps=4,
    )
    return grad


def bias1_gradient_bytes(counts: Sequence[int], tokens: int, hidden: int, itemsize: int, block_m: int) -> int:
    """Unique bytes of `bias1_gradient`; ``counts`` are the experts' slots, ``itemsize`` is the gradient's."""
    live = sum(triton.cdiv(count * tokens, block_m) for count in counts)
    return 4 * (live * hidden + len(counts) + 1) + len(counts) * hidden * itemsize


def bias2_gradient(token_sums: Tensor, gates: Tensor, plan: Plan, dtype: torch.dtype) -> Tensor:
    """[R, D] of ``dtype``, the sums over each expert's slots of gate * token_sums[image]."""
    width = token_sums.shape[1]
    grad = token_sums.new_empty((plan.num_experts, width), dtype=dtype)
    launch(
        _bias2_kernel,
        (plan.num_experts * triton.cdiv(width, _COLUMNS),),
        token_sums,
        gates,
        grad,
        plan.slots,
        plan.images,
        plan.starts,
        width,
        COLUMNS=_COLUMNS,
        SUMMANDS=_SUMMANDS,
        num_warps=4,
    )
    return grad


def bias2_gradient_bytes(counts: Sequence[int], batch: int, width: int, itemsize: int) -> int:
    """Unique bytes of `bias2_gradient`; ``counts`` are the experts' slots, ``itemsize`` is the gradient's."""
    return 4 * (batch * width + 3 * sum(counts) + len(counts) + 1) + len(counts) * width * itemsize


def gate_gradient(gate_parts: Tensor, token_sums: Tensor | None, b2: Tensor | None, plan: Plan) -> Tensor:
    """[B, k] float32: a slot's sum of gate_parts [P, rows] (`expert_dact`), plus <b2_e, token_sums[image]>.

    ``token_sums`` is read where there is a ``b2`` [R, D] alone.
    """
    slots = plan.slots.numel()
    grad = gate_parts.new_empty((slots // plan.top_k, plan.top_k))
    launch(
        _gate_kernel,
        (slots,),
        gate_parts,
        None if b2 is None else token_sums,
        b2,
        grad,
        plan.slots,
        plan.images,
        plan.starts,
        gate_parts.shape[0],
        plan.rows,
        plan.tokens,
        0 if b2 is None else b2.shape[1],
        R=plan.num_experts,
        R_BLOCK=triton.next_power_of_2(plan.num_experts),
        PARTS=8,
        TOKENS=64,
        WIDTH=512,
        num_warps=4,
    )
    return grad


def gate_gradient_bytes(
    counts: Sequence[int], batch: int, tokens: int, parts: int, width: int, b2_itemsize: int | None
) -> int:
    """Unique bytes of `gate_gradient`; ``counts`` are the experts' slots, ``b2_itemsize`` None without a b2."""
    slots = sum(counts)
    if slots == 0:
        return 0
    plain = 4 * (slots * tokens * parts + 2 * slots)
    if b2_itemsize is None:
        return plain
    used = sum(count > 0 for count in counts)
    return plain + 4 * (slots + len(counts) + batch * width) + used * width * b2_itemsize


@triton.jit
def _token_sums_kernel(
    dy_ptr,  # [B, N, D]
    sums_ptr,  # [B, D]
    tokens,
    D,
    COLUMNS: tl.constexpr,
    SUMMANDS: tl.constexpr,
):
    """sums[b] = sum_n dy[b, n].

    Grid (B ceil(D / COLUMNS),); a program writes COLUMNS elements of one image. Bytes: B D (N s + 4), s of dy's
    element; FLOPs: B N D. Float32.
    """
    column_tiles = tl.cdiv(D, COLUMNS)
    image = (tl.program_id(0) // column_tiles).to(tl.int64)
    columns = tl.program_id(0) % column_tiles * COLUMNS + tl.arange(0, COLUMNS)
    block = tl.arange(0, SUMMANDS)
    sums = tl.zeros((SUMMANDS, COLUMNS), tl.float32)
    for first in range(0, tokens, SUMMANDS):
        token = first + block
        valid = (token < tokens)[:, None] & (columns < D)[None, :]
        rows = (image * tokens + token) * D
        sums += tl.load(dy_ptr + rows[:, None] + columns[None, :], mask=valid, other=0.0).to(tl.float32)
    tl.store(sums_ptr + image * D + columns, tl.sum(sums, 0), mask=columns < D)


@triton.jit
def _bias1_kernel(
    bias_parts_ptr,  # [T, H]
    grad_ptr,  # [R, H]
    tile_starts_ptr,
    H,
    COLUMNS: tl.constexpr,
    SUMMANDS: tl.constexpr,
):
    """grad[e] = sum of bias_parts[t] over the tiles t of expert e; zeros without any.

    Grid (R ceil(H / COLUMNS),); a program writes COLUMNS elements of one expert. Bytes, with L tiles that have rows:
    4 (L H + R + 1) + R H s, s of grad's element; FLOPs: L H. Float32, rounded once.
    """
    column_tiles = tl.cdiv(H, COLUMNS)
    expert = tl.program_id(0) // column_tiles
    columns = tl.program_id(0) % column_tiles * COLUMNS + tl.arange(0, COLUMNS)
    block = tl.arange(0, SUMMANDS)
    end = tl.load(tile_starts_ptr + expert + 1)
    sums = tl.zeros((SUMMANDS, COLUMNS), tl.float32)
    for first in range(tl.load(tile_starts_ptr + expert), end, SUMMANDS):
        tile = first + block
        valid = (tile < end)[:, None] & (columns < H)[None, :]
        rows = tile.to(tl.int64) * H
        sums += tl.load(bias_parts_ptr + rows[:, None] + columns[None, :], mask=valid, other=0.0)
    grad = rounded(tl.sum(sums, 0), grad_ptr.dtype.element_ty)
    tl.store(grad_ptr + expert.to(tl.int64) * H + columns, grad, mask=columns < H)


@triton.jit
def _bias2_kernel(
    token_sums_ptr,  # [B, D]
    gates_ptr,  # [S]
    grad_ptr,  # [R, D]
    slots_ptr,
    images_ptr,
    starts_ptr,
    D,
    COLUMNS: tl.constexpr,
    SUMMANDS: tl.constexpr,
):
    """grad[e] = sum of gate * token_sums[image] over the slots of expert e; zeros without any.

    Grid (R ceil(D / COLUMNS),); a program writes COLUMNS elements of one expert. Bytes: 4 (B D + 3 S + R + 1) + R D s,
    s of grad's element; FLOPs: 2 S D. Float32, rounded once.
    """
    column_tiles = tl.cdiv(D, COLUMNS)
    expert = tl.program_id(0) // column_tiles
    columns = tl.program_id(0) % column_tiles * COLUMNS + tl.arange(0, COLUMNS)
    block = tl.arange(0, SUMMANDS)
    end = tl.load(starts_ptr + expert + 1)
    sums = tl.zeros((SUMMANDS, COLUMNS), tl.float32)
    for first in range(tl.load(starts_ptr + expert), end, SUMMANDS):
        slot = first + block
        inside = slot < end
        gate = tl.load(gates_ptr + tl.load(slots_ptr + slot, mask=inside, other=0), mask=inside, other=0.0)
        rows = tl.load(images_ptr + slot, mask=inside, other=0).to(tl.int64) * D
        valid = inside[:, None] & (columns < D)[None, :]
        sums += gate[:, None] * tl.load(token_sums_ptr + rows[:, None] + columns[None, :], mask=valid, other=0.0)
    grad = rounded(tl.sum(sums, 0), grad_ptr.dtype.element_ty)
    tl.store(grad_ptr + expert.to(tl.int64) * D + columns, grad, mask=columns < D)


@triton.jit(do_not_specialize=["num_rows"])
def _gate_kernel(
    gate_parts_ptr,  # [P, rows]
    token_sums_ptr,  # [B, D]
    b2_ptr,  # [R, D] or None
    grad_ptr,  # [S]
    slots_ptr,
    images_ptr,
    starts_ptr,
    parts,
    num_rows,
    tokens,
    D,
    R: tl.constexpr,
    R_BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
    TOKENS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """grad[slot] = sum over p and n of gate_parts[p, sN + n], plus <b2_e, token_sums[image]>; sorted slot s.

    Grid (S,); a program writes one element. Bytes: 4 (P rows + 2 S), and with b2 4 (S + R + B D) + U D s more, U
    experts that have slots, s of b2's element; FLOPs: P rows, and 2 S D. Float32.
    """
    place = tl.program_id(0)
    block_p = tl.arange(0, PARTS)
    block_n = tl.arange(0, TOKENS)
    sums_pn = tl.zeros((PARTS, TOKENS), tl.float32)
    for first_p in range(0, parts, PARTS):
        part = first_p + block_p
        row = part.to(tl.int64) * num_rows + place * tokens
        for first_n in range(0, tokens, TOKENS):
            token = first_n + block_n
            valid = (part < parts)[:, None] & (token < tokens)[None, :]
            sums_pn += tl.load(gate_parts_ptr + row[:, None] + token[None, :], mask=valid, other=0.0)
    grad = tl.sum(tl.sum(sums_pn, 1), 0)

    if b2_ptr is not None:
        # The expert whose slots hold this one: as many experts end at or before it.
        experts = tl.arange(0, R_BLOCK)
        ends = tl.load(starts_ptr + 1 + experts, mask=experts < R, other=0)
        expert = tl.sum(((ends <= place) & (experts < R)).to(tl.int32), 0).to(tl.int64)
        image = tl.load(images_ptr + place).to(tl.int64)
        width = tl.arange(0, WIDTH)
        products = tl.zeros((WIDTH,), tl.float32)
        for first in range(0, D, WIDTH):
            column = first + width
            bias = tl.load(b2_ptr + expert * D + column, mask=column < D, other=0.0).to(tl.float32)
            products += bias * tl.load(token_sums_ptr + image * D + column, mask=column < D, other=0.0)
        grad += tl.sum(products, 0)
    tl.store(grad_ptr + tl.load(slots_ptr + place), grad)
