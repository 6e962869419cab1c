"""Weight gradients of both layers, and the first bias's, against the dense formula in float64."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import dexcore.kernels.expert_wgrad as module
from assertions import assert_close
from dexcore.kernels.configs import MULTIPROCESSORS, Gemm
from dexcore.kernels.expert_wgrad import Product, Split, expert_wgrad, expert_wgrad_flops, split_of
from dexcore.kernels.plan import PlanShape
from kernels.expert_rows import in_rows, plan_of, routings
from kernels.far_memory import Launch, far
from kernels.memory_check import check_memory

SMALL = Gemm(32, 16, 16, 4, 1)
DESCRIBED = SMALL._replace(described=True)  # for columns of whole 16 bytes
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
BLOCK_M = 32
UNCUT = Split(0, 0)
BY_TWO = Split(2, 1000)
INF = float("inf")

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")


def make_slots(indices, tokens, p, q, dtype, seed=0):
    """left [S, N, P] and right [S, N, Q]."""
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(indices.numel(), tokens, columns, generator=g).to(dtype) for columns in (p, q)]


def dense(of_slots, indices, experts, dtype):
    """Every expert's left^T right, and the sums of left's columns, computed in ``dtype``."""
    left, right = (t.to(dtype) for t in of_slots)
    out = left.new_zeros(experts, left.shape[2], right.shape[2])
    sums = left.new_zeros(experts, left.shape[2])
    for expert in range(experts):
        its = indices.reshape(-1) == expert
        out[expert] = left[its].flatten(0, 1).t() @ right[its].flatten(0, 1)
        sums[expert] = left[its].sum((0, 1))
    return out, sums


def call(first, second, indices, experts, dtype=torch.float32, config=SMALL, bias=True, split=UNCUT, block_m=BLOCK_M):
    """Of the slots' operands, either of which may be None."""
    given = next(of_slots for of_slots in (first, second) if of_slots is not None)
    plan = plan_of(indices, experts, given[0].shape[1], block_m)
    if split is BY_TWO:  # as many as there can be
        split = Split(2, plan.tiles.numel() // 2)
    first, second = (
        None if of_slots is None else Product(*(in_rows(plan, t) for t in of_slots)) for of_slots in (first, second)
    )
    return expert_wgrad(first, second, plan, dtype, "ieee", config, 4, bias=bias, split=split)


def check(indices, experts, tokens, p, q, compute, parameter=None, config=SMALL, split=UNCUT, block_m=BLOCK_M, seed=0):
    """Both products [P, Q] and [Q, P] and the sums, by what plain PyTorch reaches with the parameter's roundings."""
    parameter = parameter or compute
    first = make_slots(indices, tokens, p, q, compute, seed)
    second = make_slots(indices, tokens, q, p, compute, seed + 1)
    grad, grad2, sums = call(first, second, indices, experts, parameter, config, split=split, block_m=block_m)
    truth, truth_sums = dense(first, indices, experts, torch.float64)
    truth2, _ = dense(second, indices, experts, torch.float64)
    plain, plain_sums = dense(first, indices, experts, parameter)
    plain2, _ = dense(second, indices, experts, parameter)
    for name, found, exact, theirs in (
        ("first", grad, truth, plain),
        ("second", grad2, truth2, plain2),
        ("sums", sums, truth_sums, plain_sums),
    ):
        assert found.dtype == parameter
        assert_close(found, exact, plain=theirs, name=name)
    return grad, grad2, sums


@given(
    routings(),
    st.integers(1, 17),
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from(DTYPES),
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, UNCUT, BY_TWO]),
)
def test_it_is_left_transposed_times_right_over_every_experts_rows(
    routing, tokens, p, q, compute, float32_parameter, described, split
):
    indices, experts = routing
    if described:
        p, q = (-(-size // 8) * 8 for size in (p, q))
    parameter = torch.float32 if float32_parameter else compute
    config = DESCRIBED if described else SMALL
    found = check(indices, experts, tokens, p, q, compute, parameter, config, split)
    idle = [expert for expert in range(experts) if not (indices == expert).any()]
    assert all((grad[idle] == 0).all() for grad in found)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("config", [SMALL, DESCRIBED])
def test_one_expert_with_all_images_is_summed_in_parts(dtype, config):
    """52 rows are four tiles of 16, hence two parts."""
    check(torch.full((4, 1), 1), 3, 13, 40, 24, dtype, config=config, split=BY_TWO, block_m=16)


@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 50])
@pytest.mark.parametrize("block_k", [16, 32])
def test_tiles_of_rows_are_whole_steps(tokens, block_k):
    indices = torch.tensor([[0, 1], [2, 0], [0, 2]])
    check(indices, 4, tokens, 20, 12, torch.float32, config=Gemm(16, 16, block_k, 4, 1))


