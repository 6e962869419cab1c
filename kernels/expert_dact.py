"""Backward of the experts' second layer and activation: dz, and the gates' partial gradients.

With "swiglu" z = [g, v] and dz have 2 H columns (`dexcore.kernels.expert_up`). C is H, or 2 H then.

Axes: b images, n tokens, d width, h hidden, r experts, k chosen; S = B k slots; rows: those of the plan.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from dexcore.kernels.configs import Gemm
from dexcore.kernels.launch import launch
from dexcore.kernels.numerics import activate_both, dot, halves
from dexcore.kernels.plan import Plan, rows_with_tokens, tile_in_group
from dexcore.kernels.tiles import load_tile, matrix, store_tile


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
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of the experts' pre-activations z, and what falls out beside it.

    Args:
        dy: [rows, D], the gradient of the layer's output in expert order (`gradient_rows`).
        w2: [R, D, H], of dy's dtype.
        z: [rows, C], of dy's dtype.
        gates: [rows], float32 (`dexcore.kernels.expert_order.Input`).
        plan: made with ``config.block_m``.
        activation: "gelu", "gelu_tanh", "quick_gelu", "relu", "silu" or "swiglu".
        precision: of float32 dot products: "ieee", "tf32" or "tf32x3".
        config: the tile.
        keep_a: also write gate * act(z), the operand of W2's gradient; else it is empty, (0, H).

    Returns:
        dz: [rows, C], of dy's dtype.
        wa: [rows, H] or [0, H], of dy's dtype.
        gate_parts: [ceil(H / block_n), rows] float32, the row sums of act(z) u over each tile's columns.
        All are zero where a row has no token.
    """
    plan.check_tile(config.block_m)
    _, width, hidden = w2.shape
    m, n, k = config[:3]
    tiles = plan.tiles.numel()
    column_tiles = triton.cdiv(hidden, n)
    dz = torch.empty_like(z)
    wa = z.new_empty((plan.rows if keep_a else 0, hidden))
    gate_parts = gates.new_empty((column_tiles, plan.rows))
    glu = activation == "swiglu"
    part = _part(config, heavy=glu or keep_a or activation == "gelu_tanh")
    # A tile of the gate's columns must not reach into the value's.
    described = config.described and not (glu and hidden % n)
    launch(
        _expert_dact_kernel,
        (tiles * column_tiles,),
        matrix(dy, (m, k), described),
        matrix(w2, (k, n), described),
        z,
        gates,
        matrix(dz, (m, part), described),
        matrix(wa if keep_a else None, (m, part), described),
        gate_parts,
        plan.starts,
        plan.tile_starts,
        plan.tiles,
        tiles,
        plan.tokens,
        D=width,
        H=hidden,
        ACTIVATION=activation,
        PRECISION=precision,
        BLOCK_M=m,
        BLOCK_N=n,
        BLOCK_K=k,
        PART=part,
        num_warps=config.warps,
        num_stages=config.stages,
    )
    return dz, wa, gate_parts


