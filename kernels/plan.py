"""The plan of a layer: which rows an expert owns, made on the device, with fixed shapes.

A slot is a pair (image, choice); flat slot b*k + j. The plan sorts the B*k slots by expert, stably. An expert's rows
are the tokens of its slots, one after the other, and then zeros up to a whole number of tiles: so every tile of rows
is dense, and all of one expert. "Expert order" is the order of these rows.

Example: B = 2, k = 2, R = 4, N = 3, tiles of 4 rows; indices [[2, 0], [0, 1]], flat [2, 0, 0, 1].

    slots   [1, 2, 3, 0]          sorted slot -> flat slot: expert 0 has the flat slots 1 and 2, ...
    starts  [0, 2, 3, 4, 4]       expert e has the sorted slots starts[e] .. starts[e+1]-1
    tile_starts [0, 2, 3, 4, 4]   expert e has the tiles tile_starts[e] .. tile_starts[e+1]-1; 4 times that, its rows
    tiles   [0, 0, 1, 2, -1, -1, -1]  a tile's expert; -1: a tile that nobody has. Rows 0 .. 5 are expert 0's tokens,
                                  6 and 7 its zeros, 8 .. 10 the tokens of expert 1, 11 its zero, ...
    first_rows [12, 0, 3, 8]      flat slot -> the row of its token 0: (tile_starts[e], times 4) + 3 * its place in e
    longest [0, 1, 2, 3]          experts by falling number of slots, ties to the lower index

There are 7 tiles, hence 28 rows: the upper bound B k N // 4 + min(R, B k), so that shapes depend on no routing. A tile
that nobody has is not computed; x, z and w a are zero there.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dexcore.kernels.launch import launch
from dexcore.kernels.route import Balance, sum_balance

_SLOTS_A_BLOCK = 128
_TILES_A_BLOCK = 128
_PROBS_A_BLOCK = 2048
_GROUP = tl.constexpr(8)
_ALIGNMENT = 4  # int32s: tables begin at 16 bytes, so that kernels are not compiled again for another batch


class Plan(NamedTuple):
    """Everything int32, on the indices' device, in one allocation; see the module for the meaning."""

    slots: Tensor  # [S], S = B*k
    first_rows: Tensor  # [S]
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
    def tables(self) -> tuple[Tensor, ...]:
        """All that is on the device."""
        return self[:7]

    @property
    def rows(self) -> int:
        """Rows in expert order, those that only fill tiles among them: T * block_m."""
        return self.tiles.numel() * self.block_m

    @property
    def images(self) -> int:
        """B."""
        return self.slots.numel() // self.top_k

    def check_tile(self, block_m: int) -> None:
        """Raise ValueError unless a kernel's tiles of rows are the plan's."""
        if block_m != self.block_m:
            raise ValueError(f"a kernel's block_m must be its plan's, {self.block_m}, got {block_m}")

    def live(self, counts: Sequence[int]) -> tuple[int, int, int]:
        """Rows of tiles that an expert has, experts that have slots, and bytes that their tiles read of the plan.

        ``counts`` are the experts' slots.
        """
        used = [e for e, count in enumerate(counts) if count]
        tiles = sum(triton.cdiv(count * self.tokens, self.block_m) for count in counts)
        starts = {*used, *(e + 1 for e in used)}
        return tiles * self.block_m, len(used), 4 * (self.tiles.numel() + len(starts) + len(used))


class PlanShape(NamedTuple):
    """What a plan's tables depend on."""

    batch: int
    top_k: int
    num_experts: int
    tokens: int
    block_m: int

    @property
    def tiles(self) -> int:
        """T."""
        slots = self.batch * self.top_k
        # Not min(R, S) of numbers that torch.compile may not know.
        return slots * self.tokens // self.block_m + torch.sym_min(self.num_experts, slots)

    @property
    def rows(self) -> int:
        """T * block_m."""
        return self.tiles * self.block_m

    @property
    def sizes(self) -> tuple[int, ...]:
        """Of the tables, in `Plan`'s order."""
        slots = self.batch * self.top_k
        return slots, slots, self.num_experts + 1, self.num_experts + 1, self.tiles, self.num_experts, 1

    @property
    def elements(self) -> int:
        """Of the allocation that holds the tables."""
        return sum(_aligned(size) for size in self.sizes)

    def view(self, storage: Tensor) -> Plan:
        """The plan whose tables lie in ``storage`` [elements], int32."""
        parts = storage.split([_aligned(size) for size in self.sizes])
        tables = (part[:size] for part, size in zip(parts, self.sizes, strict=True))
        return Plan(*tables, num_experts=self.num_experts, tokens=self.tokens, top_k=self.top_k, block_m=self.block_m)


def _aligned(size: int) -> int:
    return (size + _ALIGNMENT - 1) // _ALIGNMENT * _ALIGNMENT


