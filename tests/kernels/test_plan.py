"""The plan: a stable counting sort on the device, against torch's; and what its tables say of rows."""

import re

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st

import dexcore.kernels.plan as module
from dexcore.kernels.plan import PlanShape, make_plan, rows_with_tokens
from kernels.expert_rows import in_rows, in_slots, live, pads, plan_of, rows_of


def check(indices, experts, tokens, block_m):
    batch, top_k = indices.shape
    plan, storage = make_plan(indices, experts, tokens, block_m)
    flat = indices.reshape(-1).long()
    sorted_experts, order = flat.sort(stable=True)
    counts = flat.bincount(minlength=experts)
    tiles = (counts * tokens + block_m - 1) // block_m
    tile_ends = tiles.cumsum(0)
    expected_tiles = torch.repeat_interleave(torch.arange(experts), tiles)
    assert torch.equal(plan.slots, order.int())
    assert plan.starts.tolist() == [0, *counts.cumsum(0).tolist()]
    assert plan.tile_starts.tolist() == [0, *tile_ends.tolist()]
    assert torch.equal(plan.tiles[: len(expected_tiles)], expected_tiles.int())
    assert (plan.tiles[len(expected_tiles) :] == -1).all()
    assert torch.equal(plan.longest, counts.sort(descending=True, stable=True).indices.int())
    assert plan.valid.item() == 1

    place = torch.arange(len(flat)) - (counts.cumsum(0) - counts)[sorted_experts]
    first_rows = torch.empty_like(flat)
    first_rows[order] = (tile_ends - tiles)[sorted_experts] * block_m + place * tokens
    assert torch.equal(plan.first_rows, first_rows.int())

    # Shapes depend on no routing, and there is room for any.
    assert plan.tiles.numel() == batch * top_k * tokens // block_m + min(experts, batch * top_k)
    assert len(expected_tiles) <= plan.tiles.numel()
    assert plan.rows == plan.tiles.numel() * block_m
    assert plan.images == batch
    assert (plan.num_experts, plan.tokens, plan.top_k, plan.block_m) == (experts, tokens, top_k, block_m)

    again = PlanShape(batch, top_k, experts, tokens, block_m).view(storage)
    assert again[7:] == plan[7:]
    for table, same in zip(plan.tables, again.tables, strict=True):
        assert torch.equal(table, same)
        assert table.data_ptr() == same.data_ptr()
        assert table.dtype == torch.int32
        assert not table.numel() or table.data_ptr() % 16 == 0
    return plan


def test_the_worked_example_of_the_module():
    plan = plan_of(torch.tensor([[2, 0], [0, 1]]), 4, 3, 4)
    stated = dict(re.findall(r"^    (\w+) +(\[[-\d, ]+\])", module.__doc__, re.MULTILINE))
    assert {name: str(getattr(plan, name).tolist()) for name in stated} == stated
    assert stated.keys() == {"slots", "starts", "tile_starts", "tiles", "first_rows", "longest"}
    assert (plan.tiles.numel(), plan.rows, live(plan)) == (7, 28, 16)
    assert pads(plan).nonzero().flatten().tolist() == [6, 7, 11, 15]


@settings(max_examples=30)
@given(st.data())
def test_drawn_routings(data):
    experts = data.draw(st.integers(1, 64))
    top_k = data.draw(st.integers(1, min(experts, 4)))
    batch = data.draw(st.integers(0, 80))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    indices = torch.rand(batch, experts, generator=generator).argsort(-1)[:, :top_k].contiguous()
    dtype = data.draw(st.sampled_from((torch.int64, torch.int32)))
    check(indices.to(dtype), experts, data.draw(st.integers(1, 70)), data.draw(st.sampled_from((16, 64, 128))))


