"""Backward of the experts' second layer and activation: dz, the gates' partial gradients, the first bias's.

Axes: b images, n tokens, d width, h hidden, r experts, k chosen; S = B k slots; rows = S N, sorted by expert.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from dexcore.kernels.configs import Gemm
from dexcore.kernels.launch import launch
from dexcore.kernels.numerics import activate_both, dot, halves, rounded
from dexcore.kernels.plan import Plan, image_rows, tile_rows

_GROUP = 8


def expert_dact(
    dy: Tensor,
    w2: Tensor,
    z: Tensor,
    gates: Tensor,
    plan: Plan,
    activation: str,
    precision: str,
    config: Gemm,
    *,
    keep_a: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradient of the experts' pre-activations z, and what falls out beside it.

    Args:
        dy: [B, N, D], the gradient of the layer's output.
        w2: [R, D, H], of dy's dtype.
        z: [rows, H] in expert order, of dy's dtype.
        gates: [B, k], float32.
        plan: made with ``config.block_m``.
        activation: "gelu", "gelu_tanh", "relu" or "silu".
        precision: of float32 dot products: "ieee", "tf32" or "tf32x3".
        config: the tile.
        keep_a: also write gate * act(z), the operand of W2's gradient; else it is empty, (0, H).

    Returns:
        dz: [rows, H], of dy's dtype.
        wa: [rows, H] or [0, H], of dy's dtype.
        bias_parts: [T, H] float32, dz's column sums over each tile; not written where a tile has no expert.
        gate_parts: [ceil(H / block_n), rows] float32, the row sums of act(z) u over each tile's columns.
    """
    _, width, hidden = w2.shape
    tiles = plan.tiles.numel()
    column_tiles = triton.cdiv(hidden, config.block_n)
    dz = torch.empty_like(z)
    wa = z.new_empty((plan.rows if keep_a else 0, hidden))
    bias_parts = gates.new_empty((tiles, hidden))
    gate_parts = gates.new_empty((column_tiles, plan.rows))
    launch(
        _expert_dact_kernel,
        (tiles * column_tiles,),
        dy,
        w2,
        z,
        gates,
        dz,
        wa,
        bias_parts,
        gate_parts,
        plan.slots,
        plan.images,
        plan.starts,
        plan.tile_starts,
        plan.tiles,
        tiles,
        plan.rows,
        plan.tokens,
        width,
        hidden,
        ACTIVATION=activation,
        PRECISION=precision,
        KEEP_A=keep_a,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        PART=_part(config),
        GROUP=_GROUP,
        num_warps=config.warps,
        num_stages=config.stages,
    )
    return dz, wa, bias_parts, gate_parts


