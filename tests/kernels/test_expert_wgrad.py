"""Weight gradients, against the dense formula in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from assertions import assert_close
from dexcore.kernels import expert_wgrad as module
from dexcore.kernels.configs import Gemm
from dexcore.kernels.expert_wgrad import expert_wgrad, split_parts
from dexcore.kernels.plan import make_plan
from kernels.memory_check import check_memory

SMALL = Gemm(32, 16, 16, 4, 1)
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
BY_IMAGE = [(False, True), (True, False), (True, True), (False, False)]


def operands(indices, tokens, p, q, dtype, left_by_image, right_by_image, seed=0):
    batch, top_k = indices.shape
    g = torch.Generator().manual_seed(seed)
    rows = {True: batch * tokens, False: batch * top_k * tokens}
    left = torch.randn(rows[left_by_image], p, generator=g).to(dtype)
    right = torch.randn(rows[right_by_image], q, generator=g).to(dtype)
    return left, right


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


def call(left, right, indices, experts, tokens, by_image, dtype=None, split_k=None, config=SMALL):
    plan = make_plan(indices, experts, tokens, 16)
    how = {"left_by_image": by_image[0], "right_by_image": by_image[1], "split_k": split_k}
    return expert_wgrad(left, right, plan, dtype or left.dtype, "ieee", config, **how)


def check(indices, experts, tokens, p, q, compute, by_image, parameter=None, split_k=None, config=SMALL, seed=0):
    """Against float64, by what plain PyTorch reaches with the parameter's roundings."""
    left, right = operands(indices, tokens, p, q, compute, *by_image, seed)
    parameter = parameter or compute
    out = call(left, right, indices, experts, tokens, by_image, parameter, split_k, config)
    case = indices, experts, tokens, *by_image
    assert out.dtype == parameter
    assert_close(
        out, dense(left.double(), right.double(), *case), plain=dense(left.to(parameter), right.to(parameter), *case)
    )
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
    st.booleans(),
    st.sampled_from(BY_IMAGE),
    st.sampled_from([None, 2, 5]),
)
def test_it_is_left_transposed_times_right_over_every_experts_rows(
    routing, tokens, p, q, compute, float32_parameter, by_image, split_k
):
    experts, indices = routing
    parameter = torch.float32 if float32_parameter else compute
    out = check(indices, experts, tokens, p, q, compute, by_image, parameter, split_k)
    idle = [e for e in range(experts) if not (indices == e).any()]
    assert torch.equal(out[idle], torch.zeros(len(idle), p, q, dtype=parameter))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("split_k", [1, 2, 4, 7])
def test_one_expert_with_all_images_is_summed_in_parts(dtype, split_k):
    check(torch.full((4, 1), 1), 3, 13, 40, 20, dtype, (False, True), split_k=split_k)


@pytest.mark.parametrize("tokens", [1, 3, 16, 17, 50])
def test_a_step_may_hold_many_images_or_a_part_of_one(tokens):
    indices = torch.tensor([[0, 1], [2, 0], [0, 2], [1, 0], [0, 2]])
    for by_image in BY_IMAGE:
        check(indices, 4, tokens, 20, 12, torch.float32, by_image, config=Gemm(16, 16, 32, 4, 1))


@pytest.mark.parametrize(("p", "q"), [(90, 40), (300, 17)])
def test_every_tile_of_a_wide_gradient_is_computed(p, q):
    """More tiles down than a group has."""
    check(torch.tensor([[0], [1], [0]]), 2, 5, p, q, torch.float32, (True, False), config=Gemm(16, 16, 16, 4, 1))


@pytest.mark.parametrize("split_k", [None, 4])
def test_without_images_all_is_zero(split_k):
    out = check(torch.zeros(0, 2, dtype=torch.int64), 3, 5, 20, 12, torch.bfloat16, (False, True), split_k=split_k)
    assert out.shape == (3, 20, 12)


