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

And the loss counts one GEMM alone. All kernels share one order of rows with dense tiles: there the rows of a set would
begin at a tile in each of its experts, so that all GEMMs and all that is kept for the backward would waste as many.

Axes: b images, n tokens, d width, h hidden, r experts; rows: those of the plan, in expert order.
"""

from collections import Counter
from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from dexcore.kernels.configs import Gemm
from dexcore.kernels.launch import launch
from dexcore.kernels.numerics import dot, halves
from dexcore.kernels.plan import Plan, tile_in_group
from dexcore.kernels.tiles import load_tile, matrix, store_tile


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
        gates: [rows], float32 (`dexcore.kernels.expert_order.Input`).
        plan: made with ``config.block_m``.
        precision: of float32 dot products: "ieee", "tf32" or "tf32x3".
        director: its act(z) [whole tiles of B*N rows, H], its weight [D, H], its bias [D] or None.

    Returns:
        o [rows, D] in expert order, and the director's [whole tiles of B*N rows, D] or None; of wa's dtype. Where a row
        has no token nobody reads them: they are zero, but where the weights are not finite.
    """
    out = wa.new_empty((len(wa), w2.shape[1]))
    teacher = None if director is None else wa.new_empty((len(director[0]), w2.shape[1]))
    _launch(wa, w2, b2, gates, out, plan, precision, config, False, director, teacher)
    return out, teacher


def expert_dx(dz: Tensor, w1: Tensor, plan: Plan, precision: str, config: Gemm) -> Tensor:
    """The gradient of every slot's input, dz W1.

    Args:
        dz: [rows, H], in expert order.
        w1: [R, H, D].
        plan: made with ``config.block_m``.
        precision: of float32 dot products: "ieee", "tf32" or "tf32x3".

    Returns:
        [rows, D] in expert order, of dz's dtype; where a row has no token as of `expert_down`.
    """
    out = dz.new_empty((len(dz), w1.shape[2]))
    _launch(dz, w1, None, None, out, plan, precision, config, True)
    return out


def expert_down_bytes(
    counts: Sequence[int],
    plan: Plan,
    width: int,
    hidden: int,
    itemsize: int,
    *,
    bias_itemsize: int = 0,
    director: bool = False,
    director_bias_itemsize: int = 0,
) -> int:
    """Unique bytes read and written; see the kernel.

    Without what a descriptor's last tile of an expert's weights reads of the next expert's.

    Args:
        counts: every expert's number of slots.
        plan: of the routing.
        width, hidden: D and H.
        itemsize: of the compute dtype.
        bias_itemsize, director_bias_itemsize: of b2 and of the director's; 0 where there is none.
    """
    if not plan.images:
        return 0
    rows, used, _ = plan.live(counts)
    gates = 4 * rows if bias_itemsize else 0
    experts = used * width * (hidden * itemsize + bias_itemsize)
    total = rows * (hidden + width) * itemsize + gates + experts + plan.tiles.nbytes
    if director:
        images = triton.cdiv(plan.images * plan.tokens, plan.block_m) * plan.block_m
        total += images * (hidden + width) * itemsize + width * (hidden * itemsize + director_bias_itemsize)
    return total


def expert_down_flops(batch: int, tokens: int, width: int, hidden: int, top_k: int, *, director: bool = False) -> int:
    """2 B N (k + director) D H; those of rows without a token do not count."""
    return 2 * batch * tokens * (top_k + director) * width * hidden


def expert_dx_bytes(counts: Sequence[int], plan: Plan, width: int, hidden: int, itemsize: int) -> int:
    """Unique bytes read and written: those of `expert_down` without biases and director."""
    return expert_down_bytes(counts, plan, width, hidden, itemsize)


