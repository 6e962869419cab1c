"""The experts' second layer with the director's, and the gradient of the experts' input; interpreted, in float64."""

import re
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import dexcore.kernels.expert_down as module
from assertions import assert_close
from dexcore.kernels.configs import Gemm
from dexcore.kernels.expert_down import (
    expert_down,
    expert_down_bytes,
    expert_down_flops,
    expert_dx,
    expert_dx_bytes,
    expert_dx_flops,
    mixing_inside,
)
from kernels.expert_rows import counts_of, in_rows, in_slots, live, pads, plan_of, routings, whole_tiles
from kernels.far_memory import Launch, far
from kernels.memory_check import check_memory

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SMALL = Gemm(block_m=32, block_n=32, block_k=32, warps=4, stages=1)
DESCRIBED = SMALL._replace(described=True)  # for D and H of whole steps
THREE_IMAGES = torch.tensor([[2, 0], [0, 1], [2, 1]])  # of four experts, the last idle

# Of the interpreter's NumPy, where an Inf is meant.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")


@dataclass
class Case:
    """Arguments of both launchers: of_slots [S, N, H] are wa or dz, and w1 [R, H, D] is unrelated to w2."""

    of_slots: Tensor
    w2: Tensor
    b2: Tensor | None
    w1: Tensor
    director_a: Tensor
    dw2: Tensor
    db2: Tensor | None
    gates: Tensor
    indices: Tensor
    tokens: int

    @property
    def counts(self):
        return counts_of(self.indices, self.w2.shape[0])

    def plan(self, config=SMALL):
        return plan_of(self.indices, self.w2.shape[0], self.tokens, config.block_m)

    def images(self):
        """Every flat slot's."""
        return torch.arange(len(self.indices)).repeat_interleave(self.indices.shape[1])


def make_case(indices, experts=4, tokens=5, width=20, hidden=40, dtype=torch.float32, bias_dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)

    def normal(*shape, scale=1.0):
        return (torch.randn(*shape, generator=g) * scale).to(dtype)

    def bias(*shape):
        return None if bias_dtype is None else torch.randn(*shape, generator=g).to(bias_dtype)

    return Case(
        of_slots=normal(indices.numel(), tokens, hidden),
        w2=normal(experts, width, hidden, scale=hidden**-0.5),
        b2=bias(experts, width),
        w1=normal(experts, hidden, width, scale=hidden**-0.5),
        director_a=normal(indices.shape[0] * tokens, hidden),
        dw2=normal(width, hidden, scale=hidden**-0.5),
        db2=bias(width),
        gates=torch.rand(indices.shape, generator=g).softmax(-1),
        indices=indices,
        tokens=tokens,
    )


def launch(case, config=SMALL, director=True):
    """o, the director's output, and dx."""
    plan = case.plan(config)
    rows, gates = in_rows(plan, case.of_slots), in_rows(plan, case.gates.reshape(-1, 1).expand(-1, case.tokens))
    director_a = whole_tiles(plan, case.director_a)
    o, teacher = expert_down(
        rows, case.w2, case.b2, gates, plan, "ieee", config,
        director=(director_a, case.dw2, case.db2) if director else None,
    )  # fmt: skip
    return o, teacher, expert_dx(rows, case.w1, plan, "ieee", config)


def run(case, config=SMALL, director=True):
    """o and dx of the slots [S, N, D], and between them the director's [B*N, D]."""
    plan = case.plan(config)
    o, teacher, dx = launch(case, config, director)
    for rows in (o, dx):
        assert rows[live(plan) :].isnan().all()
    return in_slots(plan, o), None if teacher is None else teacher[: len(case.director_a)], in_slots(plan, dx)