@pytest.mark.parametrize("split_k", [None, 4])
def test_two_calls_are_bit_equal(split_k):
    indices = torch.tensor([[0, 2], [0, 1], [0, 2]])
    left, right = operands(indices, 17, 33, 20, torch.float32, True, False)
    first, second = (call(left, right, indices, 4, 17, (True, False), split_k=split_k) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.filterwarnings("ignore:invalid value encountered in matmul:RuntimeWarning")
@pytest.mark.parametrize("split_k", [None, 3])
@pytest.mark.parametrize("by_image", BY_IMAGE)
def test_an_image_of_inf_stays_with_its_experts(by_image, split_k):
    """Its rows end and begin inside of other experts' steps."""
    indices = torch.tensor([[0, 3], [1, 2], [0, 3], [3, 0]])
    left, right = operands(indices, 5, 20, 12, torch.float32, *by_image)
    clean = call(left, right, indices, 4, 5, by_image, split_k=split_k)
    # Flat slots by expert: (0, 0) (2, 0) (3, 1) | (1, 0) | (1, 1) | ..., so image 1 has the sorted slots 3 and 4.
    for operand, mapped in ((left, by_image[0]), (right, by_image[1])):
        slots = operand.unflatten(0, (-1, 5))
        slots[1 if mapped else slice(3, 5)] = float("inf")
    out = call(left, right, indices, 4, 5, by_image, split_k=split_k)
    assert torch.equal(out[[0, 3]], clean[[0, 3]])
    assert not out[[1, 2]].isfinite().any()


def test_an_expert_is_cut_where_it_has_two_parts_worth_of_rows():
    """The module's example."""
    indices = torch.tensor([2, 0, 2, 2, 3, 2, 2, 0, 2, 2, 2, 2]).view(12, 1)
    left, right = operands(indices, 10, 20, 12, torch.float32, False, True)
    with check_memory() as memory:
        out = call(left, right, indices, 4, 10, (False, True), split_k=4)
        memory.assert_written(out)
    gemm, sums = memory.launches[-2:]
    assert gemm.traffic["parts_ptr"].unique_written == 3 * 20 * 12 * 4
    assert gemm.traffic["out_ptr"].unique_written == 3 * 20 * 12 * 4
    assert sums.traffic["out_ptr"].unique_written == 20 * 12 * 4
    assert_close(out, dense(left.double(), right.double(), indices, 4, 10, False, True))


@pytest.mark.parametrize(
    ("rows", "p", "q", "split"),
    [(29_120, 768, 192, 11), (29_120, 1536, 384, 3), (29_120, 3072, 768, 1), (1_100, 768, 192, 2), (0, 192, 768, 1)],
)
def test_few_tiles_are_split_and_many_or_short_ones_are_not(rows, p, q, split):
    assert split_parts(rows, p, q, Gemm(128, 128, 64, 8, 3)) == split


@pytest.mark.parametrize("left_is_large", [True, False])
def test_operands_may_have_more_than_two_to_the_31_elements(tmp_path, left_is_large):
    image = 2**25
    large = torch.from_file(str(tmp_path / "large"), shared=True, size=(image + 1) * 64, dtype=torch.float16)
    large = large.view(image + 1, 64)  # a file of holes
    large[image] = torch.randn(64)
    small = torch.randn(1, 16).half()
    plan = make_plan(torch.zeros(1, 1, dtype=torch.int64), 1, 1, 16)._replace(images=torch.tensor([image]).int())
    left, right = (large, small) if left_is_large else (small, large)
    how = {"left_by_image": left_is_large, "right_by_image": not left_is_large}
    out = expert_wgrad(left, right, plan, torch.float32, "ieee", Gemm(16, 64, 16, 4, 1), **how)
    assert_close(out[0], left[-1].double()[:, None] * right[-1].double())


def test_gradients_may_have_more_than_two_to_the_31_elements(tmp_path):
    """The first tile of the last of 33 experts of 2^13 x 2^13."""
    size = 2**13
    out = torch.from_file(str(tmp_path / "out"), shared=True, size=33 * size * size, dtype=torch.float16)
    left, right = torch.randn(4, size).half(), torch.randn(4, size).half()
    plan = make_plan(torch.full((1, 1), 32), 33, 4, 16)
    module._expert_wgrad_kernel[(1,)](
        *(left, right, out, out, plan.images, plan.starts, plan.longest, 4, 4),
        P=size,
        Q=size,
        R=33,
        R_BLOCK=64,
        SPLIT=False,
        LEFT_BY_IMAGE=False,
        RIGHT_BY_IMAGE=True,
        PRECISION="ieee",
        BLOCK_P=16,
        BLOCK_Q=16,
        BLOCK_K=16,
        GROUP=8,
    )
    tile = out.view(33, size, size)[32, :16, :16]
    assert_close(tile, left[:, :16].double().t() @ right[:, :16].double())


def test_the_workspace_may_have_more_than_two_to_the_31_elements(tmp_path):
    """The first block of 9 parts of 2^28 elements."""
    elements, rows = 2**28, 9
    parts = torch.from_file(str(tmp_path / "parts"), shared=True, size=rows * elements).view(rows, elements)
    out = torch.from_file(str(tmp_path / "out"), shared=True, size=elements, dtype=torch.float16)
    parts[:, :64] = torch.randn(rows, 64)
    plan = make_plan(torch.zeros(rows, 1, dtype=torch.int64), 1, 1, 16)
    module._sum_parts_kernel[(1,)](
        *(parts, out, plan.starts, plan.longest, 1, 1), ELEMENTS=elements, R=1, R_BLOCK=1, BLOCK=64
    )
    assert_close(out[:64], parts[:, :64].double().sum(0))
