"""The experts' first layer and the director's, interpreted, against float64."""

from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import dexcore.kernels.expert_up as module
from assertions import assert_close
from dexcore.kernels.configs import Gemm
from dexcore.kernels.expert_order import Input
from dexcore.kernels.expert_up import expert_up, expert_up_bytes, expert_up_flops
from kernels.expert_rows import counts_of, in_rows, in_slots, live, pads, plan_of, routings, whole_tiles
from kernels.far_memory import Launch, far
from kernels.memory_check import check_memory
from ops.plain import ALL_ACTIVATIONS, GATED

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SMALL = Gemm(block_m=32, block_n=32, block_k=32, warps=4, stages=1)
DESCRIBED = SMALL._replace(described=True)  # for D and H of whole steps

# Of the interpreter's NumPy, where an Inf is meant.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")


@dataclass
class Case:
    x: Tensor
    w1: Tensor
    b1: Tensor | None
    dw1: Tensor
    db1: Tensor | None
    gates: Tensor
    indices: Tensor

    @property
    def counts(self):
        return counts_of(self.indices, self.w1.shape[0])

    def plan(self, config=SMALL):
        return plan_of(self.indices, self.w1.shape[0], self.x.shape[1], config.block_m)

    def images(self):
        """Every flat slot's."""
        return torch.arange(len(self.x)).repeat_interleave(self.indices.shape[1])

    def input(self, plan):
        gates = self.gates.reshape(-1, 1).expand(-1, plan.tokens)
        width = self.x.shape[2]
        return Input(
            in_rows(plan, self.x[self.images()]), in_rows(plan, gates), whole_tiles(plan, self.x.reshape(-1, width))
        )


def make_case(
    indices,
    experts=4,
    tokens=5,
    width=20,
    hidden=40,
    dtype=torch.float32,
    bias_dtype=torch.float32,
    activation="gelu",
    seed=0,
):
    columns = 2 * hidden if activation in GATED else hidden
    g = torch.Generator().manual_seed(seed)
    batch, top_k = indices.shape
    return Case(
        x=torch.randn(batch, tokens, width, generator=g).to(dtype),
        w1=(torch.randn(experts, columns, width, generator=g) * width**-0.5).to(dtype),
        b1=None if bias_dtype is None else torch.randn(experts, columns, generator=g).to(bias_dtype),
        dw1=(torch.randn(columns, width, generator=g) * width**-0.5).to(dtype),
        db1=None if bias_dtype is None else torch.randn(columns, generator=g).to(bias_dtype),
        gates=torch.rand(batch, top_k, generator=g).softmax(-1),
        indices=indices,
    )


def launch(case, activation="gelu", config=SMALL, keep_z=True, keep_a=True, director=True):
    plan = case.plan(config)
    return expert_up(
        case.input(plan), case.w1, case.b1, plan, activation, "ieee", config,
        keep_z=keep_z, keep_a=keep_a, director=(case.dw1, case.db1) if director else None,
    )  # fmt: skip


def run(case, activation="gelu", config=SMALL, **keywords):
    """z and wa of the slots [S, N, H], and the director's [B*N, H]; other rows are as it is said."""
    plan = case.plan(config)
    z, wa, director_a = launch(case, activation, config, **keywords)
    if len(wa):
        assert (wa[pads(plan)] == 0).all()
    for rows in (z, wa):
        assert (rows[live(plan) :] == 0).all()
    kept = (keywords.get(name, True) for name in ("keep_z", "keep_a"))
    of_slots = (in_slots(plan, rows) if keep else rows for rows, keep in zip((z, wa), kept, strict=True))
    return *of_slots, None if director_a is None else director_a[: len(case.x) * plan.tokens]


def dense(case, activation, dtype):
    """The same, slot by slot in ``dtype``."""
    x, w1, b1, dw1, db1 = (None if t is None else t.to(dtype) for t in (case.x, case.w1, case.b1, case.dw1, case.db1))
    tokens, columns = x.shape[1], w1.shape[1]
    hidden = columns // 2 if activation in GATED else columns
    z, wa = [x.new_empty(0, tokens, columns)], [x.new_empty(0, tokens, hidden)]
    for gate, image, expert in zip(case.gates.view(-1), case.images(), case.indices.reshape(-1), strict=True):
        z.append(F.linear(x[image], w1[expert], None if b1 is None else b1[expert])[None])
        wa.append((gate * ALL_ACTIVATIONS[activation](z[-1])).to(dtype))
    return torch.cat(z), torch.cat(wa), ALL_ACTIVATIONS[activation](F.linear(x, dw1, db1)).view(-1, hidden)


