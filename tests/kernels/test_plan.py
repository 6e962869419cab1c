"""The plan: a stable counting sort on the device, against torch's."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dexcore.kernels.plan import make_plan


def check(indices, experts, tokens, block_m):
    top_k = indices.shape[1]
    plan = make_plan(indices, experts, tokens, block_m)
    flat = indices.reshape(-1).long()
    order = flat.sort(stable=True).indices
    counts = flat.bincount(minlength=experts)
    tiles = (counts * tokens + block_m - 1) // block_m
    expected_tiles = torch.repeat_interleave(torch.arange(experts), tiles)
    assert torch.equal(plan.slots, order.int())
    assert torch.equal(plan.images, (order // top_k).int())
    assert torch.equal(plan.places, order.argsort().int())
    assert plan.starts.tolist() == [0, *counts.cumsum(0).tolist()]
    assert plan.tile_starts.tolist() == [0, *tiles.cumsum(0).tolist()]
    assert torch.equal(plan.tiles[: len(expected_tiles)], expected_tiles.int())
    assert (plan.tiles[len(expected_tiles) :] == -1).all()
    assert torch.equal(plan.longest, counts.sort(descending=True, stable=True).indices.int())
    assert plan.valid.item() == 1
    assert plan.rows == flat.numel() * tokens


def test_the_worked_example_of_the_module():
    plan = make_plan(torch.tensor([[2, 0], [0, 1]]), 4, 3, 4)
    assert [t.tolist() for t in plan[:7]] == [
        [1, 2, 3, 0],
        [0, 1, 1, 0],
        [3, 0, 1, 2],
        [0, 2, 3, 4, 4],
        [0, 2, 3, 4, 4],
        [0, 0, 1, 2, -1, -1, -1],
        [0, 1, 2, 3],
    ]


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


def test_twenty_thousand_slots_on_64_experts():
    generator = torch.Generator().manual_seed(0)
    check(torch.rand(10_000, 64, generator=generator).argsort(-1)[:, :2].contiguous(), 64, 65, 128)


def test_all_on_one_expert():
    check(torch.full((300, 1), 5), 7, 17, 32)


@pytest.mark.parametrize("wrong", [-1, 4, 2**31 - 1, 2**32, 2**32 + 1, -(2**32)])
def test_an_index_out_of_range_clears_valid_and_reaches_no_memory(wrong):
    plan = make_plan(torch.tensor([[0, 1], [wrong, 2]]), 4, 3, 4)
    assert plan.valid.item() == 0
    assert sorted(plan.slots.tolist()) == [0, 1, 2, 3]
