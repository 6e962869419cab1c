"""The plan of a layer: which rows an expert owns, made on the device, with fixed shapes.

A slot is a pair (image, choice); flat slot b*k + j. The plan sorts the B*k slots by expert, stably. An expert's rows
are the tokens of its slots, one after the other: sorted slot s owns the rows s*N .. s*N + N-1. GEMM tiles run over
the rows of one expert, across images; only an expert's last tile is partial.

Example: B = 2, k = 2, R = 4, N = 3, tiles of 4 rows; indices [[2, 0], [0, 1]], flat [2, 0, 0, 1].

    slots   [1, 2, 3, 0]          sorted slot -> flat slot: expert 0 has the flat slots 1 and 2, ...
    images  [0, 1, 1, 0]          slots // k
    places  [3, 0, 1, 2]          flat slot -> sorted slot
    starts  [0, 2, 3, 4, 4]       expert e has the sorted slots starts[e] .. starts[e+1]-1; its rows are N times that
    tile_starts [0, 2, 3, 4, 4]   expert e has the tiles tile_starts[e] .. tile_starts[e+1]-1
    tiles   [0, 0, 1, 2, -1, -1, -1]  a tile's expert; -1: no rows. Tile 1 owns rows 4 and 5, tile 2 the rows 6 .. 8
    longest [0, 1, 2, 3]          experts by falling number of slots, ties to the lower index

Row 7 is sorted slot 7 // 3 = 2, of image images[2] = 1, token 7 % 3 = 1.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dexcore.kernels.launch import launch

_SLOTS_A_BLOCK = 128
_TILES_A_BLOCK = 128


class Plan(NamedTuple):
    """Everything int32, on the indices' device; see the module for the meaning."""

    slots: Tensor  # [S], S = B*k
    images: Tensor  # [S]
    places: Tensor  # [S]
    starts: Tensor  # [R + 1]
    tile_starts: Tensor  # [R + 1]
    tiles: Tensor  # [T], the upper bound S*N // block_m + min(R, S)
    longest: Tensor  # [R]
    valid: Tensor  # [1], 1 where all indices lie in 0..R-1
    num_experts: int
    tokens: int
    top_k: int
    block_m: int

    @property
    def rows(self) -> int:
        """Rows of all experts together, B*k*N."""
        return self.slots.numel() * self.tokens


def make_plan(indices: Tensor, num_experts: int, tokens: int, block_m: int) -> Plan:
    """Sort the slots by expert.

    Args:
        indices: [B, k], int64 or int32, contiguous. An index outside 0..R-1 is clamped, and clears ``valid``.
        num_experts: R.
        tokens: N.
        block_m: rows of a GEMM tile.
    """
    batch, top_k = indices.shape
    slots = batch * top_k

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.int32, device=indices.device)

    tiles = slots * tokens // block_m + min(num_experts, slots)
    plan = Plan(
        slots=empty(slots),
        images=empty(slots),
        places=empty(slots),
        starts=empty(num_experts + 1),
        tile_starts=empty(num_experts + 1),
        tiles=empty(tiles),
        longest=empty(num_experts),
        valid=empty(1),
        num_experts=num_experts,
        tokens=tokens,
        top_k=top_k,
        block_m=block_m,
    )
    launch(
        _plan_kernel,
        (1,),
        indices,
        *plan[:8],
        slots,
        tiles,
        tokens,
        TOP_K=top_k,
        R=num_experts,
        BLOCK_M=block_m,
        R_BLOCK=triton.next_power_of_2(num_experts),
        S_BLOCK=_SLOTS_A_BLOCK,
        T_BLOCK=_TILES_A_BLOCK,
        num_warps=4,
    )
    return plan


