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
from dexcore.kernels.plan import make_plan
from kernels.memory_check import check_memory

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SMALL = Gemm(block_m=32, block_n=32, block_k=32, warps=4, stages=1)
THREE_IMAGES = torch.tensor([[2, 0], [0, 1], [2, 1]])  # of four experts, the last idle

# Of the interpreter's NumPy, where an Inf is meant.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")


@dataclass
class Case:
    """Arguments of both launchers: rows [rows, H] are wa or dz, and w1 [R, H, D] is unrelated to w2."""

    rows: Tensor
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
        return self.indices.reshape(-1).bincount(minlength=self.w2.shape[0]).tolist()

    def slots(self):
        """Sorted by expert: every slot's gate, image and expert."""
        experts, order = self.indices.reshape(-1).sort(stable=True)
        return self.gates.reshape(-1)[order], order // self.indices.shape[1], experts


def make_case(indices, experts=4, tokens=5, width=20, hidden=40, dtype=torch.float32, bias_dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)

    def normal(*shape, scale=1.0):
        return (torch.randn(*shape, generator=g) * scale).to(dtype)

    def bias(*shape):
        return None if bias_dtype is None else torch.randn(*shape, generator=g).to(bias_dtype)

    return Case(
        rows=normal(indices.numel() * tokens, hidden),
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


def run(case, config=SMALL, director=True):
    """o, the director's output, and dx."""
    plan = make_plan(case.indices, case.w2.shape[0], case.tokens, config.block_m)
    o, teacher = expert_down(
        case.rows, case.w2, case.b2, case.gates, plan, "ieee", config,
        director=(case.director_a, case.dw2, case.db2) if director else None,
    )  # fmt: skip
    return o, teacher, expert_dx(case.rows, case.w1, plan, "ieee", config)


def dense(case, dtype):
    """The same, slot by slot in ``dtype``."""
    rows, w2, b2, w1, director_a, dw2, db2 = (
        None if t is None else t.to(dtype)
        for t in (case.rows, case.w2, case.b2, case.w1, case.director_a, case.dw2, case.db2)
    )
    o, dx = [rows.new_empty(0, w2.shape[1])], [rows.new_empty(0, w2.shape[1])]
    gates, _, experts = case.slots()
    for slot, (gate, expert) in enumerate(zip(gates, experts, strict=True)):
        its = rows[slot * case.tokens : (slot + 1) * case.tokens]
        o.append(F.linear(its, w2[expert]))
        if b2 is not None:
            o[-1] = (o[-1] + gate * b2[expert]).to(dtype)
        dx.append(its @ w1[expert])
    return torch.cat(o), F.linear(director_a, dw2, db2), torch.cat(dx)


def check(case, config=SMALL):
    truth, plain = dense(case, torch.float64), dense(case, case.rows.dtype)
    for name, result, reference, torchs in zip(("o", "teacher", "dx"), run(case, config), truth, plain, strict=True):
        assert result.dtype == case.rows.dtype
        assert_close(result, reference, plain=torchs, name=name)


@st.composite
def routings(draw):
    """Indices and the number of experts; drawn experts may be idle."""
    experts = draw(st.integers(1, 6))
    used = draw(st.lists(st.integers(0, experts - 1), min_size=1, unique=True))
    top_k = draw(st.integers(1, min(4, len(used))))
    batch = draw(st.integers(0, 4))
    rows = [draw(st.permutations(used))[:top_k] for _ in range(batch)]
    return torch.tensor(rows, dtype=torch.int64).view(batch, top_k), experts


@given(st.data())
def test_it_agrees_with_float64_on_drawn_shapes_and_routings(data):
    indices, experts = data.draw(routings())
    check(
        make_case(
            indices,
            experts,
            tokens=data.draw(st.integers(1, 17)),
            width=data.draw(st.integers(1, 64)),
            hidden=data.draw(st.integers(1, 64)),
            dtype=data.draw(st.sampled_from(DTYPES)),
            bias_dtype=data.draw(st.sampled_from((None, *DTYPES))),
            seed=data.draw(st.integers(0, 99)),
        )
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias_dtype", [None, *DTYPES])
def test_every_dtype_with_every_bias(dtype, bias_dtype):
    check(make_case(THREE_IMAGES, tokens=17, width=33, hidden=70, dtype=dtype, bias_dtype=bias_dtype))


@pytest.mark.parametrize("config", [Gemm(16, 64, 16, 4, 1), Gemm(64, 16, 64, 4, 2), Gemm(128, 128, 64, 8, 3)])
def test_every_tile_gives_the_same(config):
    check(make_case(THREE_IMAGES, tokens=17, width=72, hidden=100), config)


def test_more_row_tiles_than_run_together():
    # 6 + 3 tiles in the plan, of which 6 have rows, and 3 of the director: a whole group of eight, and a ragged one.
    case = make_case(THREE_IMAGES, tokens=16, width=48, hidden=16)
    config = Gemm(16, 16, 16, 4, 1)
    with check_memory() as memory:
        check(case, config)
    assert [launch.grid for launch in memory.launches[1:]] == [((6 + 4 + 3) * 3,), ((6 + 4) * 3,)]


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
    o, teacher, dx = run(make_case(torch.empty(0, 2, dtype=torch.int64)))
    assert o.shape == teacher.shape == dx.shape == (0, 20)


def test_a_gate_of_zero_takes_the_bias_away():
    case = make_case(THREE_IMAGES)
    case.gates[1, 0] = 0
    case.rows.zero_()
    o, _, _ = run(case)
    gates, _, experts = case.slots()
    expected = (gates[:, None] * case.b2[experts]).repeat_interleave(5, 0)
    assert torch.equal(o, expected)
    assert (o[5:10] == 0).all()  # sorted slot 1 is image 1's choice 0


def test_the_director_changes_nothing_for_the_experts():
    case = make_case(THREE_IMAGES, dtype=torch.bfloat16)
    alone, nothing, _ = run(case, director=False)
    assert nothing is None
    assert torch.equal(run(case)[0], alone)


def test_the_director_computes_what_an_expert_with_gate_one_does():
    case = make_case(torch.full((4, 1), 2), tokens=9)
    case = replace(case, director_a=case.rows, dw2=case.w2[2], db2=case.b2[2], gates=torch.ones(4, 1))
    o, teacher, _ = run(case)
    assert torch.equal(o, teacher)


@pytest.mark.parametrize("missing", ["b2", "db2"])
def test_the_director_or_the_experts_alone_may_have_biases(missing):
    check(replace(make_case(THREE_IMAGES), **{missing: None}))


def test_the_input_gradient_is_the_down_projection_by_the_turned_weight():
    case = make_case(THREE_IMAGES, tokens=17, width=33, hidden=70, bias_dtype=None)
    o, _, dx = run(replace(case, w1=case.w2.transpose(1, 2).contiguous()))
    assert torch.equal(dx, o)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("hidden", [40, 64])
def test_an_image_of_infinities_stays_alone(value, hidden):
    case = make_case(THREE_IMAGES, hidden=hidden)
    clean = run(case)
    of_slots = case.slots()[1].repeat_interleave(5) == 1
    of_images = torch.arange(3).repeat_interleave(5) == 1
    case.rows[of_slots] = value
    case.director_a[of_images] = value
    for before, after, its in zip(clean, run(case), (of_slots, of_images, of_slots), strict=True):
        assert torch.equal(after[~its], before[~its])
        assert not after[its].isfinite().any()


@pytest.mark.parametrize(("width", "hidden"), [(20, 40), (32, 32)])
def test_the_weights_of_an_expert_reach_its_own_rows_alone(width, hidden):
    case = make_case(THREE_IMAGES, width=width, hidden=hidden)
    clean = run(case)
    for expert in (1, 3):  # 3 is idle
        case.w1[expert] = case.w2[expert] = float("nan")
        case.b2[expert] = float("inf")
    spoilt = run(case)
    its = case.slots()[2].repeat_interleave(5) == 1
    for before, after in ((clean[0], spoilt[0]), (clean[2], spoilt[2])):
        assert torch.equal(after[~its], before[~its])
        assert after[its].isnan().all()
    assert torch.equal(spoilt[1], clean[1])


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
    case = make_case(torch.tensor(indices), experts=5, tokens=9, dtype=torch.bfloat16, bias_dtype=torch.float16)
    case = replace(case, b2=case.b2 if bias else None, db2=case.db2.float())
    with check_memory() as memory:
        o, teacher, dx = run(case, director=director)
        memory.assert_written(o, dx, *((teacher,) if director else ()))
    down, back = ([traffic.unique for traffic in launch.traffic.values()] for launch in memory.launches[1:])
    assert sum(down) == expert_down_bytes(
        case.counts, len(indices), 9, 20, 40, SMALL.block_m, 2,
        bias_itemsize=2 * bias, director=director, director_bias_itemsize=4 * director,
    )  # fmt: skip
    assert sum(back) == expert_dx_bytes(case.counts, 9, 20, 40, SMALL.block_m, 2)


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
