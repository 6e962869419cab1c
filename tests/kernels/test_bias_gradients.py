"""The gates' and the second bias's gradients, against float64; interpreted."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import dexcore.kernels.bias_gradients as module
from assertions import assert_close
from dexcore.kernels.bias_gradients import gate_and_bias_gradients
from kernels.expert_rows import in_rows, plan_of, routings
from kernels.far_memory import Launch, far

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
THREE_IMAGES = torch.tensor([[3, 1], [1, 0], [0, 1]])
COLLAPSED = torch.full((80, 1), 2)
NO_IMAGES = torch.empty((0, 2), dtype=torch.int64)


class Case:
    """gate_parts of the slots [S, N, P], NaN in the pads and beyond, where nothing may be read."""

    def __init__(self, indices, experts, tokens=5, parts=2, width=20, b2_dtype=torch.float32, seed=0):
        g = torch.Generator().manual_seed(seed)
        self.indices, self.experts = indices, experts
        self.plan = plan_of(indices, experts, tokens, 16)
        self.parts = torch.randn(indices.numel(), tokens, parts, generator=g)
        self.sums = torch.randn(len(indices), width, generator=g)
        self.b2 = None if b2_dtype is None else torch.randn(experts, width, generator=g).to(b2_dtype)
        self.gates = torch.rand(indices.shape, generator=g)

    def run(self, bias_dtype=torch.float32, with_gates=True):
        gate_parts = in_rows(self.plan, self.parts, pad=float("nan")).T.contiguous() if with_gates else None
        return gate_and_bias_gradients(gate_parts, self.sums, self.b2, self.gates, self.plan, bias_dtype)

    def truth(self):
        chosen, sums = self.indices.reshape(-1), self.sums.double().repeat_interleave(self.indices.shape[1], 0)
        grad_gates = self.parts.double().sum((1, 2))
        if self.b2 is not None:
            grad_gates += (self.b2[chosen].double() * sums).sum(1)
        grad_b2 = torch.zeros(self.experts, sums.shape[1], dtype=torch.float64)
        grad_b2.index_add_(0, chosen, self.gates.view(-1, 1).double() * sums)
        return grad_gates.view(self.indices.shape), grad_b2


def check(case, bias_dtype=torch.float32):
    grad_gates, grad_b2 = case.run(bias_dtype)
    gates64, b64 = case.truth()
    assert grad_gates.dtype == torch.float32
    assert_close(grad_gates, gates64, bound=2e-5, name="gates")
    assert grad_b2.dtype == bias_dtype
    assert_close(grad_b2, b64, plain=b64.to(bias_dtype), name="b2")
    idle = [expert for expert in range(case.experts) if not (case.indices == expert).any()]
    assert (grad_b2[idle] == 0).all()


@given(
    routings(),
    st.integers(1, 70),
    st.integers(1, 10),
    st.integers(1, 600),
    st.sampled_from((None, *DTYPES)),
    st.sampled_from(DTYPES),
)
def test_both_gradients_of_drawn_routings(routing, tokens, parts, width, b2_dtype, bias_dtype):
    check(Case(*routing, tokens, parts, width, b2_dtype), bias_dtype)


def test_an_expert_with_more_slots_than_a_block():
    check(Case(COLLAPSED, 4, width=40))


def test_more_tokens_parts_and_columns_than_a_block():
    check(Case(THREE_IMAGES, 4, tokens=65, parts=9, width=513))


@pytest.mark.parametrize("b2_dtype", [None, torch.float16])
def test_no_images_have_no_gates_and_a_bias_of_zero(b2_dtype):
    grad_gates, grad_b2 = Case(NO_IMAGES, 3, width=130, b2_dtype=b2_dtype).run(torch.float16)
    assert grad_gates.shape == (0, 2)
    assert torch.equal(grad_b2, torch.zeros(3, 130).half())


def test_64_experts():
    check(Case(torch.tensor([[63, 0], [62, 63], [31, 32]]), 64, width=8))


def test_the_same_expert_twice_counts_twice():
    check(Case(torch.tensor([[1, 1], [2, 1]]), 4))


def test_what_is_not_asked_for_is_not_there_and_changes_nothing():
    case = Case(THREE_IMAGES, 4)
    both = case.run()
    grad_gates, nothing = case.run(bias_dtype=None)
    assert nothing is None
    assert torch.equal(grad_gates, both[0])
    nothing, grad_b2 = case.run(with_gates=False)
    assert nothing is None
    assert torch.equal(grad_b2, both[1])
    assert case.run(None, with_gates=False) == (None, None)


def test_an_image_of_inf_stays_within_its_gates_and_expert():
    indices = torch.tensor([[0], [1], [0]])
    case = Case(indices, 2)
    case.b2.abs_()
    clean = case.run()
    case.sums[1] = case.parts[1] = float("inf")
    grad_gates, grad_b2 = case.run()
    assert torch.equal(grad_gates[[0, 2]], clean[0][[0, 2]])
    assert grad_gates[1] == float("inf")
    assert torch.equal(grad_b2[0], clean[1][0])
    assert (grad_b2[1] == float("inf")).all()


def test_both_repeat_bit_for_bit():
    case = Case(THREE_IMAGES, 4, tokens=40, parts=9, width=130)
    for one, other in zip(case.run(torch.bfloat16), case.run(torch.bfloat16), strict=True):
        assert torch.equal(one, other)


FAR = 2**25  # a row of 64 columns from here on lies beyond 2^31 elements


def far_launch(**sizes):
    """One slot of one expert, whose program is 0; those of the bias follow."""
    case = Case(torch.tensor([[0]]), 1, width=64, **sizes)
    return case, Launch(module, case.run), case.truth()


def test_gate_parts_may_have_more_than_two_to_the_31_elements(tmp_path):
    case, launch, (grad_gates, _) = far_launch(tokens=4, parts=8)
    rows, first = 2**29 + 16, 2**29
    gate_parts = far(tmp_path / "parts", 8, rows, dtype=torch.float32)
    gate_parts[:, first : first + 4] = case.parts[0].T
    out = torch.zeros(1)
    tables = {"first_rows_ptr": torch.tensor([first]).int(), "num_rows": rows}
    tables |= {"tiles_ptr": far(tmp_path / "tiles", rows // 16, dtype=torch.int32)}
    launch.run(0, **tables, gate_parts_ptr=gate_parts, grad_gates_ptr=out)
    assert_close(out, grad_gates[0])


def test_token_sums_and_biases_may_have_more_than_two_to_the_31_elements(tmp_path):
    """The last of 2^25 + 1 images, with the last of as many experts."""
    case, launch, (grad_gates, grad_b2) = far_launch()
    sums, gates = (far(tmp_path / name, FAR + 1, size, dtype=torch.float32) for name, size in (("s", 64), ("g", 1)))
    sums[FAR], gates[FAR] = case.sums[0], case.gates[0]
    b2 = far(tmp_path / "b2", FAR + 1, 64, dtype=torch.float32)
    b2[FAR] = case.b2[0]
    grad_gates_out = far(tmp_path / "gates", FAR + 1, dtype=torch.float32)
    first_rows = far(tmp_path / "first rows", FAR + 1, dtype=torch.int32)
    starts = far(tmp_path / "starts", FAR + 2, dtype=torch.int32)
    starts[FAR + 1] = 1
    tensors = {"token_sums_ptr": sums, "gates_ptr": gates, "b2_ptr": b2, "grad_gates_ptr": grad_gates_out}
    tensors |= {"first_rows_ptr": first_rows, "tiles_ptr": torch.tensor([FAR]).int(), "gate_programs": FAR + 1}
    launch.run(FAR, **tensors)
    assert_close(grad_gates_out[FAR:], grad_gates[0])

    out = far(tmp_path / "grad b2", FAR + 1, 64, dtype=torch.float32)
    tensors |= {"starts_ptr": starts, "slots_ptr": torch.tensor([FAR]).int(), "grad_b2_ptr": out}
    launch.run(2 * FAR + 1, **tensors)
    assert_close(out[FAR], grad_b2[0])