def dense(case, dtype):
    """The same, slot by slot in ``dtype``."""
    of_slots, w2, b2, w1, director_a, dw2, db2 = (
        None if t is None else t.to(dtype)
        for t in (case.of_slots, case.w2, case.b2, case.w1, case.director_a, case.dw2, case.db2)
    )
    o, dx = ([of_slots.new_empty(0, case.tokens, w2.shape[1])] for _ in range(2))
    for rows, gate, expert in zip(of_slots, case.gates.view(-1), case.indices.reshape(-1), strict=True):
        o.append(F.linear(rows, w2[expert])[None])
        if b2 is not None:
            o[-1] = (o[-1] + gate * b2[expert]).to(dtype)
        dx.append((rows @ w1[expert])[None])
    return torch.cat(o), F.linear(director_a, dw2, db2), torch.cat(dx)


def check(case, config=SMALL):
    truth, plain = dense(case, torch.float64), dense(case, case.of_slots.dtype)
    for name, result, reference, torchs in zip(("o", "teacher", "dx"), run(case, config), truth, plain, strict=True):
        assert result.dtype == case.of_slots.dtype
        assert_close(result, reference, plain=torchs, name=name)


@given(st.data())
def test_it_agrees_with_float64_on_drawn_shapes_and_routings(data):
    indices, experts = data.draw(routings())
    described = data.draw(st.booleans())
    sizes = st.sampled_from([32, 64]) if described else st.integers(1, 64)
    case = make_case(
        indices,
        experts,
        tokens=data.draw(st.integers(1, 17)),
        width=data.draw(sizes),
        hidden=data.draw(sizes),
        dtype=data.draw(st.sampled_from(DTYPES)),
        bias_dtype=data.draw(st.sampled_from((None, *DTYPES))),
        seed=data.draw(st.integers(0, 99)),
    )
    check(case, DESCRIBED if described else SMALL)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias_dtype", [None, *DTYPES])
def test_every_dtype_with_every_bias(dtype, bias_dtype):
    check(make_case(THREE_IMAGES, tokens=17, width=33, hidden=70, dtype=dtype, bias_dtype=bias_dtype))


@pytest.mark.parametrize("config", [Gemm(16, 64, 16, 4, 1), Gemm(64, 16, 64, 4, 2), Gemm(128, 128, 64, 8, 3)])
def test_every_tile_gives_the_same(config):
    check(make_case(THREE_IMAGES, tokens=17, width=72, hidden=100), config)
    check(make_case(THREE_IMAGES, tokens=9, width=64, hidden=64), config._replace(described=True))


def test_more_row_tiles_than_run_together():
    # 6 + 3 tiles in the plan, of which 6 have rows, and 3 of the director: a whole group of eight, and a ragged one.
    case = make_case(THREE_IMAGES, tokens=16, width=48, hidden=16)
    config = Gemm(16, 16, 16, 4, 1)
    with check_memory() as memory:
        check(case, config)
    assert [launch.grid for launch in memory.launches[-2:]] == [((6 + 4 + 3) * 3,), ((6 + 4) * 3,)]


@pytest.mark.parametrize("expert", [0, 1, 3])
def test_all_images_on_one_expert(expert):
    check(make_case(torch.full((5, 1), expert), tokens=7))


def test_one_image_of_one_token():
    check(make_case(torch.tensor([[3, 1]]), tokens=1))


def test_the_same_expert_twice():
    check(make_case(torch.tensor([[1, 1], [2, 1]])))


@pytest.mark.parametrize(("width", "hidden"), [(1, 40), (20, 1), (1, 1)])
def test_an_axis_of_one(width, hidden):
    check(make_case(THREE_IMAGES, width=width, hidden=hidden))


def test_without_images_there_is_nothing():
    for config in (SMALL, DESCRIBED):
        case = make_case(torch.empty(0, 2, dtype=torch.int64), width=32, hidden=64)
        o, teacher, dx = launch(case, config)
        assert o.shape == teacher.shape == dx.shape == (0, 32)


def test_a_gate_of_zero_takes_the_bias_away():
    case = make_case(THREE_IMAGES)
    case.gates[1, 0] = 0
    case.of_slots.zero_()
    o, _, _ = run(case)
    expected = case.gates.view(-1, 1) * case.b2[case.indices.view(-1)]
    assert torch.equal(o, expected[:, None].expand_as(o))
    assert (o[2] == 0).all()


