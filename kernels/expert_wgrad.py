"""Weight gradients: for every expert left^T right over its rows, a reduction of variable length.

    dW1 [R, H, D] = dz^T x,  db1 [R, H] = the sums of dz's columns;  dW2 [R, D, H] = dy^T (w a)

All operands are in expert order, and zero where a row has no token. P are left's columns and the gradient's rows, Q
right's columns and the gradient's. Where operands have descriptors, both gradients are one launch: one tail in place of
two. db1 is a dot with ones, of tiles that are in shared memory anyway.

An expert's tiles of rows are one unit of work, and every unit has the same number of output tiles, of both gradients;
units are started longest first. An expert that would hold a few multiprocessors long after the others are done is cut
into parts, a unit each: one that has ``part`` tiles of rows f times, into max(1, floor(f)) whose tiles differ by one at
most.

Example: R = 4, the experts' tiles of rows 2, 0, 9, 1; part = 3.

    expert     2    2    2    0    3    1    longest first
    its tiles  9              2    1    0
    parts      3              1    1    1    floor(9 / 3), and one each
    unit       0    1    2    3    4    5    at most R + T // part units, T the plan's tiles
    writes     workspace 0-2  the gradient

Cut experts come first, so a part's place in the workspace is its unit. There are at most T // part such units.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dexcore.kernels.configs import Gemm
from dexcore.kernels.launch import launch
from dexcore.kernels.numerics import dot, rounded
from dexcore.kernels.plan import Plan
from dexcore.kernels.tiles import load_tile, matrix

_LEAST_STEPS = 8
_MOST_PARTS = 4
_PART_STEPS = 6  # what writing a part and adding it up costs, in steps
_GROUP = 8
_SUM_BLOCK = 1024


class Product(NamedTuple):
    """What left^T right of one layer's weight reads."""

    left: Tensor  # [rows, P]
    right: Tensor  # [rows, Q], left's dtype

    @property
    def shape(self) -> tuple[int, int]:
        """P and Q."""
        return self.left.shape[1], self.right.shape[1]


