"""Weight gradients, against the dense formula in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from assertions import assert_close
from dexcore.kernels.configs import Gemm
from dexcore.kernels.expert_wgrad import expert_wgrad, split_parts
from dexcore.kernels.plan import make_plan

SMALL = Gemm(32, 16, 16, 4, 1)
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
BY_IMAGE = [(False, True), (True, False), (True, True), (False, False)]


def made(indices, experts, tokens, p, q, dtype=torch.float32, left_by_image=False, right_by_image=True, seed=0):
    """The operands and the plan."""
    batch, top_k = indices.shape
    g = torch.Generator().manual_seed(seed)
    rows = {True: batch * tokens, False: batch * top_k * tokens}
    left = torch.randn(rows[left_by_image], p, generator=g).to(dtype)
    right = torch.randn(rows[right_by_image], q, generator=g).to(dtype)
    return left, right, make_plan(indices, experts, tokens, 16)


def dense(left, right, indices, experts, tokens, left_by_image, right_by_image):
    """The slots of an expert, in order of (image, choice); each slot's rows as a matrix."""
    batch, top_k = indices.shape
    out = left.new_zeros(experts, left.shape[1], right.shape[1])
    place = 0
    for expert in range(experts):
        lefts, rights = [], []
        for image in range(batch):
            for choice in range(top_k):
                if indices[image, choice] == expert:
                    lefts.append(left.unflatten(0, (-1, tokens))[image if left_by_image else place])
                    rights.append(right.unflatten(0, (-1, tokens))[image if right_by_image else place])
                    place += 1
        if lefts:
            out[expert] = torch.cat(lefts).t() @ torch.cat(rights)
    return out


def check(indices, experts, tokens, p, q, dtype, left_by_image, right_by_image, split_k, config=SMALL, seed=0):
    case = (indices, experts, tokens)
    by_image = (left_by_image, right_by_image)
    left, right, plan = made(*case, p, q, dtype, *by_image, seed)
    out = expert_wgrad(
        left, right, plan, dtype, "ieee", config, left_by_image=by_image[0], right_by_image=by_image[1], split_k=split_k
    )
    reference = dense(left.double(), right.double(), *case, *by_image)
    assert out.dtype == dtype
    assert_close(out, reference, plain=dense(left, right, *case, *by_image))
    idle = [e for e in range(experts) if not (indices == e).any()]
    assert not out[idle].any()
    return out


@st.composite
def routings(draw):
    """Experts, and indices [B, k] that leave the last of them without images where that can be."""
    experts = draw(st.integers(1, 6))
    top_k = draw(st.integers(1, min(experts, 4)))
    used = max(top_k, experts - 1)
    batch = draw(st.integers(0, 4))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    return experts, torch.rand(batch, used, generator=g).argsort(-1)[:, :top_k].contiguous()


@given(
    routings(),
    st.integers(1, 17),
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from(DTYPES),
    st.sampled_from(BY_IMAGE),
    st.sampled_from([None, 2, 5]),
)
def test_it_is_left_transposed_times_right_over_every_experts_rows(routing, tokens, p, q, dtype, by_image, split_k):
    experts, indices = routing
    check(indices, experts, tokens, p, q, dtype, *by_image, split_k)


@pytest.mark.parametrize("split_k", [1, 2, 4, 7])
@pytest.mark.parametrize("dtype", DTYPES)
def test_all_images_on_one_expert_are_summed_in_parts(dtype, split_k):
    indices = torch.full((4, 1), 1)
    check(indices, 3, 13, 40, 20, dtype, False, True, split_k)


def test_two_calls_are_bit_equal():
    indices = torch.tensor([[0, 2], [0, 1], [0, 2]])
    for split_k in (None, 4):
        first, second = (check(indices, 4, 17, 33, 20, torch.float32, True, False, split_k) for _ in range(2))
        assert torch.equal(first, second)


def test_split_parts():
    assert split_parts(29_120, 768, 192, Gemm(128, 128, 64, 8, 3)) == 11
