"""Weight gradients: for every expert left^T right over its rows, a reduction of variable length.

dW1 [R, H, D] = dz^T x, with x [B*N, D] read through the row map; dW2 [R, D, H] = dy^T (w a), with dy [B*N, D] read
through it. P are left's columns and the gradient's rows, Q right's columns and the gradient's.

An expert's rows are one unit of work, and every unit has the same number of tiles; units are started longest first.
An expert that would hold a few multiprocessors long after the others are done is cut into parts, a unit each. Where
the rows of all experts fill ``split`` parts, an expert that has floor(f) parts' worth of them is cut into max(1,
floor(f)) equal ones.

Example: R = 4, N = 10, the experts' slots 2, 0, 9, 1, so 120 rows; split = 4 makes a part's worth 30 rows.

    expert     2    2    2    0    3    1    longest first
    its rows   90             20   10   0
    parts      3              1    1    1    floor(90 / 30), and one each
    unit       0    1    2    3    4    5    at most R + split units
    writes     workspace 0-2  the gradient

Cut experts come first, so a part's place in the workspace is its unit. There are at most ``split`` such units.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dexcore.kernels.configs import Gemm
from dexcore.kernels.launch import launch
from dexcore.kernels.numerics import dot, rounded
from dexcore.kernels.plan import Plan

# An H100's. The same on every device, so that all sum in the same order.
_MULTIPROCESSORS = 132
_LEAST_STEPS = 8
_GROUP = 8
_SUM_BLOCK = 1024


def expert_wgrad(
    left: Tensor,
    right: Tensor,
    plan: Plan,
    dtype: torch.dtype,
    precision: str,
    config: Gemm,
    *,
    left_by_image: bool,
    right_by_image: bool,
    split_k: int | None = None,
) -> Tensor:
    """left^T right over the rows of every expert.

    Args:
        left: [B*N, P] if ``left_by_image``, else [rows, P] in expert order.
        right: [B*N, Q] if ``right_by_image``, else [rows, Q] in expert order; left's dtype.
        plan: who owns which rows.
        dtype: the parameter's.
        precision: of float32 dot products.
        config: block_m of P, block_n of Q, block_k rows a step.
        split_k: into how many parts the rows of all experts are cut; by `split_parts` if None.

    Returns:
        [R, P, Q] of ``dtype``, zeros for an expert without rows.
    """
    p, q, experts = left.shape[-1], right.shape[-1], plan.num_experts
    split = split_parts(plan.rows, p, q, config) if split_k is None else max(1, min(split_k, plan.rows))
    out = torch.empty((experts, p, q), dtype=dtype, device=left.device)
    parts = torch.empty((split if split > 1 else 0, p, q), dtype=torch.float32, device=left.device)
    units = experts + split if split > 1 else experts
    part_rows = triton.cdiv(plan.rows, split)
    settings = {"R": experts, "R_BLOCK": triton.next_power_of_2(experts)}
    launch(
        _expert_wgrad_kernel,
        (units * _tiles(p, q, config),),
        left,
        right,
        out,
        parts,
        plan.images,
        plan.starts,
        plan.longest,
        plan.tokens,
        part_rows,
        P=p,
        Q=q,
        SPLIT=split > 1,
        LEFT_BY_IMAGE=left_by_image,
        RIGHT_BY_IMAGE=right_by_image,
        PRECISION=precision,
        BLOCK_P=config.block_m,
        BLOCK_Q=config.block_n,
        BLOCK_K=config.block_k,
        GROUP=_GROUP,
        num_warps=config.warps,
        num_stages=config.stages,
        **settings,
    )
    if split > 1:
        launch(
            _sum_parts_kernel,
            (min(split // 2, experts) * triton.cdiv(p * q, _SUM_BLOCK),),
            parts,
            out,
            plan.starts,
            plan.longest,
            plan.tokens,
            part_rows,
            ELEMENTS=p * q,
            BLOCK=_SUM_BLOCK,
            num_warps=4,
            **settings,
        )
    return out


def split_parts(rows: int, p: int, q: int, config: Gemm) -> int:
    """How many parts the rows of all experts are cut into; from shapes alone.

    The whole pass is rows * tiles of work, so rows * tiles / 132 if an H100's multiprocessors share it evenly. With
    132 // tiles parts a unit is shorter than twice that, whatever the routing: an expert is cut where it has two
    parts' worth. By the paper's batch (448 slots of 65 tokens, R = 8, k = 2) and 128 x 128 tiles:

        ViT-T (192, 768)    12 tiles, split 11. Even use: 96 programs of 3,640 rows, uncut. Two experts have all rows:
                            24 programs of 14,560 rows become 120 of 2,912, and the pass five times faster.
        ViT-S (384, 1536)   36 tiles, split 3. Even: 288 programs. Two experts: 72 of 14,560 rows, uncut, 4/3 of even's
                            three waves. One expert alone (k = 1): 36 become 108.
        ViT-B (768, 3072)   144 tiles, never cut. Two experts: 288 programs, 2.2 waves. With sm_90's 128 x 256 tiles it
                            is 72, 144 and 1.1 waves of twice the length.

    The workspace is at most 132 tiles: 9 MB for 128 x 128, which stay in the second-level cache. A part has at least
    8 steps, else writing its tile costs more than computing it.
    """
    return max(1, min(_MULTIPROCESSORS // _tiles(p, q, config), rows // (_LEAST_STEPS * config.block_k)))


def _tiles(p: int, q: int, config: Gemm) -> int:
    return triton.cdiv(p, config.block_m) * triton.cdiv(q, config.block_n)


def expert_wgrad_flops(rows: int, p: int, q: int) -> int:
    """Of all experts together; rows = B*k*N."""
    return 2 * rows * p * q


def expert_wgrad_bytes(
    counts: list[int],
    images: int,
    tokens: int,
    p: int,
    q: int,
    compute: torch.dtype,
    dtype: torch.dtype,
    config: Gemm,
    *,
    left_by_image: bool,
    right_by_image: bool,
    split_k: int | None = None,
) -> int:
    """Unique bytes read and written, both launches.

    Args:
        counts: slots of every expert.
        images: B, all of which have slots.
        tokens: N.
        compute: left's and right's dtype.
        dtype: the gradient's.
    """
    rows = sum(counts) * tokens
    split = split_parts(rows, p, q, config) if split_k is None else max(1, min(split_k, rows))
    widths = {True: 0, False: 0}
    widths[left_by_image] += p
    widths[right_by_image] += q
    read = (images * tokens * widths[True] + rows * widths[False]) * compute.itemsize
    read += 4 * (2 * len(counts) + 1)  # starts, longest
    if widths[True]:
        read += 4 * sum(counts)
    written = len(counts) * p * q * dtype.itemsize
    if split == 1:
        return read + written
    part_rows = triton.cdiv(rows, split)
    cut = sum(count * tokens // part_rows for count in counts if count * tokens // part_rows > 1)
    return read + written + 4 * (2 * len(counts) + 1) + 2 * 4 * cut * p * q


@triton.jit
def _unit_table(starts_ptr, longest_ptr, tokens, part_rows, R: tl.constexpr, R_BLOCK: tl.constexpr):
    """By rank, longest first: parts of the rank's expert, and the unit after its last."""
    ranks = tl.arange(0, R_BLOCK)
    expert = tl.load(longest_ptr + ranks, mask=ranks < R, other=0)
    slots = tl.load(starts_ptr + expert + 1) - tl.load(starts_ptr + expert)
    parts = tl.where(ranks < R, tl.maximum(slots * tokens // part_rows, 1), 0)
    return ranks, parts, tl.cumsum(parts, 0)


@triton.jit(do_not_specialize=["tokens", "part_rows"])
def _expert_wgrad_kernel(
    left_ptr,  # [B*N or rows, P]
    right_ptr,  # [B*N or rows, Q]
    out_ptr,  # [R, P, Q]
    parts_ptr,  # [split, P, Q], float32
    images_ptr,
    starts_ptr,
    longest_ptr,
    tokens,
    part_rows,
    P: tl.constexpr,
    Q: tl.constexpr,
    R: tl.constexpr,
    R_BLOCK: tl.constexpr,
    SPLIT: tl.constexpr,
    LEFT_BY_IMAGE: tl.constexpr,
    RIGHT_BY_IMAGE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """out[e, p, q] = sum over e's rows of left[row, p] right[row, q], in float32, rounded once.

    Grid: units (R, or R + split) times tiles of BLOCK_P x BLOCK_Q; a program owns a tile of its unit. An expert that
    is one unit is written to ``out``, zeros if it has no rows; a part of a cut one to ``parts``. FLOPs 2 rows P Q.
    Bytes: an operand by image B N width, one in expert order rows width, images 4 S if one is by image, starts and
    longest 4 (2 R + 1), R P Q of ``out`` but for the cut experts', 4 P Q a part.
    """
    tiles_p: tl.constexpr = (P + BLOCK_P - 1) // BLOCK_P
    tiles_q: tl.constexpr = (Q + BLOCK_Q - 1) // BLOCK_Q
    unit = tl.program_id(0) // (tiles_p * tiles_q)
    tile = tl.program_id(0) % (tiles_p * tiles_q)
    # Groups of P tiles, down before across: programs that run together share columns in the second-level cache.
    group = tile // (GROUP * tiles_q) * GROUP
    height = tl.minimum(tiles_p - group, GROUP)
    tile_p = group + tile % (GROUP * tiles_q) % height
    tile_q = tile % (GROUP * tiles_q) // height
    rank, part, parts = unit, 0, 1
    if SPLIT:
        ranks, parts_by_rank, ends = _unit_table(starts_ptr, longest_ptr, tokens, part_rows, R, R_BLOCK)
        rank = tl.sum((ends <= unit).to(tl.int32), 0)
        if rank >= R:
            return
        parts = tl.sum(tl.where(ranks == rank, parts_by_rank, 0), 0)
        part = unit - tl.sum(tl.where(ranks == rank, ends - parts_by_rank, 0), 0)

    expert = tl.load(longest_ptr + rank)
    first = tl.load(starts_ptr + expert) * tokens
    end = tl.load(starts_ptr + expert + 1) * tokens
    if SPLIT:
        share = tl.cdiv(tl.cdiv(end - first, BLOCK_K), parts) * BLOCK_K
        first += part * share
        end = tl.minimum(first + share, end)

    p = tile_p * BLOCK_P + tl.arange(0, BLOCK_P)
    q = tile_q * BLOCK_Q + tl.arange(0, BLOCK_Q)
    acc = tl.zeros((BLOCK_P, BLOCK_Q), tl.float32)
    # The row map, walked: a row's slot and token move by the same step each time, and its image is read a step ahead.
    # So the loop divides nothing, and its loads of the operands wait for no other load.
    rows = first + tl.arange(0, BLOCK_K)
    slots, slot_tokens, images = rows // tokens, rows % tokens, rows
    if LEFT_BY_IMAGE or RIGHT_BY_IMAGE:
        images = tl.load(images_ptr + slots, mask=rows < end, other=0)
    for row in range(first, end, BLOCK_K):
        rows = row + tl.arange(0, BLOCK_K)
        inside = rows < end
        image_rows = images * tokens + slot_tokens
        left_rows = image_rows if LEFT_BY_IMAGE else rows
        right_rows = image_rows if RIGHT_BY_IMAGE else rows
        # Read as [P, K], not transposed in registers: only so is it copied asynchronously on sm_80 too.
        left = tl.load(
            left_ptr + left_rows.to(tl.int64)[None, :] * P + p[:, None],
            mask=inside[None, :] & (p < P)[:, None],
            other=0.0,
        )
        right = tl.load(
            right_ptr + right_rows.to(tl.int64)[:, None] * Q + q[None, :],
            mask=inside[:, None] & (q < Q)[None, :],
            other=0.0,
        )
        acc = dot(left, right, acc, PRECISION)
        if LEFT_BY_IMAGE or RIGHT_BY_IMAGE:
            slot_tokens += BLOCK_K % tokens
            wraps = slot_tokens >= tokens
            slot_tokens -= tl.where(wraps, tokens, 0)
            slots += BLOCK_K // tokens + wraps.to(tl.int32)
            images = tl.load(images_ptr + slots, mask=rows + BLOCK_K < end, other=0)

    offsets = p.to(tl.int64)[:, None] * Q + q[None, :]
    mask = (p < P)[:, None] & (q < Q)[None, :]
    if SPLIT:  # masks, not a branch, around which registers spill in float32
        tl.store(parts_ptr + unit.to(tl.int64) * (P * Q) + offsets, acc, mask=mask & (parts > 1))
        mask &= parts == 1
    tl.store(out_ptr + expert.to(tl.int64) * (P * Q) + offsets, rounded(acc, out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["tokens", "part_rows"])
def _sum_parts_kernel(
    parts_ptr,  # [split, ELEMENTS], float32
    out_ptr,  # [R, ELEMENTS]
    starts_ptr,
    longest_ptr,
    tokens,
    part_rows,
    ELEMENTS: tl.constexpr,
    R: tl.constexpr,
    R_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out[e] = the sum of e's parts, first to last, in float32, for the experts that were cut.

    Grid: split // 2 ranks, since a cut expert has two parts at least, times blocks of an expert's P Q elements; a
    program owns a block of ``out``. Bytes: 4 P Q a part, P Q of ``out`` a cut expert, starts and longest 4 (2 R + 1).
    """
    blocks: tl.constexpr = (ELEMENTS + BLOCK - 1) // BLOCK
    rank = tl.program_id(0) // blocks
    ranks, parts_by_rank, ends = _unit_table(starts_ptr, longest_ptr, tokens, part_rows, R, R_BLOCK)
    parts = tl.sum(tl.where(ranks == rank, parts_by_rank, 0), 0)
    if parts < 2:
        return
    unit = tl.sum(tl.where(ranks == rank, ends - parts_by_rank, 0), 0)
    expert = tl.load(longest_ptr + rank)
    elements = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = elements < ELEMENTS
    total = tl.zeros((BLOCK,), tl.float32)
    for part in range(0, parts):
        total += tl.load(parts_ptr + (unit + part).to(tl.int64) * ELEMENTS + elements, mask=mask, other=0.0)
    tl.store(out_ptr + expert.to(tl.int64) * ELEMENTS + elements, rounded(total, out_ptr.dtype.element_ty), mask=mask)