class Split(NamedTuple):
    """How experts are cut; see the module."""

    part: int  # tiles of rows; 0: none is cut
    most: int  # units of cut experts at most

    @classmethod
    def into(cls, parts: int, plan: Plan, config: Gemm) -> "Split":
        """The rows of all experts into that many, or fewer that have `_LEAST_STEPS` steps."""
        full = plan.slots.numel() * plan.tokens // plan.block_m  # tiles, were none partly empty
        least = triton.cdiv(_LEAST_STEPS * config.block_k, plan.block_m)
        part = max(full // parts, least)
        return cls(part, plan.tiles.numel() // part) if parts > 1 and full // part > 1 else cls(0, 0)


def expert_wgrad(
    first: Product | None,
    second: Product | None,
    plan: Plan,
    dtype: torch.dtype,
    precision: str,
    config: Gemm,
    multiprocessors: int,
    *,
    bias: bool = False,
    split: Split | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """left^T right over the rows of every expert, of one product or of both.

    Args:
        first, second: the operands; None where the gradient is not asked for.
        plan: who owns which rows.
        dtype: the parameters'.
        precision: of float32 dot products.
        config: block_m of P, block_n of Q, block_k rows a step, which has to divide the plan's block_m.
        multiprocessors: of the device; chips that have as many sum in one order.
        bias: also the sums of first.left's columns.
        split: how experts are cut; by `split_of` if None.

    Returns:
        [R, P, Q] of ``dtype`` of each product, zeros for an expert without rows; [R, P of the first], the sums.
    """
    if plan.block_m % config.block_k:
        raise ValueError(f"block_k must divide the plan's block_m, {plan.block_m}, got {config}")
    products = [product for product in (first, second) if product is not None]
    if split is None:
        split = split_of(plan, [product.shape for product in products], config, multiprocessors)
    grads = [plan.slots.new_empty((plan.num_experts, *product.shape), dtype=dtype) for product in products]
    sums = None
    if bias and first is not None:
        sums = plan.slots.new_empty((plan.num_experts, first.shape[0]), dtype=dtype)
    if config.described:
        _launch(products, grads, sums, plan, precision, config, split)
    else:  # a matrix that is no descriptor has columns that are known when it is compiled
        for i, (product, grad) in enumerate(zip(products, grads, strict=True)):
            _launch([product], [grad], None if i else sums, plan, precision, config, split)
    return (None if first is None else grads[0]), (None if second is None else grads[-1]), sums


def split_of(plan: Plan, shapes: Sequence[tuple[int, int]], config: Gemm, multiprocessors: int) -> Split:
    """How experts are cut; from shapes alone.

    Even use of R experts is R * tiles programs of equally many steps. Cut in s, they are s times as many and s times
    shorter, and fill more of the last wave; each costs `_PART_STEPS` more. The s of the least waves * steps is taken,
    if it saves a tenth. Beside that, in whatever way experts are used, none holds a few multiprocessors alone: the rows
    of all are cut into multiprocessors // tiles at least. By the paper's batch (448 slots of 65 tokens, R = 8, k = 2),
    132 multiprocessors and both gradients together:

        ViT-T (192, 768)    24 tiles of 128 x 128. Even use: 192 programs of 57 steps, two waves; cut in two, 384 of 35
                            are three, no tenth less. Two experts that have all rows: two parts each, 96 programs of 114
                            steps in place of 48 of 228.
        ViT-S (384, 1536)   72 tiles. Even: 576 programs, 4.4 waves; cut in two they would be 8.7, no tenth less.
        ViT-B (768, 3072)   144 tiles of 128 x 256, never cut. Even: 1,152 programs, 8.7 waves. Two experts: 288.

    The workspace is at most T // part parts: of ViT-T 5 of 0.6 MB a gradient, which stay in the second-level cache.
    """
    tiles = sum(_tiles(*shape, config) for shape in shapes)
    steps = plan.slots.numel() * plan.tokens / max(plan.num_experts, 1) / config.block_k

    def waves_of_steps(parts: int) -> float:
        waves = triton.cdiv(plan.num_experts * parts * tiles, multiprocessors)
        return waves * (steps / parts + (_PART_STEPS if parts > 1 else 0))

    best = min(range(1, _MOST_PARTS + 1), key=waves_of_steps)
    parts = best * plan.num_experts if waves_of_steps(best) < 0.9 * waves_of_steps(1) else 1
    return Split.into(max(parts, multiprocessors // tiles), plan, config)


def _tiles(p: int, q: int, config: Gemm) -> int:
    return triton.cdiv(p, config.block_m) * triton.cdiv(q, config.block_n)


def expert_wgrad_flops(batch: int, tokens: int, top_k: int, p: int, q: int) -> int:
    """Of one product, 2 B N k P Q; those of rows without a token and of the ones do not count."""
    return 2 * batch * tokens * top_k * p * q


def expert_wgrad_bytes(
    counts: Sequence[int],
    plan: Plan,
    shapes: Sequence[tuple[int, int]],
    compute: torch.dtype,
    dtype: torch.dtype,
    config: Gemm,
    multiprocessors: int,
    *,
    bias: bool = False,
    split: Split | None = None,
) -> int:
    """Unique bytes read and written, all launches.

    Args:
        counts: slots of every expert.
        plan: of the routing.
        shapes: P and Q of the products; the first's has the bias.
        compute: left's and right's dtype.
        dtype: the gradient's.
    """
    if split is None:
        split = split_of(plan, shapes, config, multiprocessors)
    experts = len(counts)
    tables = 4 * (2 * experts + 1)  # tile_starts, longest
    rows, _, _ = plan.live(counts)
    elements = sum(p * q for p, q in shapes) + (shapes[0][0] if bias else 0)
    launches = 1 if config.described else len(shapes)
    total = rows * sum(p + q for p, q in shapes) * compute.itemsize + experts * elements * dtype.itemsize
    total += launches * tables
    if split.part:
        tiles = [triton.cdiv(count * plan.tokens, plan.block_m) for count in counts]
        cut = sum(n // split.part for n in tiles if n // split.part > 1)
        total += launches * tables + 2 * 4 * cut * elements
    return total


def _launch(
    products: list[Product],
    grads: list[Tensor],
    sums: Tensor | None,
    plan: Plan,
    precision: str,
    config: Gemm,
    split: Split,
) -> None:
    (p, q), *rest = (product.shape for product in products)
    p2, q2 = rest[0] if rest else (0, 0)
    second, grad2 = (products[1], grads[1]) if rest else (None, None)
    elements = p * q + p2 * q2 + (0 if sums is None else p)
    workspace = plan.slots.new_empty((split.most, elements), dtype=torch.float32)
    tiles = _tiles(p, q, config) + (_tiles(p2, q2, config) if rest else 0)
    units = plan.num_experts + split.most
    described = config.described
    left_block, right_block = (config.block_k, config.block_m), (config.block_k, config.block_n)
    tables = {"R": plan.num_experts, "R_BLOCK": triton.next_power_of_2(plan.num_experts)}
    tables |= {"P": p, "Q": q, "P2": p2, "Q2": q2}
    launch(
        _expert_wgrad_kernel,
        (units * tiles,),
        matrix(products[0].left, left_block, described),
        matrix(products[0].right, right_block, described),
        grads[0],
        sums,
        matrix(None if second is None else second.left, left_block, described),
        matrix(None if second is None else second.right, right_block, described),
        grad2,
        workspace,
        plan.tile_starts,
        plan.longest,
        split.part,
        SPLIT=split.part > 0,
        PRECISION=precision,
        PLAN_M=plan.block_m,
        BLOCK_P=config.block_m,
        BLOCK_Q=config.block_n,
        BLOCK_K=config.block_k,
        GROUP=_GROUP,
        num_warps=config.warps,
        num_stages=config.stages,
        **tables,
    )
    if split.part:
        blocks = sum(triton.cdiv(size, _SUM_BLOCK) for size in (p * q, p2 * q2, 0 if sums is None else p))
        launch(
            _sum_parts_kernel,
            (min(split.most // 2, plan.num_experts) * blocks,),
            workspace,
            grads[0],
            grad2,
            sums,
            plan.tile_starts,
            plan.longest,
            split.part,
            BLOCK=_SUM_BLOCK,
            num_warps=4,
            **tables,
        )


@triton.jit
def _unit_table(tile_starts_ptr, longest_ptr, part, R: tl.constexpr, R_BLOCK: tl.constexpr):
    """By rank, longest first: parts of the rank's expert, and the unit after its last."""
    ranks = tl.arange(0, R_BLOCK)
    expert = tl.load(longest_ptr + ranks, mask=ranks < R, other=0)
    tiles = tl.load(tile_starts_ptr + expert + 1) - tl.load(tile_starts_ptr + expert)
    parts = tl.where(ranks < R, tl.maximum(tiles // part, 1), 0)
    return ranks, parts, tl.cumsum(parts, 0)


@triton.jit
def _tile_place(
    tile, P: tl.constexpr, Q: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_Q: tl.constexpr, GROUP: tl.constexpr
):
    """First row and column of an output tile. Groups of P tiles, down before across: programs that run together share
    columns in the second-level cache.
    """
    tiles_p: tl.constexpr = (P + BLOCK_P - 1) // BLOCK_P
    tiles_q: tl.constexpr = (Q + BLOCK_Q - 1) // BLOCK_Q
    group = tile // (GROUP * tiles_q) * GROUP
    height = tl.minimum(tiles_p - group, GROUP)
    return (group + tile % (GROUP * tiles_q) % height) * BLOCK_P, tile % (GROUP * tiles_q) // height * BLOCK_Q


@triton.jit(do_not_specialize=["part"])
def _expert_wgrad_kernel(
    left,  # [rows, P]
    right,  # [rows, Q]
    grad_ptr,  # [R, P, Q]
    sums_ptr,  # [R, P] or None
    left2,  # [rows, P2] or None, and so the next two
    right2,  # [rows, Q2]
    grad2_ptr,  # [R, P2, Q2]
    workspace_ptr,  # [parts, P Q + P2 Q2 + P], float32
    tile_starts_ptr,
    longest_ptr,
    part,
    P: tl.constexpr,
    Q: tl.constexpr,
    P2: tl.constexpr,
    Q2: tl.constexpr,
    R: tl.constexpr,
    R_BLOCK: tl.constexpr,
    SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
    PLAN_M: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """grad[e] = left^T right, sums[e] = the sums of left's columns, grad2[e] = left2^T right2, over the rows of e.

    Grid: units times output tiles, of both gradients; a program owns a tile of one unit: of the gradient, or where its
    expert is cut, of a part of the workspace. The programs of the first column of tiles own sums too. Experts without
    rows are written as well, with zeros.

    Bytes, L rows of tiles that an expert has: L (P + Q + P2 + Q2) of the operands' elements, R (P Q + P2 Q2 + P) of the
    gradients', tile_starts and longest 4 (2 R + 1); a cut expert's part 4 (P Q + P2 Q2 + P) in place of the gradient.
    FLOPs: 2 S N (P Q + P2 Q2). Accumulates in float32, and rounds once.
    """
    first_tiles: tl.constexpr = tl.cdiv(P, BLOCK_P) * tl.cdiv(Q, BLOCK_Q)
    tiles: tl.constexpr = first_tiles + tl.cdiv(P2, BLOCK_P) * tl.cdiv(Q2, BLOCK_Q)
    unit = tl.program_id(0) // tiles
    tile = tl.program_id(0) % tiles
    rank, i, parts = unit, 0, 1
    if SPLIT:
        ranks, parts_by_rank, ends = _unit_table(tile_starts_ptr, longest_ptr, part, R, R_BLOCK)
        rank = tl.sum((ends <= unit).to(tl.int32), 0)
        if rank >= R:
            return
        parts = tl.sum(tl.where(ranks == rank, parts_by_rank, 0), 0)
        i = unit - tl.sum(tl.where(ranks == rank, ends - parts_by_rank, 0), 0)
    expert = tl.load(longest_ptr + rank)
    begin = tl.load(tile_starts_ptr + expert)
    end = tl.load(tile_starts_ptr + expert + 1)
    if SPLIT:
        share, left_over = (end - begin) // parts, (end - begin) % parts
        begin += i * share + tl.minimum(i, left_over)
        end = begin + share + (i < left_over)

    p, q = _tile_place(tile, P, Q, BLOCK_P, BLOCK_Q, GROUP)
    rows, columns, place = P, Q, 0
    if left2 is not None:
        if tile >= first_tiles:
            p, q = _tile_place(tile - first_tiles, P2, Q2, BLOCK_P, BLOCK_Q, GROUP)
            rows, columns, place = P2, Q2, P * Q
            left, right, grad_ptr = left2, right2, grad2_ptr
    has_sums = (q == 0) & (tile < first_tiles)

    acc = tl.zeros((BLOCK_P, BLOCK_Q), tl.float32)
    ONES: tl.constexpr = 16  # columns, the fewest of a dot
    sums = tl.zeros((BLOCK_P, ONES), tl.float32)
    P_END: tl.constexpr = P if P % BLOCK_P != 0 else 0  # where tiles do not fit (`load_tile`)
    Q_END: tl.constexpr = Q if Q % BLOCK_Q != 0 else 0
    first_row = begin * PLAN_M
    for step in range(0, (end - begin) * PLAN_M, BLOCK_K):
        row = first_row + step
        a = load_tile(left, row, p, 0, P, False, P_END, BLOCK_K, BLOCK_P, True)
        b = load_tile(right, row, q, 0, Q, False, Q_END, BLOCK_K, BLOCK_Q, False)
        acc = dot(a, b, acc, PRECISION)
        if sums_ptr is not None:
            if has_sums:
                sums = dot(a, rounded(tl.full((BLOCK_K, ONES), 1.0, tl.float32), a.dtype), sums, "ieee")

    p += tl.arange(0, BLOCK_P)
    q += tl.arange(0, BLOCK_Q)
    offsets = p.to(tl.int64)[:, None] * columns + q[None, :]
    mask = (p < rows)[:, None] & (q < columns)[None, :]
    if SPLIT:  # masks, not a branch, around which registers spill in float32
        SIZE: tl.constexpr = P * Q + P2 * Q2 + (0 if sums_ptr is None else P)
        workspace_ptr += unit.to(tl.int64) * SIZE
        tl.store(workspace_ptr + place + offsets, acc, mask=mask & (parts > 1))
        mask &= parts == 1
    grad_ptr += expert.to(tl.int64) * rows * columns
    tl.store(grad_ptr + offsets, rounded(acc, grad_ptr.dtype.element_ty), mask=mask)
    if sums_ptr is not None:
        # All columns are alike: one is taken.
        total = tl.sum(tl.where(tl.arange(0, ONES)[None, :] == 0, sums, 0.0), 1)
        mask_p = (p < P) & has_sums
        if SPLIT:
            tl.store(workspace_ptr + P * Q + P2 * Q2 + p, total, mask=mask_p & (parts > 1))
            mask_p &= parts == 1
        total = rounded(total, sums_ptr.dtype.element_ty)
        tl.store(sums_ptr + expert.to(tl.int64) * P + p, total, mask=mask_p)


@triton.jit(do_not_specialize=["part"])
def _sum_parts_kernel(
    workspace_ptr,  # [parts, P Q + P2 Q2 + P], float32
    grad_ptr,  # [R, P, Q]
    grad2_ptr,  # [R, P2, Q2] or None
    sums_ptr,  # [R, P] or None
    tile_starts_ptr,
    longest_ptr,
    part,
    P: tl.constexpr,
    Q: tl.constexpr,
    P2: tl.constexpr,
    Q2: tl.constexpr,
    R: tl.constexpr,
    R_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """grad[e] = the sum of e's parts, first to last, in float32, for the experts that were cut; so grad2 and sums.

    Grid: half the parts, since a cut expert has two at least, times blocks of an expert's elements; a program owns a
    block of one gradient. Bytes: 4 (P Q + P2 Q2 + P) a part, as many elements of the gradients a cut expert,
    tile_starts and longest 4 (2 R + 1).
    """
    # Not tl.cdiv, whose result Triton 3.6 cannot add here.
    blocks_1: tl.constexpr = (P * Q + BLOCK - 1) // BLOCK
    blocks_2: tl.constexpr = (P2 * Q2 + BLOCK - 1) // BLOCK
    blocks_3: tl.constexpr = 0 if sums_ptr is None else (P + BLOCK - 1) // BLOCK
    blocks: tl.constexpr = blocks_1 + blocks_2 + blocks_3
    rank = tl.program_id(0) // blocks
    block = tl.program_id(0) % blocks
    ranks, parts_by_rank, ends = _unit_table(tile_starts_ptr, longest_ptr, part, R, R_BLOCK)
    parts = tl.sum(tl.where(ranks == rank, parts_by_rank, 0), 0)
    if parts < 2:
        return
    unit = tl.sum(tl.where(ranks == rank, ends - parts_by_rank, 0), 0)
    expert = tl.load(longest_ptr + rank).to(tl.int64)
    SIZE: tl.constexpr = P * Q + P2 * Q2 + (0 if sums_ptr is None else P)
    within = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    size, place, out_ptr = P * Q, 0, grad_ptr
    if grad2_ptr is not None:
        if block >= blocks_1:
            within -= blocks_1 * BLOCK
            size, place, out_ptr = P2 * Q2, P * Q, grad2_ptr
    if sums_ptr is not None:
        if block >= blocks_1 + blocks_2:
            within = (block - blocks_1 - blocks_2).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
            size, place, out_ptr = P, P * Q + P2 * Q2, sums_ptr
    total = tl.zeros((BLOCK,), tl.float32)
    for j in range(0, parts):
        source = workspace_ptr + (unit + j).to(tl.int64) * SIZE + place
        total += tl.load(source + within, mask=within < size, other=0.0)
    tl.store(out_ptr + expert * size + within, rounded(total, out_ptr.dtype.element_ty), mask=within < size)
