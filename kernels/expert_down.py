"""The grouped GEMM over rows in expert order: the experts' down-projection, and the gradient of their input.

    expert_down   o[row]  = wa[row] W2_e^T + gate[row] b2_e      wa [rows, H], W2 [R, D, H] -> o [rows, D]
    expert_dx     dx[row] = dz[row] W1_e                         dz [rows, H], W1 [R, H, D] -> dx [rows, D]

e is the row's expert. wa carries the gate already (gate * act(z)), so that the main loop is a GEMM and nothing else.
Both write a result a slot, rounded to the compute dtype; whoever reads an image's k results sums them, in float32
(`mix_align`, `sum_slots`).

Why not mix the k experts in the accumulator? It takes images ordered by their set of experts, so that a tile's rows
share all k, and k loops along K into one accumulator. It saves (2k - 1) B N D elements of traffic in the forward
(k - 1 results less written by the GEMM, k - 1 less read and y not written by `mix_align`) and 2k B N D for dx (no
`sum_slots`), and loses the rows of a partial tile a set in place of one an expert, k times. In us, for D 768, H 3072,
N 65 in bf16, at 3.0 TB/s and 800 TFLOP/s; the rows wasted in % of all, by experts -> by sets; means of 20 drawn
batches (`mixing_inside`; predicted, not measured):

    routing    B    R  k | saved: o   dx | 64-row tiles: waste   lost | 128-row tiles: waste   lost
    uniform   224    8  2 |       22   30 |           0.5 -> 10.8     18 |            1.4 -> 16.7     26
    Zipf      224    8  2 |       22   30 |           0.9 ->  9.9     15 |            1.9 -> 15.2     23
    collapsed 224    8  2 |       22   30 |           0.2 ->  0.2      0 |            0.2 ->  0.2      0
    uniform   224   64  2 |       22   30 |          12.5 -> 92.2    137 |           19.5 -> 96.6    132
    Zipf      224   64  2 |       22   30 |          11.9 -> 64.8     91 |           17.8 -> 75.6     99
    uniform   224    8  4 |       52   60 |           0.2 -> 27.8     95 |            0.7 -> 41.6    141
    uniform    64    8  2 |        6    9 |           4.6 -> 37.2     16 |            7.6 -> 55.7     24

A set of the first line has eight images, 520 rows: just over four tiles of 128. There the two come out even. With 64
rows mixing would win 4 to 12 us of a GEMM of 172 us, were such tiles as fast; but they read half as many operands
again for a product (64 x 128 against 128 x 128). Under collapsed routing it wins all of the traffic. With more
experts, more choices or a smaller batch it loses, up to most of the GEMM's time. And part of what it saves costs
little, as the GEMM's writes hide behind its products. Hence a result a slot, at the price of one rounding more in y
and dx.

Axes: b images, n tokens, d width, h hidden, r experts; s slots, S = B*k; rows = S*N.
"""

from collections import Counter
from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from dexcore.kernels.configs import Gemm
from dexcore.kernels.launch import launch
from dexcore.kernels.numerics import dot, halves, rounded
from dexcore.kernels.plan import Plan, tile_rows

_GROUP = 8  # row tiles that walk a weight's columns together, so that L2 serves the weight's re-reads


