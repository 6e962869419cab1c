"""group_ema_ against float64, in place."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.library import opcheck

import dexcore.kernels.group_ema as kernels
from assertions import assert_close
from dexcore import ops
from dexcore.ops import reference


@given(
    shapes=st.lists(st.lists(st.integers(1, 7), min_size=1, max_size=3), min_size=1, max_size=4),
    experts=st.integers(1, 6),
    momentum=st.sampled_from([0.0, 0.5, 0.99, 1.0]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    seed=st.integers(0, 1000),
)
def test_directors_follow_the_weighted_mean(shapes, experts, momentum, dtype, seed):
    g = torch.Generator().manual_seed(seed)
    directors = [torch.randn(shape, generator=g).to(dtype) for shape in shapes]
    pools = [torch.randn(experts, *shape, generator=g).to(dtype) for shape in shapes]
    weights = [torch.rand(experts, generator=g).softmax(-1) for _ in shapes]
    expected = [reference.group_ema(*each, momentum) for each in zip(directors, pools, weights, strict=True)]
    pointers = [director.data_ptr() for director in directors]
    assert ops.group_ema_(directors, pools, weights, momentum) is None
    assert [director.data_ptr() for director in directors] == pointers
    for director, want in zip(directors, expected, strict=True):
        assert_close(director, want, bound={torch.bfloat16: 2e-2, torch.float32: 5e-6, torch.float64: 1e-13}[dtype])


def test_zero_weights_leave_the_director_bit_for_bit():
    director = torch.randn(3, 4)
    before = director.clone()
    ops.group_ema_([director], [torch.randn(5, 3, 4)], [torch.zeros(5)], 0.5)
    assert torch.equal(director, before)


def test_an_expert_of_weight_zero_does_not_matter():
    pool = torch.randn(3, 8)
    one, other = torch.ones(8), torch.ones(8)
    ops.group_ema_([one], [pool], [torch.tensor([0.5, 0.5, 0.0])], 0.9)
    ops.group_ema_([other], [pool[:2]], [torch.tensor([0.5, 0.5])], 0.9)
    assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_an_element_that_would_not_be_finite_stays_as_it_is(dtype):
    director, pool = torch.randn(3, 50).to(dtype), torch.randn(4, 3, 50).to(dtype)
    weight = torch.tensor([0.5, 0.3, 0.0, 0.2])
    pool[0, 1, 7], pool[3, 2, 9] = float("nan"), float("inf")
    pool[2] = float("nan")  # not used: it does not matter
    before, expected = director.clone(), reference.group_ema(director, pool, weight, 0.9)
    ops.group_ema_([director], [pool], [weight], 0.9)
    assert director[1, 7] == before[1, 7]
    assert director[2, 9] == before[2, 9]
    assert (director != before).sum() > 100
    plain = (0.9 * before.float() + 0.1 * torch.einsum("r,r...->...", weight, pool.float().nan_to_num())).to(dtype)
    plain = torch.where(expected == before.double(), before, plain)
    assert_close(director, expected, plain=plain)


def test_a_weight_that_is_not_finite_leaves_the_director():
    director = torch.randn(3, 4)
    before = director.clone()
    for wrong in (float("nan"), float("inf")):
        ops.group_ema_([director], [torch.randn(2, 3, 4)], [torch.tensor([0.5, wrong])], 0.5)
        assert torch.equal(director, before)


def test_a_sum_that_overflows_is_no_reason_to_stand_still():
    director, pool = torch.full((1 << 18,), 1e35), torch.full((2, 1 << 18), 2e35)
    ops.group_ema_([director], [pool], [torch.tensor([0.5, 0.5])], 0.5)
    assert_close(director / 1e35, torch.full((1 << 18,), 1.5))


def test_a_strided_director_is_updated_too():
    whole = torch.randn(6, 4)
    director = whole.t()
    expected = reference.group_ema(director, pool := torch.randn(3, 4, 6), weights := torch.rand(3), 0.9)
    ops.group_ema_([director], [pool], [weights], 0.9)
    assert_close(whole.t(), expected)


def test_parameters_are_updated_without_a_graph():
    director = torch.nn.Parameter(torch.randn(4), requires_grad=False)
    pool = torch.nn.Parameter(torch.randn(2, 4))
    ops.group_ema_([director], [pool], [torch.tensor([0.5, 0.5])], 0.0)
    assert_close(director, pool.mean(0))
    assert not director.requires_grad


def test_opcheck():
    opcheck(
        torch.ops.dexcore.group_ema_.default,
        (
            [torch.randn(3), torch.randn(2, 2)],
            [torch.randn(4, 3), torch.randn(4, 2, 2)],
            [torch.rand(4)] * 2,
            0.9,
            "eager",
        ),
    )


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"momentum": 1.5}, ValueError, r"momentum must be in 0\.\.1"),
        ({"momentum": float("nan")}, ValueError, "momentum"),
        ({"momentum": None}, TypeError, "momentum must be a number"),
        ({"experts": []}, ValueError, "equally long, got 1, 0, 1"),
        ({"experts": [torch.ones(4, 2)]}, ValueError, r"experts\[0\] must have shape \[R, 3\]"),
        ({"weights": [torch.ones(3)]}, ValueError, r"weights\[0\] must have shape \[4\]"),
        ({"directors": [torch.ones(3, dtype=torch.int64)]}, TypeError, r"directors\[0\] must be floating"),
        ({"weights": [torch.ones(4, device="meta")]}, ValueError, r"weights\[0\] is on meta"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    good = {"directors": [torch.ones(3)], "experts": [torch.ones(4, 3)], "weights": [torch.ones(4)], "momentum": 0.9}
    with pytest.raises(error, match=message):
        ops.group_ema_(**(good | arguments))


def test_halves_of_experts_are_read_where_they_are(monkeypatch):
    read, kernel = [], kernels.group_ema

    def note(directors, experts, *rest):
        read.extend(expert.data_ptr() for expert in experts)
        kernel(directors, experts, *rest)

    monkeypatch.setattr(kernels, "group_ema", note)
    halves, weight = [*torch.randn(3, 12, 5).chunk(2, 1)], torch.tensor([0.2, 0.0, 0.8])
    apart, mixed = torch.randn(3, 5, 6).mT, torch.randn(3, 6, 5)
    directors = [torch.randn(6, 5) for _ in range(4)]
    pools = [*halves, mixed, apart]
    expected = [
        reference.group_ema(director, pool, weight, 0.9) for director, pool in zip(directors, pools, strict=True)
    ]
    ops.group_ema_(directors, pools, [weight] * 4, 0.9, backend="triton")
    for director, want in zip(directors, expected, strict=True):
        assert_close(director, want)
    places = [pool.data_ptr() for pool in pools]
    assert read[:3] == places[:3]
    assert read[3] != places[3], "an expert that is not contiguous itself is copied"