@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 33])
def test_the_fullest_routings_have_room(tokens):
    """As many partly filled tiles as there can be: every slot an expert of its own, or all but one on one."""
    assert live(check(torch.arange(8).view(4, 2), 8, tokens, 16)) == 8 * -(-tokens // 16) * 16
    check(torch.tensor([[0], [0], [0], [1]]), 2, tokens, 16)
    check(torch.arange(3).view(3, 1), 64, tokens, 16)


def test_twenty_thousand_slots_on_64_experts():
    generator = torch.Generator().manual_seed(0)
    check(torch.rand(10_000, 64, generator=generator).argsort(-1)[:, :2].contiguous(), 64, 65, 128)


def test_all_on_one_expert():
    check(torch.full((300, 1), 5), 7, 17, 32)


def test_the_same_expert_twice_has_two_slots():
    check(torch.tensor([[1, 1], [2, 1]]), 4, 5, 16)


def test_without_images_there_are_no_tiles():
    plan = check(torch.empty(0, 2, dtype=torch.int64), 4, 5, 16)
    assert plan.rows == plan.images == 0
    assert plan.longest.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("wrong", [-1, 4, 2**31 - 1, 2**32, 2**32 + 1, -(2**32)])
def test_an_index_out_of_range_clears_valid_and_reaches_no_memory(wrong):
    plan = plan_of(torch.tensor([[0, 1], [wrong, 2]]), 4, 3, 4)
    assert plan.valid.item() == 0
    assert sorted(plan.slots.tolist()) == [0, 1, 2, 3]
    clamped = plan_of(torch.tensor([[0, 1], [min(max(wrong, 0), 3), 2]]), 4, 3, 4)
    assert all(torch.equal(a, b) for a, b in zip(plan.tables[:6], clamped.tables[:6], strict=True))


def test_every_row_of_a_tile_that_an_expert_has_is_a_token_or_a_pad():
    plan = plan_of(torch.tensor([[2, 0], [0, 1], [2, 0]]), 4, 7, 16)
    times = torch.zeros(plan.rows, dtype=torch.int64)
    times.index_add_(0, rows_of(plan).flatten(), torch.ones(42, dtype=torch.int64))
    times += pads(plan)
    assert times.tolist() == [1] * live(plan) + [0] * (plan.rows - live(plan))
    values = torch.randn(6, 7, 2)
    assert torch.equal(in_slots(plan, in_rows(plan, values)), values)


def test_the_rows_and_tables_of_used_experts_are_counted():
    plan = plan_of(torch.tensor([[2, 0], [0, 1], [2, 0]]), 6, 7, 16)
    counts = [3, 1, 2, 0, 0, 0]
    # Tiles: 21, 7 and 14 rows in tiles of 16. starts and tile_starts: three ends of each, and its beginnings.
    assert plan.live(counts) == (live(plan), 3, 4 * (plan.tiles.numel() + 4 + 3))
    assert plan.live([0] * 6) == (0, 0, 4 * plan.tiles.numel())


def test_another_tile_than_the_plans_is_refused():
    plan = plan_of(torch.tensor([[0]]), 1, 5, 32)
    plan.check_tile(32)
    with pytest.raises(ValueError, match="block_m must be its plan's, 32, got 64"):
        plan.check_tile(64)


@triton.jit
def _has_token_kernel(out_ptr, starts_ptr, tile_starts_ptr, tiles_ptr, tokens, BLOCK_M: tl.constexpr):
    tile = tl.program_id(0)
    expert = tl.load(tiles_ptr + tile)
    if expert >= 0:
        has_token = rows_with_tokens(tile, expert, starts_ptr, tile_starts_ptr, tokens, BLOCK_M)
        tl.store(out_ptr + tile * BLOCK_M + tl.arange(0, BLOCK_M), has_token.to(tl.int32))


@pytest.mark.parametrize("tokens", [1, 7, 16, 40])
def test_a_kernel_is_told_which_rows_have_tokens(tokens):
    plan = plan_of(torch.tensor([[2, 0], [0, 1], [2, 0]]), 4, tokens, 16)
    found = torch.zeros(plan.rows, dtype=torch.int32)
    _has_token_kernel[(plan.tiles.numel(),)](found, plan.starts, plan.tile_starts, plan.tiles, tokens, BLOCK_M=16)
    expected = torch.zeros(plan.rows, dtype=torch.int32)
    expected[rows_of(plan)] = 1
    assert torch.equal(found, expected)