@pytest.mark.parametrize("block_k", [32, 64])
def test_steps_that_do_not_divide_the_plans_tiles_are_refused(block_k):
    indices = torch.tensor([[0, 1]])
    of_slots = make_slots(indices, 5, 16, 16, torch.float32)
    with pytest.raises(ValueError, match="block_k must divide the plan's block_m, 16, got Gemm"):
        call(of_slots, None, indices, 2, config=Gemm(16, 16, block_k, 4, 1), block_m=16)


@pytest.mark.parametrize(("p", "q"), [(88, 40), (304, 16)])
@pytest.mark.parametrize("described", [False, True])
def test_every_tile_of_a_wide_gradient_is_computed(p, q, described):
    """More tiles down than a group has."""
    config = Gemm(16, 16, 32, 4, 1, described)
    check(torch.tensor([[0], [1], [0]]), 2, 5, p, q, torch.float32, config=config)


@pytest.mark.parametrize("config", [SMALL, DESCRIBED])
@pytest.mark.parametrize("split", [None, UNCUT, BY_TWO])
def test_without_images_all_is_zero(config, split):
    grads = check(torch.zeros(0, 2, dtype=torch.int64), 3, 5, 24, 16, torch.bfloat16, config=config, split=split)
    assert [grad.shape for grad in grads] == [(3, 24, 16), (3, 16, 24), (3, 24)]


@pytest.mark.parametrize("config", [SMALL, DESCRIBED])
@pytest.mark.parametrize("split", [UNCUT, BY_TWO])
def test_a_product_alone_is_what_it_is_beside_the_other(config, split):
    indices = torch.tensor([[0, 2], [0, 1], [0, 2]])
    first, second = (make_slots(indices, 17, *shape, torch.float16) for shape in ((24, 40), (40, 24)))
    settings = {"config": config, "split": split}
    both = call(first, second, indices, 4, **settings)
    alone, nothing, sums = call(first, None, indices, 4, **settings)
    assert nothing is None
    assert torch.equal(alone, both[0])
    assert torch.equal(sums, both[2])
    nothing, alone, no_sums = call(None, second, indices, 4, **settings)
    assert nothing is None
    assert no_sums is None
    assert torch.equal(alone, both[1])
    without = call(first, second, indices, 4, bias=False, **settings)
    assert torch.equal(without[0], both[0])
    assert torch.equal(without[1], both[1])
    assert without[2] is None


@pytest.mark.parametrize("config", [SMALL, DESCRIBED])
def test_both_products_are_one_launch_where_operands_are_described_and_else_two(config):
    indices = torch.tensor([[0, 2], [0, 1]])
    first, second = (make_slots(indices, 5, *shape, torch.float16) for shape in ((24, 40), (40, 24)))
    with check_memory() as memory:
        call(first, second, indices, 4, config=config)
    names = [launch.kernel for launch in memory.launches]
    assert names == ["_plan_kernel"] + ["_expert_wgrad_kernel"] * (1 if config.described else 2)


@pytest.mark.parametrize("split", [UNCUT, BY_TWO])
def test_two_calls_are_bit_equal(split):
    indices = torch.tensor([[0, 2], [0, 1], [0, 2]])
    of_slots = make_slots(indices, 17, 33, 20, torch.float32)
    one, other = (call(of_slots, None, indices, 4, split=split) for _ in range(2))
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[2], other[2])


@pytest.mark.parametrize("split", [UNCUT, BY_TWO])
@pytest.mark.parametrize("config", [SMALL, DESCRIBED])
def test_an_image_of_inf_stays_with_its_experts(config, split):
    """Of three, where a tile of rows holds several images."""
    indices = torch.tensor([[0, 3], [1, 2], [0, 3], [3, 0]])
    first, second = (make_slots(indices, 5, *shape, torch.float32) for shape in ((20, 12), (12, 20)))
    settings = {"config": config, "split": split, "block_m": 16}
    clean = call(first, second, indices, 4, **settings)
    for operand in (*first, *second):
        operand[2:4] = INF  # image 1
    for before, after in zip(clean, call(first, second, indices, 4, **settings), strict=True):
        assert torch.equal(after[[0, 3]], before[[0, 3]])
        assert not after[[1, 2]].isfinite().any()