def _part(config: Gemm, heavy: bool) -> int:
    """Columns the epilogue takes at a time: 16 elements a thread, fewer beside a large share of the accumulator.

    So 16 of 128 x 128 by eight warps: on sm_90 GELU's backward in bf16 then takes 104 registers a thread, and two
    programs share a multiprocessor, one's epilogue beside the other's dot products. With 32 columns it takes 139. A
    ``heavy`` one, that writes more or computes more an element, has half of them, to stay within 128.
    """
    threads = 32 * config.warps
    accumulated = triton.cdiv(config.block_m * config.block_n, threads)
    part = max(min(16, 512 // accumulated), 1) * threads // config.block_m
    return min(max(part // 2, 8) if heavy else max(part, 16), config.block_n)


def expert_dact_flops(batch: int, tokens: int, width: int, hidden: int, top_k: int) -> int:
    """2 B N k D H; those of rows without a token do not count."""
    return 2 * batch * tokens * top_k * width * hidden


def expert_dact_bytes(
    counts: Sequence[int],
    plan: Plan,
    width: int,
    hidden: int,
    itemsize: int,
    config: Gemm,
    *,
    keep_a: bool,
    glu: bool = False,
) -> int:
    """Unique bytes of `expert_dact`; ``counts`` are the experts' slots, ``itemsize`` is dy's."""
    if not plan.images:
        return 0
    rows, used, tables = plan.live(counts)
    columns = 2 * hidden if glu else hidden
    elements = rows * (width + 2 * columns + (hidden if keep_a else 0)) + used * width * hidden
    return elements * itemsize + tables + 4 * rows * (1 + triton.cdiv(hidden, config.block_n))


@triton.jit
def _epilogue(
    u,
    first,
    row,
    has_token,
    gate,
    z_ptr,
    dz,
    wa,
    H: tl.constexpr,
    END: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PART: tl.constexpr,
):
    """Write dz and wa at the columns ``first`` .. ``first + COLUMNS - 1``; PART of them at a time, since temporaries as
    wide as the accumulator would spill. Returns act(z) u [ROWS, PART], summed over the parts.
    """
    if COLUMNS > PART:
        HALF: tl.constexpr = COLUMNS // 2
        left, right = halves(u, ROWS, COLUMNS)
        sums = _epilogue(left, first, row, has_token, gate, z_ptr, dz, wa, H, END, ACTIVATION, ROWS, HALF, PART)
        first += HALF
        sums += _epilogue(right, first, row, has_token, gate, z_ptr, dz, wa, H, END, ACTIVATION, ROWS, HALF, PART)
        return sums
    else:
        GLU: tl.constexpr = ACTIVATION == "swiglu"
        C: tl.constexpr = 2 * H if GLU else H
        VALUE_END: tl.constexpr = C if END > 0 else 0
        inside = has_token[:, None]
        if END > 0:
            inside = inside & (first + tl.arange(0, COLUMNS) < H)[None, :]
        # Where a row has no token z may be anything, and an Inf of W2 would make NaN of dy's zeros; as would an Inf of
        # dy of the zeros beyond H. With both zero act(z), dz, wa and act(z) u are zero.
        z = load_tile(z_ptr, row, first, ROWS, C, False, END, ROWS, COLUMNS, False).to(tl.float32)
        z, u = tl.where(inside, z, 0.0), tl.where(inside, u, 0.0)
        a, slope = activate_both(z, "silu" if GLU else ACTIVATION)
        # Products from left to right: on sm_80 the gate's first needs registers that spill.
        if GLU:
            value = load_tile(z_ptr, row, H + first, ROWS, C, False, VALUE_END, ROWS, COLUMNS, False).to(tl.float32)
            value = tl.where(inside, value, 0.0)
            store_tile(dz, row, H + first, u * a * gate[:, None], C, VALUE_END, ROWS, COLUMNS)
            slope *= value
            a *= value
        if wa is not None:
            store_tile(wa, row, first, gate[:, None] * a, H, END, ROWS, COLUMNS)
        store_tile(dz, row, first, u * slope * gate[:, None], C, END, ROWS, COLUMNS)
        return a * u


@triton.jit(do_not_specialize=["num_tiles"])
def _expert_dact_kernel(
    dy,  # [rows, D]
    w2,  # [R, D, H]
    z_ptr,  # [rows, C]
    gates_ptr,  # [rows]
    dz,  # [rows, C]
    wa,  # [rows, H] or None
    gate_parts_ptr,  # [ceil(H / BLOCK_N), rows]
    starts_ptr,
    tile_starts_ptr,
    tiles_ptr,
    num_tiles,
    tokens,
    D: tl.constexpr,
    H: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PART: tl.constexpr,
):
    """u = dy W2_e; dz = gate u act'(z), wa = gate act(z), gate_parts = row sums of act(z) u.

    With "swiglu" dz = gate u [v silu'(g), silu(g)].

    Grid (T ceil(H / BLOCK_N),), T = num_tiles (`tile_in_group` for the order); a program owns the rows of one tile and
    BLOCK_N columns of dz and wa, and its column tile's row of gate_parts at these rows. A tile without expert writes
    nothing.

    Bytes, with s of dy's element, U experts that have rows, L rows of tiles that one has: s (L D + U D H + L (2 C +
    wa H)) + 4 L (1 + ceil(H / BLOCK_N)), and of the plan (`Plan.live`). FLOPs: 2 S N D H. Everything is accumulated in
    float32.

    z is read by pointers always: a part's descriptor would be waited for, where its loads run beside the arithmetic.
    """
    tile, column = tile_in_group(num_tiles, H, BLOCK_N)
    expert = tl.load(tiles_ptr + tile)
    if expert < 0:
        return
    row = tile * BLOCK_M

    u = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    # Where tiles do not fit: the matrices' columns, else 0 (`load_tile`).
    END: tl.constexpr = H if H % BLOCK_N != 0 else 0
    K_END: tl.constexpr = D if D % BLOCK_K != 0 else 0
    for first in range(0, D, BLOCK_K):
        left = load_tile(dy, row, first, BLOCK_M, D, False, K_END, BLOCK_M, BLOCK_K, False)
        right = load_tile(w2, expert * D + first, column, D - first, H, K_END > 0, END, BLOCK_K, BLOCK_N, False)
        u = dot(left, right, u, PRECISION)

    has_token = rows_with_tokens(tile, expert, starts_ptr, tile_starts_ptr, tokens, BLOCK_M)
    gate = tl.load(gates_ptr + row + tl.arange(0, BLOCK_M))
    sums = _epilogue(u, column, row, has_token, gate, z_ptr, dz, wa, H, END, ACTIVATION, BLOCK_M, BLOCK_N, PART)
    part = gate_parts_ptr + (column // BLOCK_N).to(tl.int64) * (num_tiles * BLOCK_M) + row
    tl.store(part + tl.arange(0, BLOCK_M), tl.sum(sums, 1))