def check(case, activation="gelu", config=SMALL):
    results = run(case, activation, config)
    truth, plain = dense(case, activation, torch.float64), dense(case, activation, case.x.dtype)
    for name, result, reference, torchs in zip(("z", "wa", "director_a"), results, truth, plain, strict=True):
        assert result.dtype == case.x.dtype
        assert_close(result, reference, plain=torchs, name=name)


@settings(max_examples=15)
@given(st.data())
def test_it_agrees_with_float64_on_drawn_shapes_and_routings(data):
    indices, experts = data.draw(routings())
    described, activation = data.draw(st.booleans()), data.draw(st.sampled_from(tuple(ALL_ACTIVATIONS)))
    sizes = st.sampled_from([32, 64]) if described else st.integers(1, 64)
    case = make_case(
        indices,
        experts,
        tokens=data.draw(st.integers(1, 17)),
        width=data.draw(sizes),
        hidden=data.draw(sizes),
        dtype=data.draw(st.sampled_from(DTYPES)),
        bias_dtype=data.draw(st.sampled_from((None, *DTYPES))),
        activation=activation,
        seed=data.draw(st.integers(0, 99)),
    )
    check(case, activation, DESCRIBED if described else SMALL)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ALL_ACTIVATIONS)
def test_every_activation_in_every_dtype(activation, dtype):
    indices = torch.tensor([[2, 0], [0, 2], [2, 3]])
    check(make_case(indices, tokens=9, width=33, hidden=40, dtype=dtype, activation=activation), activation)


@pytest.mark.parametrize("config", [Gemm(16, 64, 16, 4, 1), Gemm(64, 16, 64, 4, 2), Gemm(128, 128, 64, 8, 3)])
def test_every_tile_gives_the_same(config):
    indices = torch.tensor([[2, 0], [0, 2], [2, 3]])
    check(make_case(indices, tokens=17, width=40, hidden=72), config=config)
    check(make_case(indices, tokens=9, width=64, hidden=64), config=config._replace(described=True))


def test_more_row_tiles_than_run_together():
    # 10 of the plan, of which some have no expert, and 3 of the director: a group of eight and a ragged one.
    case = make_case(torch.tensor([[1, 0], [0, 1], [1, 3]]), tokens=16, width=16, hidden=32)
    config = Gemm(16, 16, 16, 4, 1)
    with check_memory() as memory:
        check(case, config=config)
    assert memory.launches[-1].grid == ((6 + 4 + 3) * 2,)


@pytest.mark.parametrize("expert", [0, 1, 3])
def test_all_images_on_one_expert(expert):
    check(make_case(torch.full((5, 1), expert), tokens=7))


def test_one_image():
    check(make_case(torch.tensor([[3, 1]]), tokens=1))


def test_the_same_expert_twice():
    check(make_case(torch.tensor([[1, 1], [2, 1]])))


def test_without_images_there_is_nothing():
    for config in (SMALL, DESCRIBED):
        z, wa, director_a = launch(make_case(torch.empty(0, 2, dtype=torch.int64), width=32, hidden=64), config=config)
        assert z.shape == wa.shape == director_a.shape == (0, 64)


def test_a_gate_of_zero_leaves_z_and_gives_exact_zeros():
    case = make_case(torch.tensor([[2, 0], [0, 1]]))
    case.gates[1, 0] = 0
    z, wa, _ = run(case)
    z64, _, _ = dense(case, "gelu", torch.float64)
    assert_close(z, z64)
    assert (wa == 0).all(-1).all(-1).tolist() == [False, False, True, False]


def test_what_is_kept_does_not_change_what_is_kept():
    case = make_case(torch.tensor([[2, 0], [0, 1]]), dtype=torch.bfloat16)
    z, wa, director_a = run(case)
    alone_z, no_wa, nothing = run(case, keep_a=False, director=False)
    no_z, alone_wa, with_director = run(case, keep_z=False)
    assert no_z.shape == no_wa.shape == (0, 40)
    assert nothing is None
    assert torch.equal(alone_z, z)
    assert torch.equal(alone_wa, wa)
    assert torch.equal(with_director, director_a)


