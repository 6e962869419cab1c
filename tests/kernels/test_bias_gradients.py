import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from assertions import assert_close
from dexcore.kernels.bias_gradients import bias1_gradient, bias2_gradient, gate_gradient, token_sums
from dexcore.kernels.plan import make_plan

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def normal(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@st.composite
def routings(draw):
    """indices [B, k] and R; experts without images are likely."""
    experts = draw(st.integers(1, 6))
    top_k = draw(st.integers(1, min(experts, 4)))
    used = draw(st.integers(top_k, experts))
    chosen = st.permutations(range(used)).map(lambda order: order[:top_k])
    return torch.tensor(draw(st.lists(chosen, min_size=1, max_size=4))), experts


COLLAPSED = (torch.full((80, 1), 2), 4)
NO_IMAGES = (torch.empty((0, 2), dtype=torch.int64), 3)


def check_token_sums(batch, tokens, width, dtype):
    dy = normal(batch, tokens, width, dtype=dtype)
    sums = token_sums(dy)
    assert sums.dtype == torch.float32
    assert_close(sums, dy.double().sum(1), plain=dy.float().sum(1))


@given(st.integers(0, 4), st.integers(1, 70), st.integers(1, 150), st.sampled_from(DTYPES))
def test_token_sums_of_drawn_shapes(batch, tokens, width, dtype):
    check_token_sums(batch, tokens, width, dtype)


def test_token_sums_keep_images_apart():
    dy = normal(3, 40, 140)
    clean = token_sums(dy)
    dy[1] = float("inf")
    sums = token_sums(dy)
    assert torch.equal(sums[[0, 2]], clean[[0, 2]])
    assert (sums[1] == float("inf")).all()


def check_bias1(routing, tokens, hidden, dtype, block_m=16):
    indices, experts = routing
    plan = make_plan(indices, experts, tokens, block_m)
    parts = normal(plan.tiles.numel(), hidden)
    starts = plan.tile_starts.tolist()
    parts[starts[-1] :] = float("nan")  # as `expert_dact` leaves it
    grad = bias1_gradient(parts, plan, dtype)
    truth = torch.stack([parts[starts[e] : starts[e + 1]].double().sum(0) for e in range(experts)])
    assert grad.dtype == dtype
    assert_close(grad, truth, plain=truth.to(dtype))
    idle = [e for e in range(experts) if starts[e] == starts[e + 1]]
    assert (grad[idle] == 0).all()


@given(routings(), st.integers(1, 17), st.integers(1, 150), st.sampled_from(DTYPES))
def test_bias1_of_drawn_routings(routing, tokens, hidden, dtype):
    check_bias1(routing, tokens, hidden, dtype)


def test_bias1_of_an_expert_with_more_tiles_than_a_block():
    check_bias1(COLLAPSED, 17, 40, torch.float32)


def test_bias1_of_no_images_is_zero():
    check_bias1(NO_IMAGES, 5, 130, torch.bfloat16)


def check_bias2(routing, width, dtype):
    indices, experts = routing
    plan = make_plan(indices, experts, 3, 16)
    sums = normal(indices.shape[0], width)
    gates = torch.rand(indices.shape)
    grad = bias2_gradient(sums, gates, plan, dtype)
    truth = torch.zeros(experts, width, dtype=torch.float64)
    for b in range(indices.shape[0]):
        for j in range(indices.shape[1]):
            truth[indices[b, j]] += gates[b, j].double() * sums[b].double()
    assert grad.dtype == dtype
    assert_close(grad, truth, plain=truth.to(dtype))
    idle = [e for e in range(experts) if not (indices == e).any()]
    assert (grad[idle] == 0).all()


@given(routings(), st.integers(1, 150), st.sampled_from(DTYPES))
def test_bias2_of_drawn_routings(routing, width, dtype):
    check_bias2(routing, width, dtype)


def test_bias2_of_an_expert_with_more_slots_than_a_block():
    check_bias2(COLLAPSED, 40, torch.float32)


def test_bias2_of_no_images_is_zero():
    check_bias2(NO_IMAGES, 130, torch.float16)


def test_bias2_keeps_an_image_of_inf_within_its_expert():
    indices = torch.tensor([[0], [1], [0]])
    plan = make_plan(indices, 2, 3, 16)
    sums, gates = normal(3, 20), torch.rand(3, 1)
    clean = bias2_gradient(sums, gates, plan, torch.float32)
    sums[1] = float("inf")
    grad = bias2_gradient(sums, gates, plan, torch.float32)
    assert torch.equal(grad[0], clean[0])
    assert (grad[1] == float("inf")).all()


def check_gates(routing, tokens, parts, width, dtype, bias):
    indices, experts = routing
    plan = make_plan(indices, experts, tokens, 16)
    gate_parts = normal(parts, plan.rows)
    sums, b2 = normal(indices.shape[0], width, seed=1), normal(experts, width, dtype=dtype, seed=2)
    grad = gate_gradient(gate_parts, sums if bias else None, b2 if bias else None, plan)
    order = indices.reshape(-1).sort(stable=True)[1].tolist()
    truth = torch.zeros(indices.shape, dtype=torch.float64)
    for place, slot in enumerate(order):
        b, j = slot // indices.shape[1], slot % indices.shape[1]
        truth[b, j] = gate_parts[:, place * tokens : (place + 1) * tokens].double().sum()
        if bias:
            truth[b, j] += b2[indices[b, j]].double() @ sums[b].double()
    assert grad.dtype == torch.float32
    assert_close(grad, truth, bound=2e-5)


@given(
    routings(),
    st.integers(1, 70),
    st.integers(1, 10),
    st.integers(1, 600),
    st.sampled_from(DTYPES),
    st.booleans(),
)
def test_gate_gradients_of_drawn_routings(routing, tokens, parts, width, dtype, bias):
    check_gates(routing, tokens, parts, width, dtype, bias)


@pytest.mark.parametrize("bias", [True, False])
def test_gate_gradients_of_no_images_are_empty(bias):
    check_gates(NO_IMAGES, 5, 2, 8, torch.float32, bias)


def test_gate_gradients_with_64_experts():
    check_gates((torch.tensor([[63, 0], [62, 63], [31, 32]]), 64), 5, 2, 8, torch.float32, True)


def test_gate_gradients_keep_an_image_of_inf_alone():
    indices = torch.tensor([[0], [0], [1]])
    plan = make_plan(indices, 2, 5, 16)
    parts, sums, b2 = normal(9, 15), normal(3, 20), normal(2, 20).abs()
    clean = gate_gradient(parts, sums, b2, plan)
    parts[:, 5:10] = float("inf")
    sums[1] = float("inf")
    grad = gate_gradient(parts, sums, b2, plan)
    assert torch.equal(grad[[0, 2]], clean[[0, 2]])
    assert grad[1] == float("inf")


def test_all_sums_repeat_bit_for_bit():
    indices = torch.tensor([[3, 1], [1, 0], [0, 1]])
    plan = make_plan(indices, 4, 40, 16)
    dy, gates = normal(3, 40, 130), torch.rand(3, 2)
    bias_parts, gate_parts, b2 = normal(plan.tiles.numel(), 50), normal(9, plan.rows), normal(4, 130)
    first, second = (
        (
            sums := token_sums(dy),
            bias1_gradient(bias_parts, plan, torch.bfloat16),
            bias2_gradient(sums, gates, plan, torch.bfloat16),
            gate_gradient(gate_parts, sums, b2, plan),
        )
        for _ in range(2)
    )
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