def expert_down(
    wa: Tensor,
    w2: Tensor,
    b2: Tensor | None,
    gates: Tensor,
    plan: Plan,
    precision: str,
    config: Gemm,
    *,
    director: tuple[Tensor, Tensor, Tensor | None] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The experts' second layer, and the director's in the same launch.

    Args:
        wa: [rows, H], gate * act(z) in expert order.
        w2, b2: [R, D, H] and [R, D] or None.
        gates: [B, k], float32.
        plan: made with ``config.block_m``.
        precision: of float32 dot products: "ieee", "tf32" or "tf32x3".
        director: its act(z) [B*N, H], its weight [D, H], its bias [D] or None.

    Returns:
        o [rows, D] in expert order, and the director's [B*N, D] or None; of wa's dtype.
    """
    out = wa.new_empty((wa.shape[0], w2.shape[1]))
    teacher = None if director is None else wa.new_empty((director[0].shape[0], w2.shape[1]))
    _launch(wa, w2, (w2.shape[2], 1), b2, gates, out, plan, precision, config, director, teacher)
    return out, teacher


def expert_dx(dz: Tensor, w1: Tensor, plan: Plan, precision: str, config: Gemm) -> Tensor:
    """The gradient of every slot's input, dz W1.

    Args:
        dz: [rows, H], in expert order.
        w1: [R, H, D].
        plan: made with ``config.block_m``.
        precision: of float32 dot products: "ieee", "tf32" or "tf32x3".

    Returns:
        [rows, D] in expert order, of dz's dtype.
    """
    out = dz.new_empty((dz.shape[0], w1.shape[2]))
    _launch(dz, w1, (1, w1.shape[2]), None, None, out, plan, precision, config)
    return out


def expert_down_bytes(
    counts: Sequence[int],
    batch: int,
    tokens: int,
    width: int,
    hidden: int,
    block_m: int,
    itemsize: int,
    *,
    bias_itemsize: int = 0,
    director: bool = False,
    director_bias_itemsize: int = 0,
) -> int:
    """Unique bytes read and written; see the kernel.

    Args:
        counts: every expert's number of slots.
        batch, tokens, width, hidden, block_m: B, N, D, H and the tile's rows.
        itemsize: of the compute dtype.
        bias_itemsize, director_bias_itemsize: of b2 and of the director's; 0 where there is none.
    """
    slots, active = sum(counts), [e for e, count in enumerate(counts) if count]
    if slots == 0:
        return 0
    tiles = slots * tokens // block_m + min(len(counts), slots)
    plan = 4 * (tiles + len({*active, *(e + 1 for e in active)}) + len(active))
    gates = 8 * slots if bias_itemsize else 0
    rows = (slots + batch * director) * tokens * (hidden + width) * itemsize
    experts = len(active) * width * (hidden * itemsize + bias_itemsize)
    return plan + gates + rows + experts + director * width * (hidden * itemsize + director_bias_itemsize)


def expert_down_flops(batch: int, tokens: int, width: int, hidden: int, top_k: int, *, director: bool = False) -> int:
    """2 B N (k + director) D H; those of partial tiles do not count."""
    return 2 * batch * tokens * (top_k + director) * width * hidden


def expert_dx_bytes(counts: Sequence[int], tokens: int, width: int, hidden: int, block_m: int, itemsize: int) -> int:
    """Unique bytes read and written: those of `expert_down` without biases and director."""
    return expert_down_bytes(counts, 0, tokens, width, hidden, block_m, itemsize)


def expert_dx_flops(batch: int, tokens: int, width: int, hidden: int, top_k: int) -> int:
    """2 B N k D H; those of partial tiles do not count."""
    return expert_down_flops(batch, tokens, width, hidden, top_k)


def mixing_inside(
    choices: Sequence[Sequence[int]], tokens: int, width: int, block_m: int, itemsize: int
) -> tuple[int, int, int]:
    """What the variant with the mix in the accumulator would save and lose; see the module.

    Args:
        choices: every image's k experts.

    Returns:
        Bytes that `expert_down` with `mix_align` moves more, those that `expert_dx` with `sum_slots` moves more, and
        the rows of GEMM that tiles by sets waste more than tiles by experts.
    """
    top_k = len(choices[0])
    by_expert = Counter(expert for chosen in choices for expert in chosen)
    by_set = Counter(frozenset(chosen) for chosen in choices)
    output = len(choices) * tokens * width * itemsize
    wasted = top_k * sum(-count * tokens % block_m for count in by_set.values())
    wasted -= sum(-count * tokens % block_m for count in by_expert.values())
    return (2 * top_k - 1) * output, 2 * top_k * output, wasted


def _launch(
    left: Tensor,
    weight: Tensor,
    weight_strides: tuple[int, int],
    bias: Tensor | None,
    gates: Tensor | None,
    out: Tensor,
    plan: Plan,
    precision: str,
    config: Gemm,
    director: tuple[Tensor, Tensor, Tensor | None] | None = None,
    teacher: Tensor | None = None,
) -> None:
    width, reduced = out.shape[1], left.shape[1]
    expert_tiles = plan.tiles.numel()
    director_left, director_weight, director_bias = director or (None, None, None)
    director_rows = 0 if director_left is None else director_left.shape[0]
    row_tiles = expert_tiles + triton.cdiv(director_rows, config.block_m)
    launch(
        _grouped_rows_kernel,
        (row_tiles * triton.cdiv(width, config.block_n),),
        left,
        weight,
        bias,
        out,
        director_left,
        director_weight,
        director_bias,
        teacher,
        gates,
        plan.slots,
        plan.starts,
        plan.tile_starts,
        plan.tiles,
        plan.tokens,
        expert_tiles,
        row_tiles,
        director_rows,
        width,
        reduced,
        *weight_strides,
        PRECISION=precision,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        GROUP=_GROUP,
        num_warps=config.warps,
        num_stages=config.stages,
    )


@triton.jit(do_not_specialize=["expert_tiles", "row_tiles", "director_rows"])
def _grouped_rows_kernel(
    left_ptr,  # [rows, K], expert order
    weight_ptr,  # [R, N, K] or [R, K, N], by its strides
    bias_ptr,  # [R, N] or None
    out_ptr,  # [rows, N]
    director_left_ptr,  # [director_rows, K] or None, and so the next three
    director_weight_ptr,  # as one expert's weight
    director_bias_ptr,  # [N] or None
    director_out_ptr,  # [director_rows, N]
    gates_ptr,  # [S] by flat slot, float32
    slots_ptr,  # the plan
    starts_ptr,
    tile_starts_ptr,
    tiles_ptr,
    tokens,
    expert_tiles,
    row_tiles,
    director_rows,
    N,
    K,
    stride_wn,
    stride_wk,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """out[row, n] = sum_k left[row, k] weight[e, n, k] + gate[row] bias[e, n], e the row's expert.

    Here N and K are the columns of the result and of ``left``; a director's gate is 1.

    Grid (row_tiles * cdiv(N, BLOCK_N),): a program owns one row tile of the plan, or one of the director's that
    follow them, times BLOCK_N columns, and writes them; the plan's surplus tiles (expert -1) write nothing. GROUP row
    tiles take the column tiles together: with 3 row tiles, 2 column tiles and GROUP 2 the programs 0 .. 5 own the
    (row tile, column tile) (0, 0), (1, 0), (0, 1), (1, 1), (2, 0), (2, 1).

    FLOPs: 2 (rows + director_rows) N K. Unique bytes, E experts with slots, T tiles in the plan: (rows +
    director_rows) (K + N) + (E + 1) N K elements, of the compute dtype; (E + 1) N of the biases; 4 (T + E + starts and
    ends of the E experts, each once); with a bias of the experts 8 S (slots, gates). Without a director neither
    director_rows nor + 1.

    Accumulates in float32, adds gate * bias there, and rounds once.
    """
    column_tiles = tl.cdiv(N, BLOCK_N)
    program = tl.program_id(0)
    first_tile = program // (GROUP * column_tiles) * GROUP
    group = tl.minimum(row_tiles - first_tile, GROUP)
    inner = program % (GROUP * column_tiles)
    tile = first_tile + inner % group
    first_column = inner // group * BLOCK_N

    expert = tl.load(tiles_ptr + tile, mask=tile < expert_tiles, other=0)
    if expert < 0:
        return
    of_experts = tile < expert_tiles
    weight_ptr += expert.to(tl.int64) * N * K  # not in the branch, in which Triton 3.6 cannot compile it for AMD
    if of_experts:
        rows, inside = tile_rows(tile, expert, starts_ptr, tile_starts_ptr, tokens, BLOCK_M)
    else:
        rows = (tile - expert_tiles) * BLOCK_M + tl.arange(0, BLOCK_M)
        inside = rows < director_rows
        if director_left_ptr is not None:
            left_ptr = director_left_ptr
            weight_ptr = director_weight_ptr
            out_ptr = director_out_ptr

    columns = first_column + tl.arange(0, BLOCK_N)
    in_width = columns < N
    k = tl.arange(0, BLOCK_K)
    left_ptrs = left_ptr + rows.to(tl.int64)[:, None] * K + k[None, :]
    weight_ptrs = weight_ptr + (columns[None, :] * stride_wn + k[:, None] * stride_wk)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in range(0, K, BLOCK_K):
        left = tl.load(left_ptrs, mask=inside[:, None] & (k < K - first)[None, :], other=0.0)
        weight = tl.load(weight_ptrs, mask=in_width[None, :] & (k < K - first)[:, None], other=0.0)
        acc = dot(left, weight, acc, PRECISION)
        left_ptrs += BLOCK_K
        weight_ptrs += BLOCK_K * stride_wk

    # On halves: the bias of a whole tile costs a second program's registers on the SM, and spills on sm_80.
    gate = tl.full((BLOCK_M,), 1.0, tl.float32)
    if bias_ptr is not None:
        slot = tl.load(slots_ptr + rows // tokens, mask=inside & of_experts, other=0)
        gate = tl.load(gates_ptr + slot, mask=inside & of_experts, other=1.0)
    parts = halves(acc, BLOCK_M, BLOCK_N)
    for half in tl.static_range(2):
        columns = first_column + half * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
        in_width = columns < N
        bias = tl.zeros((BLOCK_N // 2,), tl.float32)
        if bias_ptr is not None:
            bias += tl.load(bias_ptr + expert * N + columns, mask=in_width & of_experts, other=0.0).to(tl.float32)
        if director_bias_ptr is not None:
            of_director = in_width & (tile >= expert_tiles)
            bias += tl.load(director_bias_ptr + columns, mask=of_director, other=0.0).to(tl.float32)
        out_ptrs = out_ptr + rows.to(tl.int64)[:, None] * N + columns[None, :]
        out = rounded(parts[half] + gate[:, None] * bias[None, :], out_ptr.dtype.element_ty)
        tl.store(out_ptrs, out, mask=inside[:, None] & in_width[None, :])