def test_the_director_computes_what_an_expert_with_gate_one_does():
    case = make_case(torch.full((4, 1), 2), tokens=9)
    case = replace(case, dw1=case.w1[2].clone(), db1=case.b1[2].clone(), gates=torch.ones(4, 1))
    _, wa, director_a = run(case)
    assert torch.equal(wa.view(-1, 40), director_a)


@pytest.mark.parametrize("missing", ["b1", "db1"])
def test_the_director_or_the_experts_alone_may_have_biases(missing):
    check(replace(make_case(torch.tensor([[2, 0], [0, 1]])), **{missing: None}))


def test_biases_may_differ_in_dtype():
    case = make_case(torch.tensor([[2, 0], [0, 1]]))
    check(replace(case, b1=case.b1.bfloat16(), db1=case.db1.double()))


@pytest.mark.parametrize("top_k", [1, 3])
def test_an_image_full_of_infinities_stays_alone(top_k):
    indices = torch.tensor([[2, 0, 1], [0, 2, 3], [2, 3, 0], [0, 1, 2]])[:, :top_k]
    case = make_case(indices)
    clean = run(case)
    case.x[1] = float("inf")
    spoilt = run(case)
    of_slots, of_images = case.images() == 1, torch.arange(4).repeat_interleave(5) == 1
    for before, after, its in zip(clean, spoilt, (of_slots, of_slots, of_images), strict=True):
        assert torch.equal(after[~its], before[~its])
        assert not after[its].isfinite().all(-1).any()


@pytest.mark.parametrize(("width", "hidden", "config"), [(20, 40, SMALL), (32, 32, SMALL), (32, 96, DESCRIBED)])
def test_the_weights_of_an_expert_reach_its_own_rows_alone(width, hidden, config):
    case = make_case(torch.tensor([[2, 0], [0, 1], [2, 1]]), width=width, hidden=hidden)
    clean = run(case, config=config)
    case.w1[1] = float("nan")
    case.w1[3] = float("nan")  # idle
    case.b1[1] = case.b1[3] = float("inf")
    spoilt = run(case, config=config)
    its = case.indices.view(-1) == 1
    for before, after in zip(clean[:2], spoilt[:2], strict=True):
        assert torch.equal(after[~its], before[~its])
        assert after[its].isnan().all()
    assert torch.equal(spoilt[2], clean[2])


@pytest.mark.parametrize("config", [SMALL, DESCRIBED])
@pytest.mark.parametrize("activation", ALL_ACTIVATIONS)
@pytest.mark.parametrize("where", ["w1", "b1"])
def test_rows_without_a_token_are_zero_beside_weights_and_biases_of_inf(config, activation, where):
    case = make_case(torch.tensor([[2, 0], [0, 1], [2, 1]]), width=32, hidden=64, activation=activation)
    getattr(case, where).fill_(float("inf"))
    _, wa, _ = run(case, activation, config)  # which looks at them
    assert not wa.isfinite().any()


def test_z_is_that_of_zeros_where_a_row_has_no_token():
    case = make_case(torch.tensor([[2, 0], [0, 1], [2, 1]]))
    plan = case.plan()
    z, _, _ = launch(case)
    experts = plan.tiles.long().repeat_interleave(plan.block_m)[pads(plan)]
    assert torch.equal(z[pads(plan)], case.b1[experts])