@triton.jit(do_not_specialize=["num_slots", "num_tiles"])
def _plan_kernel(
    indices_ptr,
    slots_ptr,
    images_ptr,
    places_ptr,
    starts_ptr,
    tile_starts_ptr,
    tiles_ptr,
    longest_ptr,
    valid_ptr,
    num_slots,
    num_tiles,
    tokens,
    TOP_K: tl.constexpr,
    R: tl.constexpr,
    BLOCK_M: tl.constexpr,
    R_BLOCK: tl.constexpr,
    S_BLOCK: tl.constexpr,
    T_BLOCK: tl.constexpr,
):
    """A counting sort. Grid (1,): one program writes all.

    Bytes: indices S itemsize, read twice; slots, images, places 12 S; the tables 4 (3 R + 3 + T). It walks the slots
    twice, in blocks of S_BLOCK, and the tiles once, so that no batch size asks for another compilation.
    """
    experts = tl.arange(0, R_BLOCK)
    block = tl.arange(0, S_BLOCK)

    counts = tl.zeros((R_BLOCK,), tl.int32)
    wrong = tl.zeros((S_BLOCK,), tl.int32)
    for first in range(0, num_slots, S_BLOCK):
        flat = first + block
        index = tl.load(indices_ptr + flat, mask=flat < num_slots, other=0)
        wrong = wrong | ((index < 0) | (index >= R)).to(tl.int32)  # before it loses bits
        index = tl.minimum(tl.maximum(index, 0), R - 1).to(tl.int32)
        chosen = (index[:, None] == experts[None, :]) & (flat < num_slots)[:, None]
        counts += tl.sum(chosen.to(tl.int32), 0)
    tl.store(valid_ptr, 1 - tl.max(wrong, 0))

    ends = tl.cumsum(counts, 0)
    starts = ends - counts
    tile_counts = tl.where(experts < R, (counts * tokens + BLOCK_M - 1) // BLOCK_M, 0)
    tile_ends = tl.cumsum(tile_counts, 0)
    tl.store(starts_ptr, 0)
    tl.store(tile_starts_ptr, 0)
    tl.store(starts_ptr + 1 + experts, ends, mask=experts < R)
    tl.store(tile_starts_ptr + 1 + experts, tile_ends, mask=experts < R)

    before = (counts[:, None] < counts[None, :]) | (
        (counts[:, None] == counts[None, :]) & (experts[:, None] > experts[None, :])
    )
    rank = tl.sum((before & (experts < R)[None, :]).to(tl.int32), 1)
    tl.store(longest_ptr + rank, experts, mask=experts < R)

    filled = starts
    for first in range(0, num_slots, S_BLOCK):
        flat = first + block
        index = tl.load(indices_ptr + flat, mask=flat < num_slots, other=0)
        index = tl.minimum(tl.maximum(index, 0), R - 1).to(tl.int32)
        chosen = ((index[:, None] == experts[None, :]) & (flat < num_slots)[:, None]).to(tl.int32)
        earlier = tl.cumsum(chosen, 0) - chosen
        place = tl.sum((filled[None, :] + earlier) * chosen, 1)
        tl.store(slots_ptr + place, flat, mask=flat < num_slots)
        tl.store(images_ptr + place, flat // TOP_K, mask=flat < num_slots)
        tl.store(places_ptr + flat, place, mask=flat < num_slots)
        filled += tl.sum(chosen, 0)

    for first in range(0, num_tiles, T_BLOCK):
        tile = first + tl.arange(0, T_BLOCK)
        expert = tl.sum(((tile_ends[None, :] <= tile[:, None]) & (experts < R)[None, :]).to(tl.int32), 1)
        tl.store(tiles_ptr + tile, tl.where(expert < R, expert, -1), mask=tile < num_tiles)


@triton.jit
def tile_rows(tile, expert, starts_ptr, tile_starts_ptr, tokens, BLOCK_M: tl.constexpr):
    """A tile's rows [BLOCK_M], int32, and which of them its expert has; the others belong to the next expert."""
    first = tl.load(starts_ptr + expert) * tokens + (tile - tl.load(tile_starts_ptr + expert)) * BLOCK_M
    end = tl.load(starts_ptr + expert + 1) * tokens
    rows = first + tl.arange(0, BLOCK_M)
    return rows, rows < end


@triton.jit
def image_rows(rows, inside, images_ptr, tokens):
    """Where the rows lie in a tensor [B*N, ...] of images: int32."""
    image = tl.load(images_ptr + rows // tokens, mask=inside, other=0)
    return image * tokens + rows % tokens