def _part(config: Gemm) -> int:
    """Columns the epilogue takes at a time: 16 elements a thread, fewer beside a large share of the accumulator.

    So 16 of 128 x 128 by eight warps: on sm_90 GELU's backward in bf16 then takes 128 registers a thread, and two
    programs share a multiprocessor, one's epilogue beside the other's dot products. With 32 columns it takes 149.
    """
    threads = 32 * config.warps
    accumulated = triton.cdiv(config.block_m * config.block_n, threads)
    part = max(min(16, 512 // accumulated), 1) * threads // config.block_m
    return min(max(part, 16), config.block_n)


def expert_dact_flops(rows: int, width: int, hidden: int) -> int:
    """Of the GEMM: two a multiply and add."""
    return 2 * rows * width * hidden


def expert_dact_bytes(
    counts: Sequence[int], images: int, tokens: int, width: int, hidden: int, itemsize: int, config: Gemm, keep_a: bool
) -> int:
    """Unique bytes of `expert_dact`; ``counts`` are the experts' slots, ``itemsize`` is dy's."""
    slots = sum(counts)
    if slots == 0:
        return 0
    rows = slots * tokens
    used = [expert for expert, count in enumerate(counts) if count]
    live = sum(triton.cdiv(count * tokens, config.block_m) for count in counts)
    tiles = rows // config.block_m + min(len(counts), slots)
    starts = {expert for first in used for expert in (first, first + 1)}
    read = (images * tokens * width + len(used) * width * hidden + rows * hidden) * itemsize
    tables = 4 * (3 * slots + tiles + len(used) + len(starts))
    written = (2 if keep_a else 1) * rows * hidden * itemsize
    parts = 4 * (live * hidden + triton.cdiv(hidden, config.block_n) * rows)
    return read + tables + written + parts


@triton.jit
def _epilogue(
    u,
    first,
    inside,
    offsets,
    gate,
    z_ptr,
    dz_ptr,
    wa_ptr,
    bias_ptr,
    H,
    ACTIVATION: tl.constexpr,
    KEEP_A: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PART: tl.constexpr,
):
    """Write dz, wa and dz's column sums at the columns ``first`` .. ``first + COLUMNS - 1``; PART of them at a time,
    since temporaries as wide as the accumulator would spill. Returns the row sums of act(z) u.
    """
    if COLUMNS > PART:
        HALF: tl.constexpr = COLUMNS // 2
        left, right = halves(u, ROWS, COLUMNS)
        sums = _epilogue(
            left, first, inside, offsets, gate, z_ptr, dz_ptr, wa_ptr, bias_ptr, H, ACTIVATION, KEEP_A, ROWS, HALF, PART
        )
        first += HALF
        sums += _epilogue(
            right,
            first,
            inside,
            offsets,
            gate,
            z_ptr,
            dz_ptr,
            wa_ptr,
            bias_ptr,
            H,
            ACTIVATION,
            KEEP_A,
            ROWS,
            HALF,
            PART,
        )
        return sums
    else:
        columns = first + tl.arange(0, COLUMNS)
        valid = inside[:, None] & (columns < H)[None, :]
        where = offsets[:, None] + columns[None, :]
        z = tl.load(z_ptr + where, mask=valid, other=0.0).to(tl.float32)
        # An Inf in dy makes NaN of the zeros that stand for W2's columns beyond H.
        u = tl.where(valid, u, 0.0)
        a, slope = activate_both(z, ACTIVATION)
        if KEEP_A:
            tl.store(wa_ptr + where, rounded(gate[:, None] * a, wa_ptr.dtype.element_ty), mask=valid)
        # In this order: on sm_80 the gate's product first, or the sums before the stores, need registers that spill.
        dz = u * slope * gate[:, None]
        tl.store(dz_ptr + where, rounded(dz, dz_ptr.dtype.element_ty), mask=valid)
        tl.store(bias_ptr + columns, tl.sum(dz, 0), mask=columns < H)
        return tl.sum(a * u, 1)


@triton.jit(do_not_specialize=["num_tiles", "num_rows"])
def _expert_dact_kernel(
    dy_ptr,  # [B, N, D]
    w2_ptr,  # [R, D, H]
    z_ptr,  # [rows, H]
    gates_ptr,  # [S]
    dz_ptr,  # [rows, H]
    wa_ptr,  # [rows, H] where KEEP_A
    bias_parts_ptr,  # [T, H]
    gate_parts_ptr,  # [ceil(H / BLOCK_N), rows]
    slots_ptr,
    images_ptr,
    starts_ptr,
    tile_starts_ptr,
    tiles_ptr,
    num_tiles,
    num_rows,
    tokens,
    D,
    H,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    KEEP_A: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PART: tl.constexpr,
    GROUP: tl.constexpr,
):
    """u = dy W2_e over row-mapped dy; dz = gate u act'(z), wa = gate act(z), bias_parts = column sums of dz,
    gate_parts = row sums of act(z) u.

    Grid (T ceil(H / BLOCK_N),), T = num_tiles, in groups of GROUP row tiles; a program owns the rows of one tile,
    BLOCK_M at most, and BLOCK_N columns of dz and wa, its tile's row of bias_parts at these columns, and its column
    tile's row of gate_parts at these rows. A tile without expert writes nothing.

    Bytes, with s of dy's element, U experts that have rows, L tiles that have rows, E entries of starts at or after
    one of the U: s (B N D + U D H + (2 + KEEP_A) rows H) + 4 (3 S + T + U + E) + 4 (L H + ceil(H / BLOCK_N) rows).
    FLOPs: 2 rows D H. Everything is accumulated in float32; the sums are of the unrounded dz.
    """
    program = tl.program_id(0)
    in_group = GROUP * tl.cdiv(H, BLOCK_N)
    first_tile = program // in_group * GROUP
    group = tl.minimum(num_tiles - first_tile, GROUP)
    tile = first_tile + program % in_group % group
    column_tile = program % in_group // group
    expert = tl.load(tiles_ptr + tile)
    if expert < 0:
        return

    rows, inside = tile_rows(tile, expert, starts_ptr, tile_starts_ptr, tokens, BLOCK_M)
    dy_rows = image_rows(rows, inside, images_ptr, tokens)
    columns = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    depth = tl.arange(0, BLOCK_K)
    dy_ptrs = dy_ptr + (dy_rows.to(tl.int64) * D)[:, None] + depth[None, :]
    w2_ptrs = w2_ptr + expert.to(tl.int64) * D * H + depth[:, None] * H + columns[None, :]
    u = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in range(0, D, BLOCK_K):
        left = tl.load(dy_ptrs, mask=inside[:, None] & (depth < D - first)[None, :], other=0.0)
        right = tl.load(w2_ptrs, mask=(depth < D - first)[:, None] & (columns < H)[None, :], other=0.0)
        u = dot(left, right, u, PRECISION)
        dy_ptrs += BLOCK_K
        w2_ptrs += BLOCK_K * H

    slots = tl.load(slots_ptr + rows // tokens, mask=inside, other=0)
    gate = tl.load(gates_ptr + slots, mask=inside, other=0.0)
    offsets = rows.to(tl.int64) * H
    bias_ptr = bias_parts_ptr + tile.to(tl.int64) * H
    sums = _epilogue(
        u,
        column_tile * BLOCK_N,
        inside,
        offsets,
        gate,
        z_ptr,
        dz_ptr,
        wa_ptr,
        bias_ptr,
        H,
        ACTIVATION,
        KEEP_A,
        BLOCK_M,
        BLOCK_N,
        PART,
    )
    tl.store(gate_parts_ptr + column_tile.to(tl.int64) * num_rows + rows, sums, mask=inside)