def test_the_director_changes_nothing_for_the_experts():
    case = make_case(THREE_IMAGES, dtype=torch.bfloat16)
    alone, nothing, _ = run(case, director=False)
    assert nothing is None
    assert torch.equal(run(case)[0], alone)


def test_the_director_computes_what_an_expert_with_gate_one_does():
    case = make_case(torch.full((4, 1), 2), tokens=9)
    case = replace(case, director_a=case.of_slots.view(-1, 40), dw2=case.w2[2], db2=case.b2[2], gates=torch.ones(4, 1))
    o, teacher, _ = run(case)
    assert torch.equal(o.view(-1, 20), teacher)


@pytest.mark.parametrize("missing", ["b2", "db2"])
def test_the_director_or_the_experts_alone_may_have_biases(missing):
    check(replace(make_case(THREE_IMAGES), **{missing: None}))


def test_the_input_gradient_is_the_down_projection_by_the_turned_weight():
    case = make_case(THREE_IMAGES, tokens=17, width=33, hidden=70, bias_dtype=None)
    o, _, dx = run(replace(case, w1=case.w2.transpose(1, 2).contiguous()))
    assert torch.equal(dx, o)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize(("hidden", "config"), [(40, SMALL), (64, SMALL), (64, DESCRIBED)])
def test_an_image_of_infinities_stays_alone(value, hidden, config):
    case = make_case(THREE_IMAGES, width=32, hidden=hidden)
    clean = run(case, config)
    of_slots, of_images = case.images() == 1, torch.arange(3).repeat_interleave(5) == 1
    case.of_slots[of_slots] = value
    case.director_a[of_images] = value
    for before, after, its in zip(clean, run(case, config), (of_slots, of_images, of_slots), strict=True):
        assert torch.equal(after[~its], before[~its])
        assert not after[its].isfinite().any()


@pytest.mark.parametrize(("width", "hidden", "config"), [(20, 40, SMALL), (32, 32, SMALL), (96, 64, DESCRIBED)])
def test_the_weights_of_an_expert_reach_its_own_rows_alone(width, hidden, config):
    case = make_case(THREE_IMAGES, width=width, hidden=hidden)
    clean = run(case, config)
    for expert in (1, 3):  # 3 is idle
        case.w1[expert] = case.w2[expert] = float("nan")
        case.b2[expert] = float("inf")
    spoilt = run(case, config)
    its = case.indices.view(-1) == 1
    for before, after in ((clean[0], spoilt[0]), (clean[2], spoilt[2])):
        assert torch.equal(after[~its], before[~its])
        assert after[its].isnan().all()
    assert torch.equal(spoilt[1], clean[1])


@pytest.mark.parametrize(("width", "hidden", "config"), [(20, 40, SMALL), (32, 64, DESCRIBED)])
def test_rows_without_a_token_are_zero(width, hidden, config):
    case = make_case(THREE_IMAGES, width=width, hidden=hidden)
    plan = case.plan(config)
    o, _, dx = launch(case, config)
    assert (o[pads(plan)] == 0).all()
    assert (dx[pads(plan)] == 0).all()


def test_a_director_of_infinities_does_not_reach_the_experts():
    case = make_case(THREE_IMAGES)
    o, _, _ = run(case)
    for tensor in (case.director_a, case.dw2, case.db2):
        tensor.fill_(float("inf"))
    spoilt, teacher, _ = run(case)
    assert torch.equal(spoilt, o)
    assert not teacher.isfinite().any()


