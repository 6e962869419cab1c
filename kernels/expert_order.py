"""Tokens of images copied into expert order (`dexcore.kernels.plan`), in the GEMMs' dtype.

The experts' input is cast anyway, and their output's gradient is made from two; so it costs no more than writing k
copies that every GEMM of the layer then finds dense tiles.

Axes: b images, n tokens, d width, r experts, k chosen; rows: those of the plan.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dexcore.kernels.launch import launch
from dexcore.kernels.numerics import rounded
from dexcore.kernels.plan import Plan

_COLUMNS = 128
_TOKENS = 32


class Input(NamedTuple):
    """What the experts' first layers read."""

    rows: Tensor  # [rows, D]: x in expert order, zeros where a row has no token
    gates: Tensor  # [rows], float32: every row's gate, 0 where it has no token
    images: Tensor | None  # [whole tiles of B*N rows, D]: x as it was given, and zeros; the director's


def input_rows(x: Tensor, gates: Tensor, plan: Plan, dtype: torch.dtype, *, by_image: bool) -> Input:
    """x and the gates in expert order.

    Args:
        x: [B, N, D], contiguous, floating.
        gates: [B, k], float32.
        plan: of the routing.
        dtype: of the result.
        by_image: also copy x in the order of images, padded to whole tiles.
    """
    batch, tokens, width = x.shape
    rows = x.new_empty((plan.rows, width), dtype=dtype)
    row_gates = gates.new_empty(plan.rows)
    padded = triton.cdiv(batch * tokens, plan.block_m) * plan.block_m
    images = x.new_empty((padded, width), dtype=dtype) if by_image else None
    _launch(x, plan, rows, gates=gates, row_gates=row_gates, images=images)
    return Input(rows, row_gates, images)


