"""The backward of the second layer and the activation, against autograd in float64; interpreted."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import dexcore.kernels.expert_dact as module
from assertions import assert_close
from dexcore.kernels.configs import Gemm
from dexcore.kernels.expert_dact import _part, expert_dact, expert_dact_flops
from kernels.expert_rows import in_rows, in_slots, live, pads, plan_of, routings
from kernels.far_memory import Launch, far
from ops.plain import ALL_ACTIVATIONS, GATED

SMALL = Gemm(block_m=16, block_n=32, block_k=16, warps=4, stages=1)
IN_PARTS = Gemm(block_m=32, block_n=64, block_k=16, warps=1, stages=1)  # one warp: the epilogue takes 16 columns
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
INF, NAN = float("inf"), float("nan")

# Of the interpreter's NumPy, where an Inf is meant.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")


def described(config):
    """For D and H of whole steps."""
    return config._replace(described=True)


def make_case(indices, experts, tokens, width, hidden, dtype=torch.float32, activation="gelu", seed=0):
    """dy [B, N, D], W2, z [S, N, C] and the gates."""
    columns = 2 * hidden if activation in GATED else hidden
    g = torch.Generator().manual_seed(seed)
    batch, top_k = indices.shape
    return (
        torch.randn(batch, tokens, width, generator=g).to(dtype),
        (torch.randn(experts, width, hidden, generator=g) * width**-0.5).to(dtype),
        torch.randn(batch * top_k, tokens, columns, generator=g).to(dtype),
        torch.rand(batch, top_k, generator=g).softmax(-1),
    )


def launch(case, indices, plan, activation="gelu", config=SMALL, keep_a=True):
    """Where a row has no token z is NaN."""
    dy, w2, z, gates = case
    dy_rows = in_rows(plan, dy.repeat_interleave(plan.top_k, 0))
    gate_rows = in_rows(plan, gates.view(-1, 1).expand(-1, plan.tokens))
    z_rows = in_rows(plan, z, pad=NAN)
    return expert_dact(dy_rows, w2, z_rows, gate_rows, plan, activation, "ieee", config, keep_a=keep_a)


def run(case, indices, activation="gelu", config=SMALL, keep_a=True):
    """dz, wa [S, N, H] and gate_parts [S, N, P] of the slots; zero in the pads, unwritten where there is no expert."""
    plan = plan_of(indices, case[1].shape[0], case[0].shape[1], config.block_m)
    dz, wa, gate_parts = launch(case, indices, plan, activation, config, keep_a)
    results = (dz, wa, gate_parts.T) if keep_a else (dz, gate_parts.T)
    for rows in results:
        assert (rows[pads(plan)] == 0).all()
        assert rows[live(plan) :].isnan().all()
    return [in_slots(plan, rows) for rows in results]


def dense(case, indices, activation, dtype):
    """dz, wa and act(z) u of the slots, by autograd, computed in ``dtype``."""
    dy, w2, z, gates = case
    images = torch.arange(len(dy)).repeat_interleave(indices.shape[1])
    u = dy[images].to(dtype) @ w2[indices.reshape(-1)].to(dtype)
    z = z.to(dtype).requires_grad_()
    a = ALL_ACTIVATIONS[activation](z)
    gate = gates.view(-1, 1, 1).to(dtype)
    (dz,) = torch.autograd.grad(a, z, gate * u)
    return dz, (gate * a).detach(), (a * u).detach()


def check(case, indices, activation="gelu", config=SMALL):
    dz, wa, gate_parts = run(case, indices, activation, config)
    truth = dense(case, indices, activation, torch.float64)
    plain = dense(case, indices, activation, case[0].dtype)
    assert dz.dtype == wa.dtype == case[0].dtype
    assert gate_parts.dtype == torch.float32
    assert_close(dz, truth[0], plain=plain[0], name="dz")
    assert_close(wa, truth[1], plain=plain[1], name="wa")
    gate_truth = torch.stack([part.sum(-1) for part in truth[2].split(config.block_n, -1)], -1)
    assert_close(gate_parts, gate_truth, bound=2e-5, name="gate_parts")


@given(st.data())
def test_it_agrees_with_autograd_on_drawn_shapes_and_routings(data):
    indices, experts = data.draw(routings(), "indices and experts")
    if not len(indices):
        return
    config = data.draw(st.sampled_from((SMALL, IN_PARTS, described(SMALL), described(IN_PARTS))), "config")
    sizes = st.sampled_from([16, 48]) if config.described else st.integers(1, 50)
    tokens, width, hidden = data.draw(st.integers(1, 17)), data.draw(sizes), data.draw(sizes)
    activation = data.draw(st.sampled_from(list(ALL_ACTIVATIONS)), "activation")
    dtype = data.draw(st.sampled_from(DTYPES), "dtype")
    check(make_case(indices, experts, tokens, width, hidden, dtype, activation), indices, activation, config)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ALL_ACTIVATIONS)
def test_every_activation_and_dtype_with_idle_experts_and_ragged_tails(activation, dtype):
    indices = torch.tensor([[3, 1], [1, 5], [5, 1]])
    check(make_case(indices, 6, 7, 35, 45, dtype, activation), indices, activation)


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
    check(make_case(indices, 3, 9, 32, 96), indices, config=described(config))
    check(make_case(indices, 3, 9, 30, 70, activation="swiglu"), indices, "swiglu", config)


def test_an_epilogue_in_parts_is_what_it_says():
    assert (_part(IN_PARTS, False), _part(IN_PARTS, True)) == (16, 8)
    assert _part(SMALL, False) == _part(SMALL, True) == SMALL.block_n


@pytest.mark.parametrize("config", [SMALL, described(SMALL)])
def test_zero_images_give_empty_results(config):
    indices = torch.empty((0, 2), dtype=torch.int64)
    case = make_case(indices, 4, 5, 16, 48)
    dz, wa, gate_parts = launch(case, indices, plan_of(indices, 4, 5, 16), config=config)
    assert dz.shape == wa.shape == (0, 48)
    assert gate_parts.shape == (2, 0)


def test_a_gate_of_zero_still_has_its_gradient():
    indices = torch.tensor([[0, 1], [1, 2]])
    case = make_case(indices, 3, 5, 12, 20)
    case[3][0, 1] = 0.0
    check(case, indices)
    dz, wa, gate_parts = run(case, indices)
    assert (dz[1] == 0).all()
    assert (wa[1] == 0).all()
    assert gate_parts[1].abs().min() > 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_image_of_inf_stays_alone(dtype):
    # Three tokens an image, so that a tile holds rows of several images, and a tail beside them.
    indices = torch.tensor([[0], [0], [1], [1]])
    case = make_case(indices, 2, 3, 35, 45, dtype)
    clean = run(case, indices)
    case[0][1] = INF
    dirty = run(case, indices)
    for name, before, after in zip(("dz", "wa", "gate_parts"), clean, dirty, strict=True):
        assert torch.equal(before[[0, 2, 3]], after[[0, 2, 3]]), name
    assert not dirty[0][1].isfinite().any()


def test_an_inf_is_not_mixed_with_the_columns_beyond_the_hidden_width():
    indices = torch.tensor([[0]])
    dy, w2, z, gates = make_case(indices, 1, 2, 4, 5)
    dy[0, 0] = INF
    _, _, gate_parts = run((dy, w2.abs(), z.abs(), gates), indices)
    assert gate_parts[0, 0] == INF


@pytest.mark.parametrize("config", [SMALL, IN_PARTS, described(SMALL)])
@pytest.mark.parametrize("activation", ALL_ACTIVATIONS)
def test_rows_without_a_token_are_zero_beside_weights_of_inf_and_any_z(config, activation):
    indices = torch.tensor([[2, 0], [0, 1]])
    case = make_case(indices, 4, 5, 32, 64, activation=activation)
    case[1].fill_(INF)
    dz, _, gate_parts = run(case, indices, activation, config)  # which looks at them
    assert not gate_parts.isfinite().any()
    assert activation == "relu" or not dz.isfinite().any()


@pytest.mark.parametrize("config", [SMALL, described(SMALL)])
def test_the_weights_of_an_expert_reach_its_own_rows_alone(config):
    indices = torch.tensor([[2, 0], [0, 1], [2, 1]])
    case = make_case(indices, 4, 5, 32, 64)
    clean = run(case, indices, config=config)
    case[1][1] = case[1][3] = NAN
    its = indices.view(-1) == 1
    for before, after in zip(clean, run(case, indices, config=config), strict=True):
        assert torch.equal(after[~its], before[~its])


def test_it_repeats_bit_for_bit():
    indices = torch.tensor([[3, 1], [1, 0], [0, 1]])
    case = make_case(indices, 4, 7, 20, 40, torch.bfloat16)
    for one, other in zip(run(case, indices), run(case, indices), strict=True):
        assert torch.equal(one, other)


def test_without_keep_a_the_rest_is_the_same():
    indices = torch.tensor([[0, 1], [1, 2]])
    case = make_case(indices, 3, 8, 12, 20, torch.float16)
    dz, gate_parts = run(case, indices, keep_a=False)
    kept = run(case, indices)
    assert torch.equal(dz, kept[0])
    assert torch.equal(gate_parts, kept[2])
    assert launch(case, indices, plan_of(indices, 3, 8, 16), keep_a=False)[1].shape == (0, 20)


def test_its_work_is_counted_by_the_paper():
    assert expert_dact_flops(224, 65, 768, 3072, 2) == 2 * 29120 * 768 * 3072  # 137 GFLOP


def test_a_plan_of_other_tiles_is_refused():
    indices = torch.tensor([[0, 1], [1, 2]])
    case = make_case(indices, 3, 8, 12, 20)
    with pytest.raises(ValueError, match="block_m must be its plan's, 32, got 16"):
        launch(case, indices, plan_of(indices, 3, 8, 32))


FAR = 2**25  # a row of 64 columns from here on lies beyond 2^31 elements


def far_launch(hidden=64):
    """Four tokens on one expert, the kernel, and dz, wa and gate_parts in float64."""
    indices = torch.tensor([[0]])
    case = make_case(indices, 1, 4, 64, hidden, torch.float16)
    plan = plan_of(indices, 1, 4, 16)
    call = Launch(module, lambda: launch(case, indices, plan, config=Gemm(16, 64, 64, 4, 1)))
    return case, call, [truth[0] for truth in dense(case, indices, "gelu", torch.float64)]


def test_rows_may_have_more_than_two_to_the_31_elements(tmp_path):
    """The last of 2^21 + 1 tiles."""
    case, call, (dz, wa, products) = far_launch()
    tile = FAR // 16
    rows = {name: far(tmp_path / name, FAR + 16, 64) for name in ("dy", "z_ptr", "dz", "wa")}
    rows["dy"][FAR : FAR + 4], rows["z_ptr"][FAR : FAR + 4] = case[0][0], case[2][0]
    gates = far(tmp_path / "gates", FAR + 16, dtype=torch.float32)
    gates[FAR : FAR + 4] = case[3][0, 0]
    gate_parts = far(tmp_path / "parts", FAR + 16, dtype=torch.float32)
    tables = {"starts_ptr": torch.tensor([0, 1]).int(), "tile_starts_ptr": torch.tensor([tile, tile + 1]).int()}
    tables |= {"tiles_ptr": far(tmp_path / "tiles", tile + 1, dtype=torch.int32), "num_tiles": tile + 1}
    call.run(tile, **tables, **rows, gates_ptr=gates, gate_parts_ptr=gate_parts)
    assert_close(rows["dz"][FAR : FAR + 4], dz)
    assert_close(rows["wa"][FAR : FAR + 4], wa)
    assert_close(gate_parts[FAR : FAR + 4], products.sum(-1), bound=1e-4)


def test_weights_may_have_more_than_two_to_the_31_elements(tmp_path):
    """The last of 2^19 + 1 experts of 64 x 64."""
    case, call, (dz, _, _) = far_launch()
    expert = FAR // 64
    w2 = far(tmp_path / "w2", expert + 1, 64, 64)
    w2[expert] = case[1][0]
    starts, tile_starts = (far(tmp_path / name, expert + 2, dtype=torch.int32) for name in ("starts", "tile starts"))
    starts[expert + 1] = tile_starts[expert + 1] = 1
    out = torch.zeros(16, 64).half()
    tables = {"starts_ptr": starts, "tile_starts_ptr": tile_starts, "tiles_ptr": torch.tensor([expert]).int()}
    call.run(0, **tables, w2=w2, dz=out)
    assert_close(out[:4], dz)


def test_gate_parts_may_have_more_than_two_to_the_31_elements(tmp_path):
    """The fifth tile of columns, of 2^29 rows. Groups have eight tiles of rows."""
    _, call, (_, _, products) = far_launch(hidden=320)
    tiles = 2**25 + 1
    parts = far(tmp_path / "parts", 5, tiles * 16, dtype=torch.float32)
    call.run(4 * 8, num_tiles=tiles, gate_parts_ptr=parts)
    assert_close(parts[4, :4], products[:, 256:].sum(-1), bound=1e-4)