def test_repeated_calls_are_bit_equal():
    case = make_case(THREE_IMAGES, tokens=17, dtype=torch.bfloat16)
    for first, second in zip(run(case), run(case), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("indices", [[[2, 0], [0, 1], [2, 1]], [[3], [3]], [[1, 2, 3], [1, 3, 4]]])
@pytest.mark.parametrize(("bias", "director"), [(True, True), (True, False), (False, True), (False, False)])
def test_its_memory_traffic_is_what_it_says(indices, bias, director):
    biases = {"dtype": torch.bfloat16, "bias_dtype": torch.float16}
    for config, width, hidden in ((SMALL, 20, 40), (DESCRIBED, 32, 64)):
        case = make_case(torch.tensor(indices), experts=5, tokens=9, width=width, hidden=hidden, **biases)
        case = replace(case, b2=case.b2 if bias else None, db2=case.db2.float())
        plan = case.plan(config)
        with check_memory() as memory:
            o, teacher, dx = launch(case, config, director)
            memory.assert_written(o[: live(plan)], dx[: live(plan)], *((teacher,) if director else ()))
        down, back = ([traffic.unique for traffic in launch.traffic.values()] for launch in memory.launches[-2:])
        assert sum(down) == expert_down_bytes(
            case.counts, plan, width, hidden, 2,
            bias_itemsize=2 * bias, director=director, director_bias_itemsize=4 * director,
        )  # fmt: skip
        assert sum(back) == expert_dx_bytes(case.counts, plan, width, hidden, 2)


def test_a_plan_of_other_tiles_is_refused():
    case = make_case(THREE_IMAGES)
    plan = case.plan(Gemm(16, 32, 32, 4, 1))
    rows, gates = torch.zeros(plan.rows, 40), torch.zeros(plan.rows)
    with pytest.raises(ValueError, match="block_m must be its plan's, 16, got 32"):
        expert_down(rows, case.w2, case.b2, gates, plan, "ieee", SMALL)
    with pytest.raises(ValueError, match="block_m must be its plan's, 16, got 32"):
        expert_dx(rows, case.w1, plan, "ieee", SMALL)


def test_its_work_is_counted_by_the_paper():
    assert expert_down_flops(224, 65, 768, 3072, 2) == 2 * 29120 * 768 * 3072  # 137 GFLOP
    assert expert_down_flops(224, 65, 768, 3072, 2, director=True) == 2 * 43680 * 768 * 3072
    assert expert_dx_flops(224, 65, 768, 3072, 2) == 2 * 29120 * 768 * 3072


def test_mixing_inside_is_counted_by_hand():
    # Three images of 5 tokens, tiles of 8 rows, D 10, 2 bytes. By experts 10 rows each (6 wasted, thrice); by sets
    # {0, 2}, {0, 1}, {1, 2} 5 rows each (3 wasted, thrice, in two loops).
    assert mixing_inside([[2, 0], [0, 1], [2, 1]], 5, 10, 8, 2) == (3 * 300, 4 * 300, 18 - 18)
    # One set of 15 rows: 1 wasted in two loops; the experts' tiles are the same.
    assert mixing_inside([[2, 0], [0, 2], [2, 0]], 5, 10, 8, 2) == (900, 1200, 0)
    # With tiles of 16 rows by experts 6 wasted, thrice; by sets 11, thrice, in two loops.
    assert mixing_inside([[2, 0], [0, 1], [2, 1]], 5, 10, 16, 2) == (900, 1200, 66 - 18)


_TABLE_LINE = re.compile(
    r"^    (uniform|Zipf|collapsed) +(\d+) +(\d+) +(\d+) \| +(\d+) +(\d+)"
    r" \| +([\d.]+) -> +([\d.]+) +(\d+) \| +([\d.]+) -> +([\d.]+) +(\d+)$",
    re.MULTILINE,
)


def drawn_choices(routing, batch, experts, top_k, generator):
    if routing == "collapsed":
        return [list(range(top_k))] * batch
    shares = torch.ones(experts) if routing == "uniform" else 1 / torch.arange(1, experts + 1)
    return torch.multinomial(shares.expand(batch, experts), top_k, generator=generator).tolist()


def test_the_table_of_the_two_variants_is_what_simulation_gives():
    lines = _TABLE_LINE.findall(module.__doc__)
    assert len(lines) == 7
    for routing, *numbers in lines:
        batch, experts, top_k = map(int, numbers[:3])
        saved, by_tiles = [float(n) for n in numbers[3:5]], [float(n) for n in numbers[5:]]
        for block_m, stated in ((64, by_tiles[:3]), (128, by_tiles[3:])):
            generator = torch.Generator().manual_seed(0)
            lost = by_experts = 0.0
            for _ in range(20):
                choices = drawn_choices(routing, batch, experts, top_k, generator)
                *moved, more = mixing_inside(choices, 65, 768, block_m, 2)
                counts = torch.tensor(choices).view(-1).bincount()
                lost += more / 20
                by_experts += int((-counts * 65 % block_m).sum()) / 20
            percent = 100 / (batch * top_k * 65)
            assert [n / 3.0e6 for n in moved] == pytest.approx(saved, abs=0.6)
            assert [by_experts * percent, (by_experts + lost) * percent] == pytest.approx(stated[:2], abs=0.2)
            assert lost * 2 * 768 * 3072 / 800e6 == pytest.approx(stated[2], abs=1.1)


FAR = 2**25  # a row of 64 columns from here on lies beyond 2^31 elements


def far_launch(what):
    """A case of four tokens on one expert, the launch, and the result in float64."""
    case = make_case(torch.tensor([[0]]), experts=1, tokens=4, width=64, hidden=64, dtype=torch.float16)
    tile = Gemm(16, 64, 64, 4, 1)
    plan = case.plan(tile)
    rows, gates = in_rows(plan, case.of_slots), in_rows(plan, case.gates.view(1, 1).expand(1, 4))
    director = whole_tiles(plan, case.director_a), case.dw2, case.db2
    o, teacher, dx = dense(case, torch.float64)
    if what == "dx":
        return case, Launch(module, lambda: expert_dx(rows, case.w1, plan, "ieee", tile)), dx[0]

    def call():
        expert_down(rows, case.w2, case.b2, gates, plan, "ieee", tile, director=director)

    return case, Launch(module, call), teacher if what == "director" else o[0]


@pytest.mark.parametrize("what", ["o", "director", "dx"])
def test_rows_may_have_more_than_two_to_the_31_elements(tmp_path, what):
    """The last of 2^21 + 1 tiles."""
    case, call, expected = far_launch(what)
    tile = FAR // 16
    left, out = (far(tmp_path / name, FAR + 16, 64) for name in ("left", "out"))
    if what == "director":
        left[FAR : FAR + 4] = case.director_a
        call.run(1 + tile, expert_tiles=1, row_tiles=1 + tile + 1, director_left=left, director_out=out)
    else:
        left[FAR : FAR + 4] = case.of_slots[0]
        tables = {"tiles_ptr": far(tmp_path / "tiles", tile + 1, dtype=torch.int32), "expert_tiles": tile + 1}
        if what == "o":
            gates = tables["gates_ptr"] = far(tmp_path / "gates", FAR + 16, dtype=torch.float32)
            gates[FAR : FAR + 4] = case.gates[0, 0]
        call.run(tile, **tables, row_tiles=tile + 1, left=left, out=out)
    assert_close(out[FAR : FAR + 4], expected)


@pytest.mark.parametrize("what", ["o", "dx"])
def test_weights_may_have_more_than_two_to_the_31_elements(tmp_path, what):
    """The last of 2^19 + 1 experts of 64 x 64."""
    case, call, expected = far_launch(what)
    expert = FAR // 64
    weight = far(tmp_path / "weight", expert + 1, 64, 64)
    weight[expert] = (case.w2 if what == "o" else case.w1)[0]
    bias = {}
    if what == "o":
        bias["bias_ptr"] = far(tmp_path / "bias", expert + 1, 64)
        bias["bias_ptr"][expert] = case.b2[0].half()
        expected = expected - case.gates[0, 0].double() * (case.b2[0] - case.b2[0].half()).double()
    out = torch.zeros(16, 64).half()
    call.run(0, tiles_ptr=torch.tensor([expert]).int(), weight=weight, out=out, **bias)
    assert_close(out[:4], expected)
