import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from assertions import assert_close
from dexcore.kernels.configs import Gemm
from dexcore.kernels.expert_dact import _part, expert_dact
from dexcore.kernels.plan import make_plan
from ops.plain import ACTIVATIONS

SMALL = Gemm(block_m=16, block_n=32, block_k=16, warps=4, stages=1)
IN_PARTS = Gemm(block_m=32, block_n=64, block_k=16, warps=1, stages=1)  # one warp: the epilogue takes 16 columns
DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# Of the interpreter's NumPy, where an Inf is meant.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")


def make_case(indices, experts, tokens, width, hidden, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    batch, top_k = indices.shape
    return (
        torch.randn(batch, tokens, width, generator=g).to(dtype),
        (torch.randn(experts, width, hidden, generator=g) * width**-0.5).to(dtype),
        torch.randn(batch * top_k * tokens, hidden, generator=g).to(dtype),
        torch.rand(batch, top_k, generator=g).softmax(-1),
    )


def run(case, indices, activation="gelu", config=SMALL, keep_a=True):
    dy, w2, z, gates = case
    plan = make_plan(indices, w2.shape[0], dy.shape[1], config.block_m)
    return expert_dact(dy, w2, z, gates, plan, activation, "ieee", config, keep_a=keep_a)


def dense(case, indices, activation, dtype):
    """dz, wa, each slot's rows in expert order, and act(z) u, by autograd, computed in ``dtype``."""
    dy, w2, z, gates = case
    tokens, top_k = dy.shape[1], indices.shape[1]
    slots = indices.reshape(-1).sort(stable=True)[1]
    slots_of_rows = slots.repeat_interleave(tokens)
    u = torch.cat([dy[slot // top_k].to(dtype) @ w2[indices.view(-1)[slot]].to(dtype) for slot in slots])
    z = z.to(dtype).requires_grad_()
    a = ACTIVATIONS[activation](z)
    gate = gates.reshape(-1)[slots_of_rows].to(dtype)[:, None]
    (dz,) = torch.autograd.grad(a, z, gate * u)
    return dz, (gate * a).detach(), (a * u).detach()


def in_tiles(rows_of_experts, block_m):
    """The rows of each tile: an expert's, in runs of at most ``block_m``."""
    tiles, first = [], 0
    for rows in rows_of_experts:
        tiles += [slice(first + r, first + min(r + block_m, rows)) for r in range(0, rows, block_m)]
        first += rows
    return tiles


def check(case, indices, activation="gelu", config=SMALL):
    dy, w2 = case[:2]
    hidden = w2.shape[2]
    dz, wa, bias_parts, gate_parts = run(case, indices, activation, config)
    truth = dense(case, indices, activation, torch.float64)
    plain = dense(case, indices, activation, dy.dtype)
    assert dz.dtype == wa.dtype == dy.dtype
    assert bias_parts.dtype == gate_parts.dtype == torch.float32
    assert_close(dz, truth[0], plain=plain[0], name="dz")
    assert_close(wa, truth[1], plain=plain[1], name="wa")

    counts = indices.view(-1).bincount(minlength=w2.shape[0]).tolist()
    tiles = in_tiles([count * dy.shape[1] for count in counts], config.block_m)
    bias_truth = torch.stack([truth[0][rows].sum(0) for rows in tiles])
    assert_close(bias_parts[: len(tiles)], bias_truth, bound=2e-5, name="bias_parts")
    columns = [slice(h, h + config.block_n) for h in range(0, hidden, config.block_n)]
    gate_truth = torch.stack([truth[2][:, part].sum(1) for part in columns])
    assert_close(gate_parts, gate_truth, bound=2e-5, name="gate_parts")


@given(st.data())
def test_it_agrees_with_autograd_on_drawn_shapes_and_routings(data):
    experts = data.draw(st.integers(1, 6), "experts")
    top_k = data.draw(st.integers(1, min(experts, 4)), "k")
    batch = data.draw(st.integers(1, 4), "images")
    used = data.draw(st.integers(top_k, experts), "experts with images, at most")
    chosen = st.permutations(range(used)).map(lambda order: order[:top_k])
    indices = torch.tensor(data.draw(st.lists(chosen, min_size=batch, max_size=batch), "indices"))
    tokens, width, hidden = (data.draw(st.integers(1, most)) for most in (17, 40, 50))
    activation = data.draw(st.sampled_from(list(ACTIVATIONS)), "activation")
    dtype = data.draw(st.sampled_from(DTYPES), "dtype")
    config = data.draw(st.sampled_from((SMALL, IN_PARTS)), "config")
    check(make_case(indices, experts, tokens, width, hidden, dtype), indices, activation, config)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_and_dtype_with_idle_experts_and_ragged_tails(activation, dtype):
    indices = torch.tensor([[3, 1], [1, 5], [5, 1]])
    check(make_case(indices, 6, 7, 35, 45, dtype), indices, activation)


def test_all_images_on_one_expert():
    indices = torch.full((4, 1), 2)
    check(make_case(indices, 4, 17, 24, 40), indices)


def test_one_image_of_one_token():
    indices = torch.tensor([[1]])
    check(make_case(indices, 2, 1, 1, 1), indices)


def test_more_row_tiles_than_a_group():
    indices = torch.tensor([[0, 1]] * 4)
    check(make_case(indices, 2, 50, 8, 70), indices)  # 26 tiles of rows, 3 of columns


@pytest.mark.parametrize("config", [IN_PARTS, Gemm(32, 64, 32, 4, 1), Gemm(64, 32, 32, 1, 1)])
def test_other_tiles_give_the_same(config):
    indices = torch.tensor([[0, 2], [2, 1]])
    check(make_case(indices, 3, 9, 30, 70), indices, config=config)


def test_an_epilogue_in_parts_is_what_it_says():
    assert _part(IN_PARTS) == 16
    assert _part(SMALL) == SMALL.block_n


def test_zero_images_give_empty_results():
    indices = torch.empty((0, 2), dtype=torch.int64)
    dz, wa, bias_parts, gate_parts = run(make_case(indices, 4, 5, 8, 40), indices)
    assert dz.shape == wa.shape == (0, 40)
    assert bias_parts.shape == (0, 40)
    assert gate_parts.shape == (2, 0)


def test_a_gate_of_zero_still_has_its_gradient():
    indices = torch.tensor([[0, 1], [1, 2]])
    dy, w2, z, gates = make_case(indices, 3, 5, 12, 20)
    gates[0, 1] = 0.0
    case = (dy, w2, z, gates)
    check(case, indices)
    dz, wa, _, gate_parts = run(case, indices)
    rows = slice(5, 10)  # the sorted slots are (0, 0), (0, 1), (1, 0), (1, 1)
    assert (dz[rows] == 0).all()
    assert (wa[rows] == 0).all()
    assert gate_parts[:, rows].abs().min() > 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_image_of_inf_stays_alone(dtype):
    # Three tokens an image, so that a tile holds rows of several images, and a tail beside them.
    indices = torch.tensor([[0], [0], [1], [1]])
    case = make_case(indices, 2, 3, 35, 45, dtype)
    clean = run(case, indices)
    case[0][1] = float("inf")
    dirty = run(case, indices)
    others = torch.arange(12).div(3, rounding_mode="floor") != 1
    for name, before, after in zip(("dz", "wa"), clean[:2], dirty[:2], strict=True):
        assert torch.equal(before[others], after[others]), name
    assert torch.equal(clean[2][1], dirty[2][1])  # the other expert's tile
    assert torch.equal(clean[3][:, others], dirty[3][:, others])
    assert not dirty[0][3:6].isfinite().any()


def test_an_inf_is_not_mixed_with_the_columns_beyond_the_hidden_width():
    indices = torch.tensor([[0]])
    dy, w2, z, gates = make_case(indices, 1, 2, 4, 5)
    dy[0, 0] = float("inf")
    _, _, _, gate_parts = run((dy, w2.abs(), z.abs(), gates), indices)
    assert gate_parts[0, 0] == float("inf")


def test_it_repeats_bit_for_bit():
    indices = torch.tensor([[3, 1], [1, 0], [0, 1]])
    case = make_case(indices, 4, 7, 20, 40, torch.bfloat16)
    plan = make_plan(indices, 4, 7, SMALL.block_m)
    live = int(plan.tile_starts[-1])
    first, second = run(case, indices), run(case, indices)
    assert torch.equal(first[2][:live], second[2][:live])
    for one, other in zip((*first[:2], first[3]), (*second[:2], second[3]), strict=True):
        assert torch.equal(one, other)


def test_tiles_without_expert_are_left_alone():
    indices = torch.tensor([[0, 1]] * 2)
    bias_parts = run(make_case(indices, 6, 8, 8, 40), indices)[2]
    assert bias_parts.shape[0] == 6  # 32 rows in tiles of 16, and one more for each of four slots
    assert bias_parts[:2].isfinite().all()
    assert bias_parts[2:].isnan().all()


def test_without_keep_a_the_rest_is_the_same():
    indices = torch.tensor([[0, 1], [1, 2]])
    case = make_case(indices, 3, 8, 12, 20, torch.float16)
    dz, wa, bias_parts, gate_parts = run(case, indices, keep_a=False)
    kept = run(case, indices)
    assert wa.shape == (0, 20)
    assert torch.equal(dz, kept[0])
    assert torch.equal(bias_parts[:3], kept[2][:3])
    assert torch.equal(gate_parts, kept[3])