def expert_dx_flops(batch: int, tokens: int, width: int, hidden: int, top_k: int) -> int:
    """2 B N k D H; those of rows without a token do not count."""
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
    bias: Tensor | None,
    gates: Tensor | None,
    out: Tensor,
    plan: Plan,
    precision: str,
    config: Gemm,
    weight_by_k: bool,
    director: tuple[Tensor, Tensor, Tensor | None] | None = None,
    teacher: Tensor | None = None,
) -> None:
    plan.check_tile(config.block_m)
    m, n, k = config[:3]
    columns, reduced = out.shape[1], left.shape[1]
    director_left, director_weight, director_bias = director or (None, None, None)
    expert_tiles = plan.tiles.numel()
    row_tiles = expert_tiles + (0 if director_left is None else len(director_left) // m)
    weight_block = (k, n) if weight_by_k else (n, k)
    launch(
        _grouped_rows_kernel,
        (row_tiles * triton.cdiv(columns, n),),
        matrix(left, (m, k), config.described),
        matrix(weight, weight_block, config.described),
        bias,
        matrix(out, (m, n // 2), config.described),
        matrix(director_left, (m, k), config.described),
        matrix(director_weight, weight_block, config.described),
        director_bias,
        matrix(teacher, (m, n // 2), config.described),
        gates,
        plan.tiles,
        expert_tiles,
        row_tiles,
        N=columns,
        K=reduced,
        WEIGHT_BY_K=weight_by_k,
        PRECISION=precision,
        BLOCK_M=m,
        BLOCK_N=n,
        BLOCK_K=k,
        num_warps=config.warps,
        num_stages=config.stages,
    )


@triton.jit(do_not_specialize=["expert_tiles", "row_tiles"])
def _grouped_rows_kernel(
    left,  # [rows, K], expert order
    weight,  # [R, N, K], or [R, K, N] where WEIGHT_BY_K
    bias_ptr,  # [R, N] or None
    out,  # [rows, N]
    director_left,  # [whole tiles of rows, K] or None, and so the next three
    director_weight,  # as one expert's weight
    director_bias_ptr,  # [N] or None
    director_out,  # [whole tiles of rows, N]
    gates_ptr,  # [rows], float32
    tiles_ptr,  # the plan's
    expert_tiles,
    row_tiles,
    N: tl.constexpr,
    K: tl.constexpr,
    WEIGHT_BY_K: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """out[row, n] = sum_k left[row, k] weight[e, n, k] + gate[row] bias[e, n], e the row's expert.

    Here N and K are the columns of the result and of ``left``; a director's gate is 1.

    Grid (row_tiles * cdiv(N, BLOCK_N),): a program owns one row tile of the plan, or one of the director's that
    follow them, times BLOCK_N columns, and writes them; the plan's surplus tiles (expert -1) write nothing
    (`tile_in_group` for the order).

    FLOPs: 2 (rows + director's) N K. Unique bytes, U experts with slots, L rows of tiles that one has, T tiles in the
    plan: (L + director's) (K + N) + (U + 1) N K elements, of the compute dtype; (U + 1) N of the biases; 4 T; with a
    bias of the experts 4 L (gates). Without a director neither its rows nor + 1.

    Accumulates in float32, adds gate * bias there, and rounds once.
    """
    tile, column = tile_in_group(row_tiles, N, BLOCK_N)
    expert = tl.load(tiles_ptr + tile, mask=tile < expert_tiles, other=0)
    if expert < 0:
        return
    row = tile * BLOCK_M
    weight_row = expert * (K if WEIGHT_BY_K else N)
    if director_left is not None:
        if tile >= expert_tiles:
            row = (tile - expert_tiles) * BLOCK_M  # its expert number is 0, its weight's first row too
            left, weight, out = director_left, director_weight, director_out

    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    # Where tiles do not fit: the matrices' columns, else 0 (`load_tile`).
    N_END: tl.constexpr = N if N % BLOCK_N != 0 else 0
    K_END: tl.constexpr = K if K % BLOCK_K != 0 else 0
    for first in range(0, K, BLOCK_K):
        a = load_tile(left, row, first, BLOCK_M, K, False, K_END, BLOCK_M, BLOCK_K, False)
        if WEIGHT_BY_K:
            b = load_tile(weight, weight_row + first, column, K - first, N, K_END > 0, N_END, BLOCK_K, BLOCK_N, False)
        else:
            b = load_tile(weight, weight_row + column, first, N - column, K, N_END > 0, K_END, BLOCK_N, BLOCK_K, True)
        acc = dot(a, b, acc, PRECISION)

    # On halves: the bias of a whole tile costs a second program's registers on the SM, and spills on sm_80.
    gate = tl.full((BLOCK_M,), 1.0, tl.float32)
    if bias_ptr is not None:
        gate = tl.load(gates_ptr + row + tl.arange(0, BLOCK_M), mask=tile < expert_tiles, other=1.0)
    parts = halves(acc, BLOCK_M, BLOCK_N)
    HALF: tl.constexpr = BLOCK_N // 2
    for half in tl.static_range(2):
        first_column = column + half * HALF
        n = first_column + tl.arange(0, HALF)
        bias = tl.zeros((HALF,), tl.float32)
        if bias_ptr is not None:
            bias += tl.load(bias_ptr + expert * N + n, mask=(n < N) & (tile < expert_tiles), other=0.0).to(tl.float32)
        if director_bias_ptr is not None:
            bias += tl.load(director_bias_ptr + n, mask=(n < N) & (tile >= expert_tiles), other=0.0).to(tl.float32)
        store_tile(out, row, first_column, parts[half] + gate[:, None] * bias[None, :], N, N_END, BLOCK_M, HALF)
