"""The experts' first layer: a grouped GEMM over the rows of the plan, with bias, activation and gate in its epilogue.

Axes: b images, n tokens, d width, h hidden, r experts, k chosen. S = B*k slots; a "row" is a slot's token, in the
plan's expert order. The director, where given, is one more expert that has every image's rows once, without gates.
"""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from dexcore.kernels.configs import Gemm
from dexcore.kernels.launch import launch
from dexcore.kernels.numerics import activate, dot, halves, rounded
from dexcore.kernels.plan import Plan, image_rows, tile_rows

# Row tiles whose column tiles run together, so that their x and W1 tiles meet in the L2 cache.
_GROUP = 8


def expert_up(
    x_bnd: Tensor,
    w1_rhd: Tensor,
    b1_rh: Tensor | None,
    gates_bk: Tensor,
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
        x_bnd: [B, N, D], float32, float16 or bfloat16: the compute dtype.
        w1_rhd: [R, H, D], compute dtype.
        b1_rh: [R, H], floating, or None.
        gates_bk: [B, k], float32.
        plan: of the same indices, with ``config.block_m``.
        activation: "gelu", "gelu_tanh", "relu" or "silu".
        precision: of float32 dot products: "ieee", "tf32" or "tf32x3".
        config: the tile.
        keep_z: return z.
        keep_a: return gate * act(z).
        director: (dw1 [H, D], db1 [H] or None); only with ``keep_a``.

    Returns:
        z [S*N, H], gate * act(z) [S*N, H] (either is [0, H] where it is not kept), and act(x dw1^T + db1) [B*N, H] or
        None; all in the compute dtype, each rounded once from float32.
    """
    batch, tokens, width = x_bnd.shape
    hidden = w1_rhd.shape[1]
    z = x_bnd.new_empty((plan.rows if keep_z else 0, hidden))
    wa = x_bnd.new_empty((plan.rows if keep_a else 0, hidden))
    dw1, db1 = director or (None, None)
    director_a = None if dw1 is None else x_bnd.new_empty((batch * tokens, hidden))
    expert_tiles = plan.tiles.numel()
    row_tiles = expert_tiles + (0 if dw1 is None else triton.cdiv(batch * tokens, config.block_m))
    launch(
        _expert_up_kernel,
        (row_tiles * triton.cdiv(hidden, config.block_n),),
        x_bnd,
        w1_rhd,
        b1_rh,
        gates_bk,
        dw1,
        db1,
        z if keep_z else None,
        wa if keep_a else None,
        director_a,
        plan.slots,
        plan.images,
        plan.starts,
        plan.tile_starts,
        plan.tiles,
        expert_tiles,
        row_tiles,
        batch,
        tokens,
        width,
        hidden,
        ACTIVATION=activation,
        PRECISION=precision,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        GROUP=_GROUP,
        num_warps=config.warps,
        num_stages=config.stages,
    )
    return z, wa, director_a


def expert_up_flops(batch: int, tokens: int, width: int, hidden: int, top_k: int, *, director: bool = False) -> int:
    """Of the dot products."""
    return 2 * batch * (top_k + director) * tokens * width * hidden


def expert_up_bytes(
    counts: Sequence[int],
    batch: int,
    tokens: int,
    width: int,
    hidden: int,
    block_m: int,
    itemsize: int,
    *,
    bias_itemsize: int = 0,
    keep_z: bool = False,
    keep_a: bool = True,
    director: bool = False,
    director_bias_itemsize: int = 0,
) -> int:
    """Unique bytes read and written; see the kernel.

    Args:
        counts: every expert's number of slots.
        batch, tokens, width, hidden, block_m: B, N, D, H and the tile's rows.
        itemsize: of the compute dtype.
        bias_itemsize, director_bias_itemsize: of b1 and db1; 0 where there is none.
    """
    slots = sum(counts)
    if slots == 0:
        return 0
    active = [e for e, count in enumerate(counts) if count]
    tiles = slots * tokens // block_m + min(len(counts), slots)
    starts = len({*active, *(e + 1 for e in active)})
    plan = 4 * (tiles + starts + len(active) + slots)
    gates = 8 * slots if keep_a else 0
    experts = len(active) * hidden * (width * itemsize + bias_itemsize)
    outputs = (keep_z + keep_a) * slots * tokens * hidden * itemsize
    extra = hidden * (width * itemsize + director_bias_itemsize) + batch * tokens * hidden * itemsize if director else 0
    return batch * tokens * width * itemsize + plan + gates + experts + outputs + extra


@triton.jit(do_not_specialize=["expert_tiles", "row_tiles", "batch"])
def _expert_up_kernel(
    x_ptr,  # [B*N, D]
    w1_ptr,  # [R, H, D]
    b1_ptr,  # [R, H] or None
    gates_ptr,  # [S]
    dw1_ptr,  # [H, D] or None
    db1_ptr,  # [H] or None
    z_ptr,  # [S*N, H] or None
    wa_ptr,  # [S*N, H] or None
    director_a_ptr,  # [B*N, H], None where dw1_ptr is
    slots_ptr,
    images_ptr,
    starts_ptr,
    tile_starts_ptr,
    tiles_ptr,
    expert_tiles,
    row_tiles,
    batch,
    tokens,
    width,
    hidden,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """z = x W1_e^T + b1_e, wa = gate * act(z); with a director also director_a = act(x dw1^T + db1).

    Grid: (row tiles * cdiv(H, BLOCK_N),). The row tiles are the plan's T, then cdiv(B N, BLOCK_M) of the director,
    whose rows are those of x. A program owns BLOCK_M rows of one expert times BLOCK_N columns of z and wa (or of
    director_a) and is the only one that writes them; a tile of no expert does nothing. GROUP row tiles go through
    their column tiles together.

    Accumulates in float32; bias, activation and gate in float32; activates z before z is rounded.

    FLOPs: 2 S N D H, with a director 2 (S + B) N D H.
    Bytes, for the set E of experts that have slots and item sizes s of x, s_b of the biases: x B N D s; W1 |E| H D s;
    b1 |E| H s_b; z and wa S N H s each; images 4 S; slots and gates 4 S each, where wa is kept; tiles 4 T; tile_starts
    4 |E|; starts 4 |E and E + 1|. A director adds H D s + H s_b + B N H s.
    Offsets inside an expert's weights are int32: H D < 2^31; so are rows, S N < 2^31.
    """
    columns = tl.cdiv(hidden, BLOCK_N)
    program = tl.program_id(0)
    first_tile = program // (GROUP * columns) * GROUP
    tiles_here = tl.minimum(row_tiles - first_tile, GROUP)
    program = program % (GROUP * columns)
    tile = first_tile + program % tiles_here
    column = program // tiles_here * BLOCK_N

    is_expert = tile < expert_tiles
    expert = tl.load(tiles_ptr + tile, mask=is_expert, other=0)
    if expert < 0:
        return
    w_ptr = w1_ptr + expert.to(tl.int64) * hidden * width
    a_ptr = wa_ptr
    if is_expert:
        rows, inside = tile_rows(tile, expert, starts_ptr, tile_starts_ptr, tokens, BLOCK_M)
        x_rows = image_rows(rows, inside, images_ptr, tokens)
    else:
        rows = (tile - expert_tiles) * BLOCK_M + tl.arange(0, BLOCK_M)
        inside = rows < batch * tokens
        x_rows = rows
        if dw1_ptr is not None:
            w_ptr = dw1_ptr
            a_ptr = director_a_ptr

    k = tl.arange(0, BLOCK_K)
    n = column + tl.arange(0, BLOCK_N)
    x_ptrs = x_ptr + (x_rows.to(tl.int64) * width)[:, None] + k[None, :]
    w_ptrs = w_ptr + (n * width)[None, :] + k[:, None]
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in range(0, width, BLOCK_K):
        in_width = first + k < width
        x = tl.load(x_ptrs + first, mask=inside[:, None] & in_width[None, :], other=0.0)
        w = tl.load(w_ptrs + first, mask=in_width[:, None] & (n < hidden)[None, :], other=0.0)
        acc = dot(x, w, acc, PRECISION)

    gate = tl.full((BLOCK_M,), 1.0, tl.float32)
    if wa_ptr is not None:
        slot = tl.load(slots_ptr + rows // tokens, mask=inside & is_expert, other=0)
        gate = tl.load(gates_ptr + slot, mask=inside & is_expert, other=1.0)
    # On quarters of the accumulator: 119 registers a thread on sm_90 for 128x128, 8 warps, so that two programs share
    # a multiprocessor and one's epilogue runs beside the other's dots; 133 on halves.
    left, right = halves(acc, BLOCK_M, BLOCK_N)
    quarters = halves(left, BLOCK_M, BLOCK_N // 2) + halves(right, BLOCK_M, BLOCK_N // 2)
    for quarter in tl.static_range(4):
        z = quarters[quarter]
        n = column + quarter * (BLOCK_N // 4) + tl.arange(0, BLOCK_N // 4)
        if b1_ptr is not None:
            bias = tl.load(b1_ptr + expert * hidden + n, mask=(n < hidden) & is_expert, other=0.0)
            z += bias.to(tl.float32)[None, :]
        if db1_ptr is not None:
            bias = tl.load(db1_ptr + n, mask=(n < hidden) & (tile >= expert_tiles), other=0.0)
            z += bias.to(tl.float32)[None, :]
        offsets = (rows.to(tl.int64) * hidden)[:, None] + n[None, :]
        mask = inside[:, None] & (n < hidden)[None, :]
        if z_ptr is not None:
            tl.store(z_ptr + offsets, rounded(z, z_ptr.dtype.element_ty), mask=mask & is_expert)
        if a_ptr is not None:
            a = activate(z, ACTIVATION) * gate[:, None]
            tl.store(a_ptr + offsets, rounded(a, a_ptr.dtype.element_ty), mask=mask)