def test_repeated_calls_are_bit_equal():
    case = make_case(torch.tensor([[2, 0], [0, 1]]), dtype=torch.bfloat16)
    for first, second in zip(run(case), run(case), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("indices", [[[2, 0], [0, 1], [2, 1]], [[3], [3]], [[1, 2, 3], [1, 3, 4]]])
@pytest.mark.parametrize(
    ("keep_z", "keep_a", "director"), [(True, True, True), (True, False, False), (False, True, True)]
)
def test_its_memory_traffic_is_what_it_says(indices, keep_z, keep_a, director):
    biases = {"dtype": torch.bfloat16, "bias_dtype": torch.float16}
    kept = {"keep_z": keep_z, "keep_a": keep_a, "director": director}
    for config, width, hidden in ((SMALL, 20, 40), (DESCRIBED, 32, 64)):
        case = make_case(torch.tensor(indices), experts=5, tokens=9, width=width, hidden=hidden, **biases)
        case.db1 = case.db1.float()
        plan = case.plan(config)
        with check_memory() as memory:
            z, wa, director_a = launch(case, config=config, **kept)
            memory.assert_written(z, wa, *((director_a,) if director else ()))
        expected = expert_up_bytes(
            case.counts, plan, width, hidden, 2, bias_itemsize=2, **kept, director_bias_itemsize=4 * director
        )
        assert sum(traffic.unique for traffic in memory.launches[-1].traffic.values()) == expected


def test_a_plan_of_other_tiles_is_refused():
    case = make_case(torch.tensor([[2, 0], [0, 1]]))
    plan = case.plan(Gemm(16, 32, 32, 4, 1))
    with pytest.raises(ValueError, match="block_m must be its plan's, 16, got 32"):
        expert_up(case.input(plan), case.w1, case.b1, plan, "gelu", "ieee", SMALL, keep_z=True)


def test_its_work_is_counted_by_the_paper():
    assert expert_up_flops(224, 65, 768, 3072, 2) == 2 * 29120 * 768 * 3072  # 137 GFLOP
    assert expert_up_flops(224, 65, 768, 3072, 2, director=True) == 2 * 43680 * 768 * 3072


FAR = 2**25  # a row of 64 columns from here on lies beyond 2^31 elements


def far_launch():
    case = make_case(torch.tensor([[0]]), experts=1, tokens=4, width=64, hidden=64, dtype=torch.float16)
    tile = Gemm(16, 64, 64, 4, 1)
    plan = case.plan(tile)
    call = Launch(
        module,
        lambda: expert_up(
            case.input(plan), case.w1, case.b1, plan, "gelu", "ieee", tile, keep_z=True, director=(case.dw1, case.db1)
        ),
    )
    return case, call


@pytest.mark.parametrize("of", ["experts", "director"])
def test_rows_may_have_more_than_two_to_the_31_elements(tmp_path, of):
    """The last of 2^21 + 1 tiles."""
    case, call = far_launch()
    tile = FAR // 16
    x, z, a = (far(tmp_path / name, FAR + 16, 64) for name in ("x", "z", "a"))
    x[FAR : FAR + 4] = case.x[0]
    expected_z, expected_wa, expected_a = dense(case, "gelu", torch.float64)
    if of == "experts":
        tables = {"starts_ptr": torch.tensor([0, 1]).int(), "tile_starts_ptr": torch.tensor([tile, tile + 1]).int()}
        tables |= {"tiles_ptr": far(tmp_path / "tiles", tile + 1, dtype=torch.int32), "expert_tiles": tile + 1}
        gates = far(tmp_path / "gates", FAR + 16, dtype=torch.float32)
        gates[FAR : FAR + 4] = case.gates[0, 0]
        call.run(tile, **tables, row_tiles=tile + 1, x=x, z=z, wa=a, gates_ptr=gates)
        assert_close(z[FAR : FAR + 4], expected_z[0])
        assert_close(a[FAR : FAR + 4], expected_wa[0])
    else:
        call.run(1 + tile, expert_tiles=1, row_tiles=1 + tile + 1, director_x=x, director_a=a)
        assert_close(a[FAR : FAR + 4], expected_a)


def test_weights_may_have_more_than_two_to_the_31_elements(tmp_path):
    """The last of 2^19 + 1 experts of 64 x 64."""
    case, call = far_launch()
    expert = FAR // 64
    w1, b1 = far(tmp_path / "w1", expert + 1, 64, 64), far(tmp_path / "b1", expert + 1, 64)
    w1[expert], b1[expert] = case.w1[0], case.b1[0]
    starts, tile_starts = (far(tmp_path / name, expert + 2, dtype=torch.int32) for name in ("starts", "tile starts"))
    starts[expert + 1] = tile_starts[expert + 1] = 1
    z = torch.zeros(16, 64).half()
    tables = {"starts_ptr": starts, "tile_starts_ptr": tile_starts, "tiles_ptr": torch.tensor([expert]).int()}
    call.run(0, **tables, w1=w1, b1_ptr=b1, z=z)
    assert_close(z[:4], dense(case, "gelu", torch.float64)[0][0])