def gradient_rows(
    grad_y: Tensor | None,
    plan: Plan,
    dtype: torch.dtype,
    *,
    grad_loss: Tensor | None = None,
    gradient: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """dy = grad_y + grad_loss / (B N) * gradient in expert order, and its sums over an image's tokens.

    Args:
        grad_y: [B, N, D] or None: what reaches y from outside, any dtype.
        plan: of the routing.
        dtype: of dy.
        grad_loss: 0-dim, float32, of the mean of the rows' alignment losses; stays on the device.
        gradient: [B, N, D], of the sum of these losses (`mix_align_forward`).

    Returns:
        [rows, D] of ``dtype``, zeros where a row has no token; [B, D] float32, the sums of the rounded dy.
    """
    given = grad_y if gradient is None else gradient
    assert given is not None
    batch, _, width = given.shape
    rows = given.new_empty((plan.rows, width), dtype=dtype)
    sums = given.new_empty((batch, width), dtype=torch.float32)
    _launch(grad_y, plan, rows, grad_loss=grad_loss, gradient=gradient, sums=sums)
    return rows, sums


def input_rows_bytes(x: Tensor, plan: Plan, dtype: torch.dtype, *, by_image: bool) -> int:
    """Unique bytes of `input_rows`."""
    if not plan.images:
        return 0
    padded = triton.cdiv(x.shape[0] * x.shape[1], plan.block_m) * plan.block_m if by_image else 0
    gates = 4 * (plan.slots.numel() + plan.rows)
    return x.nbytes + _row_bytes(x.shape[2], plan, dtype) + gates + padded * x.shape[2] * dtype.itemsize


def gradient_rows_bytes(grad_y: Tensor | None, plan: Plan, dtype: torch.dtype, gradient: Tensor | None = None) -> int:
    """Unique bytes of `gradient_rows`."""
    given = [t for t in (grad_y, gradient) if t is not None]
    batch, _, width = given[0].shape
    if not batch:
        return 0
    scale = 0 if gradient is None else 4
    return sum(t.nbytes for t in given) + scale + 4 * batch * width + _row_bytes(width, plan, dtype)


def _row_bytes(width: int, plan: Plan, dtype: torch.dtype) -> int:
    """Of the rows written, and of first_rows, starts and tile_starts."""
    return plan.rows * width * dtype.itemsize + 4 * (plan.slots.numel() + 2 * (plan.num_experts + 1))


def _launch(
    source: Tensor | None,
    plan: Plan,
    rows: Tensor,
    *,
    gates: Tensor | None = None,
    row_gates: Tensor | None = None,
    images: Tensor | None = None,
    grad_loss: Tensor | None = None,
    gradient: Tensor | None = None,
    sums: Tensor | None = None,
) -> None:
    width = rows.shape[1]
    pads = plan.num_experts + (images is not None)
    launch(
        _expert_order_kernel,
        ((plan.images + pads) * triton.cdiv(width, _COLUMNS) if plan.images else 0,),
        source,
        gradient,
        grad_loss,
        1 / max(plan.images * plan.tokens, 1),
        gates,
        rows,
        images,
        row_gates,
        sums,
        plan.first_rows,
        plan.starts,
        plan.tile_starts,
        plan.images,
        plan.rows,
        plan.tokens,
        D=width,
        R=plan.num_experts,
        TOP_K=plan.top_k,
        BLOCK_M=plan.block_m,
        TOKENS=_TOKENS,
        COLUMNS=_COLUMNS,
        num_warps=4,
    )


@triton.jit(do_not_specialize=["batch", "num_rows"])
def _expert_order_kernel(
    source_ptr,  # [B, N, D] or None
    gradient_ptr,  # [B, N, D] or None
    grad_loss_ptr,  # 0-dim, None where gradient_ptr is
    inverse_rows,
    gates_ptr,  # [B, k] or None
    rows_ptr,  # [rows, D]
    images_ptr,  # [whole tiles of B*N, D] or None
    row_gates_ptr,  # [rows], None where gates_ptr is
    sums_ptr,  # [B, D] or None
    first_rows_ptr,
    starts_ptr,
    tile_starts_ptr,
    batch,
    num_rows,
    tokens,
    D: tl.constexpr,
    R: tl.constexpr,
    TOP_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """rows[first_rows[b, j] + n] = v[b, n], images[b N + n] = v[b, n], sums[b] = sum_n v[b, n],
    row_gates[first_rows[b, j] + n] = gates[b, j], v = source + grad_loss / (B N) gradient, what is not given being 0.

    Grid ((B + R + 1) cdiv(D, COLUMNS),), columns fastest, the + 1 only with images. A program owns COLUMNS columns: of
    an image's rows, wherever they go, and of sums; or of an expert's rows that have no token, and of every R-th
    tile that nobody has; or of those behind the last image's: these are zero. The first column's programs own row_gates
    too.

    Bytes: source and gradient B N D each; rows and images, each element; sums 4 B D; row_gates 4 a row, gates 4 S;
    first_rows 4 S, starts and tile_starts 8 (R + 1); with gradient 4. FLOPs: at most 3 B N D. In float32, rounded once;
    the sums are of the rounded v.
    """
    column_blocks: tl.constexpr = (D + COLUMNS - 1) // COLUMNS
    owner = tl.program_id(0) // column_blocks
    column = tl.program_id(0) % column_blocks * COLUMNS + tl.arange(0, COLUMNS)
    is_first = tl.program_id(0) % column_blocks == 0
    in_width = (column < D)[None, :]
    block = tl.arange(0, TOKENS)

    if owner < batch:
        scale = inverse_rows
        if gradient_ptr is not None:
            scale = tl.load(grad_loss_ptr) * inverse_rows
        total = tl.zeros((TOKENS, COLUMNS), tl.float32)
        for first in range(0, tokens, TOKENS):
            token = first + block
            here = (token < tokens)[:, None] & in_width
            offsets = (owner.to(tl.int64) * tokens + token)[:, None] * D + column[None, :]
            value = tl.zeros((TOKENS, COLUMNS), tl.float32)
            if source_ptr is not None:
                value += tl.load(source_ptr + offsets, mask=here, other=0.0).to(tl.float32)
            if gradient_ptr is not None:
                value += tl.load(gradient_ptr + offsets, mask=here, other=0.0).to(tl.float32) * scale
            value = rounded(value, rows_ptr.dtype.element_ty)
            if sums_ptr is not None:
                total += value.to(tl.float32)
            if images_ptr is not None:
                tl.store(images_ptr + offsets, value, mask=here)
            for j in tl.static_range(TOP_K):
                row = tl.load(first_rows_ptr + owner * TOP_K + j) + token
                tl.store(rows_ptr + row.to(tl.int64)[:, None] * D + column[None, :], value, mask=here)
                if gates_ptr is not None:
                    gate = tl.load(gates_ptr + owner * TOP_K + j)
                    gate = tl.zeros((TOKENS,), tl.float32) + gate
                    tl.store(row_gates_ptr + row, gate, mask=(token < tokens) & is_first)
        if sums_ptr is not None:
            tl.store(sums_ptr + owner.to(tl.int64) * D + column, tl.sum(total, 0), mask=column < D)
    else:
        expert = owner - batch
        if expert < R:
            gates_here = row_gates_ptr if gates_ptr is not None else None
            first_row = tl.load(tile_starts_ptr + expert) * BLOCK_M
            slots = tl.load(starts_ptr + expert + 1) - tl.load(starts_ptr + expert)
            end = tl.load(tile_starts_ptr + expert + 1) * BLOCK_M
            _zero(rows_ptr, gates_here, first_row + slots * tokens, end, column, is_first, D, TOKENS, COLUMNS)
            # Tiles that nobody has are shared out among the experts.
            for tile in range(tl.load(tile_starts_ptr + R) + expert, num_rows // BLOCK_M, R):
                row = tile * BLOCK_M
                _zero(rows_ptr, gates_here, row, row + BLOCK_M, column, is_first, D, TOKENS, COLUMNS)
        elif images_ptr is not None:
            rows = batch * tokens
            end = tl.cdiv(rows, BLOCK_M) * BLOCK_M
            _zero(images_ptr, None, rows, end, column, is_first, D, TOKENS, COLUMNS)


@triton.jit
def _zero(
    rows_ptr,
    gates_ptr,
    begin,
    end,
    column,
    is_first,
    D: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write zeros to the columns of the rows ``begin`` .. ``end - 1``, and to their gates if given."""
    for first in range(begin, end, TOKENS):
        row = first + tl.arange(0, TOKENS)
        offsets = row.to(tl.int64)[:, None] * D + column[None, :]
        zeros = rounded(tl.zeros((TOKENS, COLUMNS), tl.float32), rows_ptr.dtype.element_ty)
        tl.store(rows_ptr + offsets, zeros, mask=(row < end)[:, None] & (column < D)[None, :])
        if gates_ptr is not None:
            tl.store(gates_ptr + row, tl.zeros((TOKENS,), tl.float32), mask=(row < end) & is_first)
