"""The experts' first layer and the director's, interpreted, against float64."""

from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from assertions import assert_close
from dexcore.kernels.configs import Gemm
from dexcore.kernels.expert_up import expert_up, expert_up_bytes, expert_up_flops
from dexcore.kernels.plan import make_plan
from kernels.memory_check import check_memory
from ops.plain import ACTIVATIONS

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SMALL = Gemm(block_m=32, block_n=32, block_k=32, warps=4, stages=1)

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
        return self.indices.reshape(-1).bincount(minlength=self.w1.shape[0]).tolist()

    def slots(self):
        """Sorted by expert: every slot's gate, image and expert."""
        experts, order = self.indices.reshape(-1).sort(stable=True)
        return self.gates.reshape(-1)[order], order // self.indices.shape[1], experts


def make_case(indices, experts=4, tokens=5, width=20, hidden=40, dtype=torch.float32, bias_dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    batch, top_k = indices.shape
    return Case(
        x=torch.randn(batch, tokens, width, generator=g).to(dtype),
        w1=(torch.randn(experts, hidden, width, generator=g) * width**-0.5).to(dtype),
        b1=None if bias_dtype is None else torch.randn(experts, hidden, generator=g).to(bias_dtype),
        dw1=(torch.randn(hidden, width, generator=g) * width**-0.5).to(dtype),
        db1=None if bias_dtype is None else torch.randn(hidden, generator=g).to(bias_dtype),
        gates=torch.rand(batch, top_k, generator=g).softmax(-1),
        indices=indices,
    )


def run(case, activation="gelu", config=SMALL, keep_z=True, keep_a=True, director=True):
    plan = make_plan(case.indices, case.w1.shape[0], case.x.shape[1], config.block_m)
    return expert_up(
        case.x, case.w1, case.b1, case.gates, plan, activation, "ieee", config,
        keep_z=keep_z, keep_a=keep_a, director=(case.dw1, case.db1) if director else None,
    )  # fmt: skip


def dense(case, activation, dtype):
    """z and wa in expert order, and the director's, slot by slot in ``dtype``."""
    x, w1, b1, dw1, db1 = (None if t is None else t.to(dtype) for t in (case.x, case.w1, case.b1, case.dw1, case.db1))
    hidden = w1.shape[1]
    z, wa = [x.new_empty(0, hidden)], [x.new_empty(0, hidden)]
    for gate, image, expert in zip(*case.slots(), strict=True):
        z.append(F.linear(x[image], w1[expert], None if b1 is None else b1[expert]))
        wa.append((gate * ACTIVATIONS[activation](z[-1])).to(dtype))
    return torch.cat(z), torch.cat(wa), ACTIVATIONS[activation](F.linear(x, dw1, db1)).view(-1, hidden)


def check(case, activation="gelu", config=SMALL):
    results = run(case, activation, config)
    truth, plain = dense(case, activation, torch.float64), dense(case, activation, case.x.dtype)
    for name, result, reference, torchs in zip(("z", "wa", "director_a"), results, truth, plain, strict=True):
        assert result.dtype == case.x.dtype
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


@settings(max_examples=15)
@given(st.data())
def test_it_agrees_with_float64_on_drawn_shapes_and_routings(data):
    indices, experts = data.draw(routings())
    case = make_case(
        indices,
        experts,
        tokens=data.draw(st.integers(1, 17)),
        width=data.draw(st.integers(1, 64)),
        hidden=data.draw(st.integers(1, 64)),
        dtype=data.draw(st.sampled_from(DTYPES)),
        bias_dtype=data.draw(st.sampled_from((None, *DTYPES))),
        seed=data.draw(st.integers(0, 99)),
    )
    check(case, data.draw(st.sampled_from(tuple(ACTIVATIONS))))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_in_every_dtype(activation, dtype):
    indices = torch.tensor([[2, 0], [0, 2], [2, 3]])
    check(make_case(indices, tokens=17, width=33, hidden=40, dtype=dtype), activation)


@pytest.mark.parametrize("config", [Gemm(16, 64, 16, 4, 1), Gemm(64, 16, 64, 4, 2), Gemm(128, 128, 64, 8, 3)])
def test_every_tile_gives_the_same(config):
    case = make_case(torch.tensor([[2, 0], [0, 2], [2, 3]]), tokens=17, width=40, hidden=72)
    check(case, config=config)


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
    z, wa, director_a = run(make_case(torch.empty(0, 2, dtype=torch.int64)))
    assert z.shape == wa.shape == director_a.shape == (0, 40)


def test_a_gate_of_zero_leaves_z_and_gives_exact_zeros():
    case = make_case(torch.tensor([[2, 0], [0, 1]]))
    case.gates[1, 0] = 0
    z, wa, _ = run(case)
    z64, _, _ = dense(case, "gelu", torch.float64)
    assert_close(z, z64)
    zero = (wa == 0).view(4, 5, 40).all(-1).all(-1)
    assert zero.tolist() == [False, True, False, False]  # sorted slot 1 is image 1's choice 0


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
    assert torch.equal(wa, director_a)


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
    of_slots = case.slots()[1].repeat_interleave(5) == 1
    of_images = torch.arange(4).repeat_interleave(5) == 1
    for before, after, its in zip(clean, spoilt, (of_slots, of_slots, of_images), strict=True):
        assert torch.equal(after[~its], before[~its])
        assert not after[its].isfinite().all(-1).any()


@pytest.mark.parametrize(("width", "hidden"), [(20, 40), (32, 32)])
def test_the_weights_of_an_expert_reach_its_own_rows_alone(width, hidden):
    case = make_case(torch.tensor([[2, 0], [0, 1], [2, 1]]), width=width, hidden=hidden)
    clean = run(case)
    case.w1[1] = float("nan")
    case.w1[3] = float("nan")  # idle
    case.b1[1] = case.b1[3] = float("inf")
    spoilt = run(case)
    its = case.slots()[2].repeat_interleave(5) == 1
    for before, after in zip(clean[:2], spoilt[:2], strict=True):
        assert torch.equal(after[~its], before[~its])
        assert after[its].isnan().all()
    assert torch.equal(spoilt[2], clean[2])


def test_repeated_calls_are_bit_equal():
    case = make_case(torch.tensor([[2, 0], [0, 1]]), dtype=torch.bfloat16)
    for first, second in zip(run(case), run(case), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("indices", [[[2, 0], [0, 1], [2, 1]], [[3], [3]], [[1, 2, 3], [1, 3, 4]]])
@pytest.mark.parametrize(
    ("keep_z", "keep_a", "director"), [(True, True, True), (True, False, False), (False, True, True)]
)
def test_its_memory_traffic_is_what_it_says(indices, keep_z, keep_a, director):
    case = make_case(torch.tensor(indices), experts=5, tokens=9, dtype=torch.bfloat16, bias_dtype=torch.float16)
    case.db1 = case.db1.float()
    with check_memory() as memory:
        z, wa, director_a = run(case, keep_z=keep_z, keep_a=keep_a, director=director)
        memory.assert_written(z, wa, *((director_a,) if director else ()))
    batch, tokens, width = case.x.shape
    expected = expert_up_bytes(
        case.counts, batch, tokens, width, 40, SMALL.block_m, 2,
        bias_itemsize=2, keep_z=keep_z, keep_a=keep_a, director=director, director_bias_itemsize=4,
    )  # fmt: skip
    assert sum(traffic.unique for traffic in memory.launches[-1].traffic.values()) == expected


def test_its_work_is_counted_by_the_paper():
    assert expert_up_flops(224, 65, 768, 3072, 2) == 2 * 29120 * 768 * 3072  # 137 GFLOP
    assert expert_up_flops(224, 65, 768, 3072, 2, director=True) == 2 * 43680 * 768 * 3072
