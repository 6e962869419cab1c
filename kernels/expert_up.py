"""The experts' first layer: a grouped GEMM over the plan's tiles, with bias, activation and gate in its epilogue.

With "swiglu" z = [g, v] has 2 H columns, and so has W1 2 H rows: those of the gate, then those of the value. A program
computes both of the same hidden units, and act(z) = silu(g) v is at hand where z is. C is H, or 2 H then.

Axes: b images, n tokens, d width, h hidden, r experts, k chosen. S = B*k slots; "rows" are those of the plan, in expert
order. The director, where given, is one more expert that has every image's rows once, without gates.
"""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from dexcore.kernels.configs import EPILOGUE_PARTS, Gemm
from dexcore.kernels.expert_order import Input
from dexcore.kernels.launch import launch
from dexcore.kernels.numerics import activate, dot, halves
from dexcore.kernels.plan import Plan, rows_with_tokens, tile_in_group
from dexcore.kernels.tiles import load_tile, matrix, store_tile


def expert_up(
    x: Input,
    w1_rcd: Tensor,
    b1_rc: Tensor | None,
    plan: Plan,
    activation: str,
    precision: str,
    config: Gemm,
    *,
    keep_z: bool,
    keep_a: bool = True,
    director: tuple[Tensor, Tensor | None] | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """z = x W1_e^T + b1_e and gate * act(z) for every row.

    Args:
        x: the plan's rows (`input_rows`): float32, float16 or bfloat16, the compute dtype.
        w1_rcd: [R, C, D], compute dtype.
        b1_rc: [R, C], floating, or None.
        plan: of the same indices, with ``config.block_m``.
        activation: "gelu", "gelu_tanh", "quick_gelu", "relu", "silu" or "swiglu".
        precision: of float32 dot products: "ieee", "tf32" or "tf32x3".
        config: the tile.
        keep_z: return z.
        keep_a: return gate * act(z).
        director: (dw1 [C, D], db1 [C] or None); only with ``keep_a``, and an ``x`` that has ``images``.

    Returns:
        z [rows, C], gate * act(z) [rows, H] (either has no rows where it is not kept), and act(x dw1^T + db1), [whole
        tiles of B*N rows, H], or None. Compute dtype. Where a row has no token, gate * act(z) is zero, and z is that of
        x = 0; where a tile has no expert, both are zero.
    """
    plan.check_tile(config.block_m)
    columns, width = w1_rcd.shape[1:]
    glu = activation == "swiglu"
    hidden = columns // 2 if glu else columns
    z = x.rows.new_empty((plan.rows if keep_z else 0, columns))
    wa = x.rows.new_empty((plan.rows if keep_a else 0, hidden))
    dw1, db1 = director or (None, None)
    director_a = None if dw1 is None else x.images.new_empty((len(x.images), hidden))
    director_tiles = 0 if dw1 is None else len(x.images) // plan.block_m
    expert_tiles = plan.tiles.numel()
    m, n, k = config[:3]
    n = n // 2 if glu else n  # hidden units of a program, whose accumulators have as many elements
    # A tile of the gate's columns must not reach into the value's.
    described = config.described and not (glu and hidden % n)
    out = m, config.block_n // EPILOGUE_PARTS
    launch(
        _expert_up_kernel,
        ((expert_tiles + director_tiles) * triton.cdiv(hidden, n),),
        matrix(x.rows, (m, k), described),
        matrix(w1_rcd, (n, k), described),
        b1_rc,
        x.gates,
        matrix(x.images if dw1 is not None else None, (m, k), described),
        matrix(dw1, (n, k), described),
        db1,
        matrix(z if keep_z else None, out, described),
        matrix(wa if keep_a else None, out, described),
        matrix(director_a, out, described),
        plan.starts,
        plan.tile_starts,
        plan.tiles,
        expert_tiles,
        expert_tiles + director_tiles,
        plan.tokens,
        D=width,
        H=hidden,
        ACTIVATION=activation,
        PRECISION=precision,
        BLOCK_M=m,
        BLOCK_N=n,
        BLOCK_K=k,
        PART=config.block_n // EPILOGUE_PARTS,
        num_warps=config.warps,
        num_stages=config.stages,
    )
    return z, wa, director_a


def expert_up_flops(batch: int, tokens: int, width: int, columns: int, top_k: int, *, director: bool = False) -> int:
    """Of the dot products, ``columns`` C; those of rows without a token do not count."""
    return 2 * batch * (top_k + director) * tokens * width * columns


def expert_up_bytes(
    counts: Sequence[int],
    plan: Plan,
    width: int,
    hidden: int,
    itemsize: int,
    *,
    bias_itemsize: int = 0,
    keep_z: bool = False,
    keep_a: bool = True,
    director: bool = False,
    director_bias_itemsize: int = 0,
    glu: bool = False,
) -> int:
    """Unique bytes read and written; see the kernel.

    Without what a descriptor's last tile of an expert's weights reads of the next expert's.

    Args:
        counts: every expert's number of slots.
        plan: of the routing.
        width, hidden: D and H.
        itemsize: of the compute dtype.
        bias_itemsize, director_bias_itemsize: of b1 and db1; 0 where there is none.
        glu: whether z has 2 H columns.
    """
    if not plan.images:
        return 0
    columns = 2 * hidden if glu else hidden
    rows, used, tables = plan.live(counts)
    experts = used * columns * (width * itemsize + bias_itemsize)
    outputs = plan.rows * (keep_z * columns + keep_a * hidden) * itemsize
    total = rows * width * itemsize + outputs + experts + tables + (4 * rows if keep_a else 0)
    if director:
        total += plan.live([counts[0] or 1, *counts[1:]])[2] - tables  # its tiles look at expert 0's as well
        images = triton.cdiv(plan.images * plan.tokens, plan.block_m) * plan.block_m
        total += images * (width + hidden) * itemsize + columns * (width * itemsize + director_bias_itemsize)
    return total


@triton.jit(do_not_specialize=["expert_tiles", "row_tiles"])
def _expert_up_kernel(
    x,  # [rows, D]
    w1,  # [R, C, D]
    b1_ptr,  # [R, C] or None
    gates_ptr,  # [rows]
    director_x,  # [whole tiles of B*N, D] or None
    dw1,  # [C, D], None where director_x is
    db1_ptr,  # [C] or None
    z,  # [rows, C] or None
    wa,  # [rows, H] or None
    director_a,  # [whole tiles of B*N, H], None where director_x is
    starts_ptr,
    tile_starts_ptr,
    tiles_ptr,
    expert_tiles,
    row_tiles,
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
    """z = x W1_e^T + b1_e, wa = gate * act(z); with a director also director_a = act(x dw1^T + db1).

    Grid: (row tiles * cdiv(H, BLOCK_N),). The row tiles are the plan's T, then the director's, whose rows are those of
    director_x. A program owns BLOCK_M rows of one expert times BLOCK_N columns of wa (or of director_a) and those of z
    that they are made of, and is the only one that writes them; of a tile that nobody has it writes zeros
    (`tile_in_group` for the order).

    Accumulates in float32; bias, activation and gate in float32; activates z before z is rounded.

    FLOPs: 2 S N D C, with a director 2 (S + B) N D C.
    Bytes, for L rows of tiles that an expert has, U experts that have slots, and item sizes s of x, s_b of the biases:
    x L D s; W1 U C D s; b1 U C s_b; z rows C s, wa rows H s; gates 4 L, where wa is kept; of the plan `Plan.live`. A
    director adds C D s + C s_b and, for each of its rows, (D + H) s; of the plan it reads what expert 0 does.
    """
    GLU: tl.constexpr = ACTIVATION == "swiglu"
    C: tl.constexpr = 2 * H if GLU else H
    # Where tiles do not fit: the matrices' columns, else 0 (`load_tile`).
    END: tl.constexpr = H if H % BLOCK_N != 0 else 0
    VALUE_END: tl.constexpr = C if H % BLOCK_N != 0 else 0
    K_END: tl.constexpr = D if D % BLOCK_K != 0 else 0
    PARTS: tl.constexpr = BLOCK_N // PART
    tile, column = tile_in_group(row_tiles, H, BLOCK_N)
    expert = tl.load(tiles_ptr + tile, mask=tile < expert_tiles, other=0)
    if expert < 0:
        for i in tl.static_range(PARTS):
            nothing = tl.zeros((BLOCK_M, PART), tl.float32)
            first = column + i * PART
            if z is not None:
                store_tile(z, tile * BLOCK_M, first, nothing, C, END, BLOCK_M, PART)
                if GLU:
                    store_tile(z, tile * BLOCK_M, H + first, nothing, C, VALUE_END, BLOCK_M, PART)
            if wa is not None:
                store_tile(wa, tile * BLOCK_M, first, nothing, H, END, BLOCK_M, PART)
        return
    row, a = tile * BLOCK_M, wa
    has_token = rows_with_tokens(tile, expert, starts_ptr, tile_starts_ptr, tokens, BLOCK_M)
    if director_x is not None:
        if tile >= expert_tiles:
            row = (tile - expert_tiles) * BLOCK_M
            x, w1, a = director_x, dw1, director_a

    weight_row = expert * C + column
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    value = acc
    for first in range(0, D, BLOCK_K):
        left = load_tile(x, row, first, BLOCK_M, D, False, K_END, BLOCK_M, BLOCK_K, False)
        right = load_tile(w1, weight_row, first, H - column, D, END > 0, K_END, BLOCK_N, BLOCK_K, True)
        acc = dot(left, right, acc, PRECISION)
        if GLU:
            right = load_tile(w1, weight_row + H, first, H - column, D, END > 0, K_END, BLOCK_N, BLOCK_K, True)
            value = dot(left, right, value, PRECISION)

    gate = tl.full((BLOCK_M,), 1.0, tl.float32)
    if wa is not None:
        has_token = has_token | (tile >= expert_tiles)
        gate = tl.load(gates_ptr + row + tl.arange(0, BLOCK_M), mask=tile < expert_tiles, other=1.0)
    parts = _parts(acc, BLOCK_M, BLOCK_N, PART)
    values = parts
    if GLU:
        values = _parts(value, BLOCK_M, BLOCK_N, PART)
    for i in tl.static_range(PARTS):
        first = column + i * PART
        pre = _biased(parts[i], b1_ptr, db1_ptr, expert * C, first, tile < expert_tiles, END, PART)
        if GLU:
            pre_value = _biased(values[i], b1_ptr, db1_ptr, expert * C, H + first, tile < expert_tiles, VALUE_END, PART)
        if z is not None:
            if tile < expert_tiles:
                store_tile(z, row, first, pre, C, END, BLOCK_M, PART)
                if GLU:
                    store_tile(z, row, H + first, pre_value, C, VALUE_END, BLOCK_M, PART)
        if wa is not None:
            activated = activate(pre, "silu" if GLU else ACTIVATION) * gate[:, None]
            if GLU:
                activated *= pre_value
            # Not by the gate alone, which is 0 there: 0 * Inf would reach W2's gradient.
            activated = tl.where(has_token[:, None], activated, 0.0)
            store_tile(a, row, first, activated, H, END, BLOCK_M, PART)


@triton.jit
def _parts(acc, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PART: tl.constexpr):
    """The accumulator's columns, PART at a time: temporaries as wide as it would spill."""
    left, right = halves(acc, ROWS, COLUMNS)
    if COLUMNS == 2 * PART:
        return left, right
    else:
        return halves(left, ROWS, COLUMNS // 2) + halves(right, ROWS, COLUMNS // 2)


@triton.jit
def _biased(pre, b1_ptr, db1_ptr, expert_row, first, of_experts, END: tl.constexpr, PART: tl.constexpr):
    """Plus b1 or, for a director's tile, db1, from column ``first`` on."""
    columns = first + tl.arange(0, PART)
    inside = columns >= 0
    if END > 0:
        inside = columns < END
    if b1_ptr is not None:
        bias = tl.load(b1_ptr + expert_row + columns, mask=inside & of_experts, other=0.0)
        pre += bias.to(tl.float32)[None, :]
    if db1_ptr is not None:
        bias = tl.load(db1_ptr + columns, mask=inside & (of_experts == 0), other=0.0)
        pre += bias.to(tl.float32)[None, :]
    return pre