def test_sums_are_of_the_rounded_operand_in_float32():
    """2,048 and then ones: in float16 alone they would vanish."""
    indices = torch.zeros(64, 1, dtype=torch.int64)
    left = torch.ones(64, 1, 16).half()
    left[0] = 2048
    _, _, sums = call((left, left), None, indices, 1)
    assert (sums == 2048 + 63).all()


def test_an_expert_is_cut_where_it_has_two_parts_worth_of_rows():
    """The module's example: 2, 0, 9 and 1 tiles of rows, part 3; a slot is a tile."""
    rows = {name: re.search(rf"^    {name}  +((?:\d +)+)", module.__doc__, re.MULTILINE) for name in ("expert", "unit")}
    assert [row.group(1).split() for row in rows.values()] == [list("222031"), list("012345")]
    indices = torch.tensor([2] * 5 + [0, 3] + [2] * 4 + [0]).view(12, 1)
    of_slots = make_slots(indices, 16, 20, 12, torch.float32)
    plan = plan_of(indices, 4, 16, 16)
    assert plan.longest.tolist() == [2, 0, 3, 1]
    assert plan.tile_starts.diff().tolist() == [2, 0, 9, 1]
    with check_memory() as memory:
        grad, _, sums = call(of_slots, None, indices, 4, split=Split(3, plan.tiles.numel() // 3), block_m=16)
        memory.assert_written(grad, sums)
    gemm, total = memory.launches[-2:]
    elements = 20 * 12 + 20
    assert gemm.grid == ((4 + plan.tiles.numel() // 3) * 1 * 1,)
    assert gemm.traffic["workspace_ptr"].unique_written == 3 * elements * 4
    assert gemm.traffic["grad_ptr"].unique_written == 3 * 20 * 12 * 4
    assert total.traffic["workspace_ptr"].unique_read == 3 * elements * 4
    assert total.traffic["grad_ptr"].unique_written == 20 * 12 * 4
    truth, truth_sums = dense(of_slots, indices, 4, torch.float64)
    assert_close(grad, truth)
    assert_close(sums, truth_sums)


def paper_plan(experts=8):
    """Of its batch: 448 slots of 65 tokens."""
    shape = PlanShape(224, 2, experts, 65, 128)
    return shape.view(torch.zeros(shape.elements, dtype=torch.int32))


@pytest.mark.parametrize(
    ("d", "config", "parts"),
    [(192, Gemm(128, 128, 64, 8, 3), 5), (384, Gemm(128, 128, 64, 8, 3), 1), (768, Gemm(128, 256, 64, 8, 4), 1)],
)
def test_experts_are_cut_as_the_table_says(d, config, parts):
    plan = paper_plan()
    split = split_of(plan, [(4 * d, d), (d, 4 * d)], config, MULTIPROCESSORS["sm_90"])
    assert split == Split.into(parts, plan, config)
    if parts == 1:
        assert split == UNCUT
    else:
        assert split == Split(448 * 65 // 128 // parts, parts)
        of_one, of_two = 448 * 65 // 8 // 128, 448 * 65 // 2 // 128  # tiles of rows in even use, and of two experts
        assert (of_one // split.part, of_two // split.part) == (0, 2)


@pytest.mark.parametrize(("d", "tiles", "waves"), [(192, 24, 2), (384, 72, 5), (768, 144, 9)])
def test_the_tables_waves_are_counted_by_hand(d, tiles, waves):
    config = Gemm(128, 256, 64, 8, 4) if d == 768 else Gemm(128, 128, 64, 8, 3)
    assert module._tiles(4 * d, d, config) + module._tiles(d, 4 * d, config) == tiles
    assert -(-8 * tiles // 132) == waves


def test_experts_are_cut_in_even_use_where_that_saves_a_tenth():
    """17 tiles are 136 programs, two waves of 57 steps; cut in three, 408 programs are four of 19 and 6."""
    plan, config = paper_plan(), Gemm(128, 128, 64, 8, 3)
    assert split_of(plan, [(17 * 128, 128)], config, 132) == Split.into(3 * 8, plan, config)
    assert split_of(plan, [(16 * 128, 128)], config, 132) == Split.into(132 // 16, plan, config)  # one wave


def test_short_experts_are_not_cut():
    shape = PlanShape(4, 1, 1, 65, 128)
    plan = shape.view(torch.zeros(shape.elements, dtype=torch.int32))
    config = Gemm(128, 128, 64, 8, 3)
    assert split_of(plan, [(768, 192)], config, 132) == UNCUT
    assert split_of(paper_plan(1), [(768, 192)], config, 132).part == 29_120 // 128 // (132 // 12)
    assert Split.into(1, paper_plan(), config) == UNCUT
    assert Split.into(10**6, paper_plan(), config).part == 8 * 64 // 128  # eight steps at least


def test_nothing_is_cut_where_there_are_no_images():
    shape = PlanShape(0, 2, 8, 65, 128)
    plan = shape.view(torch.zeros(shape.elements, dtype=torch.int32))
    assert split_of(plan, [(768, 192), (192, 768)], Gemm(128, 128, 64, 8, 3), 132) == UNCUT


def test_its_work_is_counted_by_the_paper():
    assert expert_wgrad_flops(224, 65, 2, 3072, 768) == 2 * 29120 * 768 * 3072  # 137 GFLOP


FAR = 2**25  # a row of 64 columns from here on lies beyond 2^31 elements


def far_launch(split=UNCUT, number=0):
    """Sixteen tokens on one expert, a launch of one product with sums, and they in float64."""
    indices = torch.tensor([[0]])
    of_slots = make_slots(indices, 16, 64, 64, torch.float16)
    config = Gemm(16, 16, 16, 4, 1)
    launch = Launch(module, lambda: call(of_slots, None, indices, 1, config=config, split=split, block_m=16), number)
    return [t[0] for t in of_slots], launch, [t[0] for t in dense(of_slots, indices, 1, torch.float64)]


def test_operands_may_have_more_than_two_to_the_31_elements(tmp_path):
    """The last of 2^21 + 1 tiles of rows."""
    (left, right), launch, (truth, sums) = far_launch()
    tile = FAR // 16
    rows = {name: far(tmp_path / name, FAR + 16, 64) for name in ("left", "right")}
    rows["left"][FAR:], rows["right"][FAR:] = left, right
    grad, grad_sums = torch.zeros(64, 64), torch.zeros(64)
    tile_starts = torch.tensor([tile, tile + 1]).int()
    launch.run(0, **rows, grad_ptr=grad, sums_ptr=grad_sums, tile_starts_ptr=tile_starts)
    assert_close(grad[:16, :16], truth[:16, :16])
    assert_close(grad_sums[:16], sums[:16])


def test_gradients_may_have_more_than_two_to_the_31_elements(tmp_path):
    """The last of 2^19 + 1 experts of 64 x 64."""
    _, launch, (truth, _) = far_launch()
    expert = FAR // 64
    grad, sums = far(tmp_path / "grad", expert + 1, 64, 64), far(tmp_path / "sums", expert + 1, 64)
    tile_starts = far(tmp_path / "tile starts", expert + 2, dtype=torch.int32)
    tile_starts[expert + 1] = 1
    longest = torch.tensor([expert]).int()
    launch.run(0, grad_ptr=grad, sums_ptr=sums, tile_starts_ptr=tile_starts, longest_ptr=longest)
    assert_close(grad[expert, :16, :16], truth[:16, :16])


def test_the_workspace_may_have_more_than_two_to_the_31_elements(tmp_path):
    """An expert cut into 2^20 parts of a tile, and the last of its parts; then two parts behind so many."""
    (left, right), launch, (truth, sums) = far_launch(Split(1, 2))
    parts = 2**20
    rows = {name: far(tmp_path / name, parts * 16, 64) for name in ("left", "right")}
    rows["left"][-16:], rows["right"][-16:] = left, right
    workspace = far(tmp_path / "workspace", parts + 2, 64 * 64 + 64, dtype=torch.float32)
    tile_starts = torch.tensor([0, parts]).int()
    launch.run((parts - 1) * 16, **rows, workspace_ptr=workspace, tile_starts_ptr=tile_starts)
    part, part_sums = workspace[parts - 1].split([64 * 64, 64])
    assert_close(part.view(64, 64)[:16, :16], truth[:16, :16])
    assert_close(part_sums[:16], sums[:16])

    _, launch, _ = far_launch(Split(1, 2), number=1)
    workspace[parts:, :1024] = torch.randn(2, 1024)
    expert = FAR // 64
    grad = far(tmp_path / "grad", expert + 1, 64, 64)
    tile_starts = far(tmp_path / "tile starts", expert + 2, dtype=torch.int32)
    tile_starts[1], tile_starts[expert], tile_starts[expert + 1] = parts, parts, parts + 2
    tables = {"tile_starts_ptr": tile_starts, "longest_ptr": torch.tensor([0, expert]).int(), "R": 2, "R_BLOCK": 2}
    blocks = 64 * 64 // 1024 + 1
    launch.run(blocks, **tables, workspace_ptr=workspace, grad_ptr=grad)
    assert_close(grad[expert].view(-1)[:1024], workspace[parts:, :1024].double().sum(0))