def make_plan(
    indices: Tensor, num_experts: int, tokens: int, block_m: int, balance: Balance | None = None
) -> tuple[Plan, Tensor]:
    """Sort the slots by expert.

    Args:
        indices: [B, k], int64 or int32, contiguous. An index outside 0..R-1 is clamped, and clears ``valid``.
        num_experts: R.
        tokens: N.
        block_m: rows of a GEMM tile.
        balance: what of the balance loss is summed in passing: the one program that knows all images has the time.

    Returns:
        The plan, and the allocation that its tables lie in, from which `PlanShape.view` makes it again.
    """
    batch, top_k = indices.shape
    shape = PlanShape(batch, top_k, num_experts, tokens, block_m)
    storage = torch.empty(shape.elements, dtype=torch.int32, device=indices.device)
    plan = shape.view(storage)
    launch(
        _plan_kernel,
        (1,),
        indices,
        *plan.tables,
        *(balance or (None, None, None)),
        batch * top_k,
        shape.tiles,
        tokens,
        TOP_K=top_k,
        R=num_experts,
        BLOCK_M=block_m,
        R_BLOCK=triton.next_power_of_2(num_experts),
        S_BLOCK=_SLOTS_A_BLOCK,
        T_BLOCK=_TILES_A_BLOCK,
        P_BLOCK=max(1, _PROBS_A_BLOCK // triton.next_power_of_2(num_experts)),
        num_warps=4,
    )
    return plan, storage


def make_plan_bytes(indices: Tensor, plan: Plan) -> int:
    """Unique bytes that `make_plan` reads and writes."""
    return indices.nbytes + sum(table.nbytes for table in plan.tables)


@triton.jit(do_not_specialize=["num_slots", "num_tiles"])
def _plan_kernel(
    indices_ptr,
    slots_ptr,
    first_rows_ptr,
    starts_ptr,
    tile_starts_ptr,
    tiles_ptr,
    longest_ptr,
    valid_ptr,
    probs_ptr,
    importance_ptr,
    balance_loss_ptr,
    num_slots,
    num_tiles,
    tokens,
    TOP_K: tl.constexpr,
    R: tl.constexpr,
    BLOCK_M: tl.constexpr,
    R_BLOCK: tl.constexpr,
    S_BLOCK: tl.constexpr,
    T_BLOCK: tl.constexpr,
    P_BLOCK: tl.constexpr,
):
    """A counting sort; and the balance loss, where it is wanted. Grid (1,): one program writes all.

    Bytes: indices S itemsize, read twice; slots and first_rows 8 S; the tables 4 (3 R + 3 + T); and those of
    `sum_balance`. It walks the slots twice, in blocks of S_BLOCK, and the tiles once, so that no batch size asks for
    another compilation.
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

    first_row = (tile_ends - tile_counts) * BLOCK_M - starts * tokens  # of an expert, less its slots' place in all
    filled = starts
    for first in range(0, num_slots, S_BLOCK):
        flat = first + block
        index = tl.load(indices_ptr + flat, mask=flat < num_slots, other=0)
        index = tl.minimum(tl.maximum(index, 0), R - 1).to(tl.int32)
        chosen = ((index[:, None] == experts[None, :]) & (flat < num_slots)[:, None]).to(tl.int32)
        earlier = tl.cumsum(chosen, 0) - chosen
        place = tl.sum((filled[None, :] + earlier) * chosen, 1)
        row = place * tokens + tl.sum(first_row[None, :] * chosen, 1)
        tl.store(slots_ptr + place, flat, mask=flat < num_slots)
        tl.store(first_rows_ptr + flat, row, mask=flat < num_slots)
        filled += tl.sum(chosen, 0)

    for first in range(0, num_tiles, T_BLOCK):
        tile = first + tl.arange(0, T_BLOCK)
        expert = tl.sum(((tile_ends[None, :] <= tile[:, None]) & (experts < R)[None, :]).to(tl.int32), 1)
        tl.store(tiles_ptr + tile, tl.where(expert < R, expert, -1), mask=tile < num_tiles)

    if probs_ptr is not None:
        sum_balance(probs_ptr, importance_ptr, balance_loss_ptr, num_slots // TOP_K, R, R_BLOCK, P_BLOCK)


@triton.jit
def rows_with_tokens(tile, expert, starts_ptr, tile_starts_ptr, tokens, BLOCK_M: tl.constexpr):
    """Which of a tile's rows [BLOCK_M] its expert has tokens for."""
    slots = tl.load(starts_ptr + expert + 1) - tl.load(starts_ptr + expert)
    before = (tile - tl.load(tile_starts_ptr + expert)) * BLOCK_M
    return before + tl.arange(0, BLOCK_M) < slots * tokens


@triton.jit
def tile_in_group(row_tiles, COLUMNS: tl.constexpr, BLOCK_N: tl.constexpr):
    """This program's row tile, and the first of its columns.

    Groups of row tiles take the column tiles together, so that L2 serves a weight's re-reads. With groups of 2, 3 row
    tiles and 2 column tiles the programs 0 .. 5 own the (row tile, column tile) (0, 0), (1, 0), (0, 1), (1, 1), (2, 0),
    (2, 1).
    """
    column_tiles: tl.constexpr = (COLUMNS + BLOCK_N - 1) // BLOCK_N
    program = tl.program_id(0)
    first_tile = program // (_GROUP * column_tiles) * _GROUP
    group = tl.minimum(row_tiles - first_tile, _GROUP)
    inner = program % (_GROUP * column_tiles)
    return first_tile + inner % group, inner // group * BLOCK_N
