"""mix_align against float64: values, gradients, the clamp."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.library import opcheck

from assertions import assert_close
from dexcore import ops
from dexcore.ops import reference
from dexcore.ops.mix_align import ALIGNS, align_floor, mix_align
from ops import plain


def value_and_gradient(function, student, teacher, kind):
    student = student.detach().clone().requires_grad_()
    loss = function(student, teacher, kind)
    return loss, torch.autograd.grad(loss * 3, student)[0]


@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(2, 30)),
    kind=st.sampled_from(ALIGNS),
    scale=st.sampled_from([0.3, 1.0, 8.0]),
    seed=st.integers(0, 1000),
)
def test_loss_and_gradient_agree_with_float64(shape, kind, scale, seed):
    g = torch.Generator().manual_seed(seed)
    student, teacher = scale * torch.randn(shape, generator=g), torch.randn(shape, generator=g)
    loss, grad = value_and_gradient(ops.mix_align, student, teacher, kind)
    loss64, grad64 = value_and_gradient(reference.mix_align, student.double(), teacher.double(), kind)
    loss32, grad32 = value_and_gradient(plain.mix_align, student, teacher, kind)
    assert loss.shape == ()
    assert_close(loss, loss64, plain=loss32, name="loss")
    assert_close(grad, grad64, plain=grad32, name="gradient")


@pytest.mark.parametrize("kind", ALIGNS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(kind, dtype):
    student, teacher = torch.randn(4, 9, 64).to(dtype), torch.randn(4, 9, 64).to(dtype)
    loss, grad = value_and_gradient(ops.mix_align, student, teacher, kind)
    loss64, grad64 = value_and_gradient(reference.mix_align, student.double(), teacher.double(), kind)
    assert loss.dtype == torch.float32
    assert grad.dtype == dtype
    assert_close(loss, loss64, bound=1e-6)
    assert_close(grad, grad64)


def test_where_the_clamp_acts_no_gradient_passes():
    student = torch.tensor([[[30.0, 0.0, 0.0]]])  # q of the last two is about 1e-13
    teacher = torch.tensor([[[0.0, 5.0, 5.0]]])
    loss, grad = value_and_gradient(ops.mix_align, student, teacher, "kd")
    loss64, grad64 = value_and_gradient(reference.mix_align, student, teacher, "kd")
    assert_close(loss, loss64)
    assert grad64.abs().max() < 1e-4  # without the clamp the gradient would be about 3
    assert (grad - grad64).abs().max() < 1e-9


def test_rows_beyond_one_block_are_counted():
    student, teacher = torch.randn(3, 1500, 8), torch.randn(3, 1500, 8)
    for kind in ALIGNS:
        loss, grad = value_and_gradient(ops.mix_align, student, teacher, kind)
        loss64, grad64 = value_and_gradient(reference.mix_align, student, teacher, kind)
        assert_close(loss, loss64, name=kind)
        assert_close(grad, grad64, name=kind)


def test_the_teacher_gets_no_gradient():
    student, teacher = torch.randn(2, 3, 4, requires_grad=True), torch.randn(2, 3, 4, requires_grad=True)
    ops.mix_align(student, teacher).backward()
    assert student.grad is not None
    assert teacher.grad is None
    assert not ops.mix_align(student.detach(), teacher).requires_grad


@pytest.mark.parametrize("kind", ALIGNS)
def test_gradcheck(kind):
    student, teacher = (
        torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True),
        torch.randn(2, 3, 5, dtype=torch.float64),
    )
    assert torch.autograd.gradcheck(lambda s: ops.mix_align(s, teacher, kind), (student,))


@pytest.mark.parametrize("kind", ALIGNS)
def test_opcheck(kind):
    student, teacher = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    opcheck(torch.ops.dexcore.mix_align.default, (student, teacher, kind, True, "eager"))
    opcheck(torch.ops.dexcore.mix_align_backward.default, (torch.ones(()), student, "eager"))


def test_no_rows_give_zero():
    assert ops.mix_align(torch.zeros(0, 3, 4), torch.zeros(0, 3, 4)).item() == 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"kind": "l1"}, ValueError, "kind must be one of 'kd', 'cosine', 'mse'"),
        ({"teacher": torch.ones(2, 3, 5)}, ValueError, r"teacher must have shape \[2, 3, 4\]"),
        ({"student": torch.ones(2, 3, 4, dtype=torch.int64)}, TypeError, "student must be floating"),
        ({"teacher": torch.ones(2, 3, 4, device="meta")}, ValueError, "teacher is on meta"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    good = {"student": torch.ones(2, 3, 4), "teacher": torch.ones(2, 3, 4)}
    with pytest.raises(error, match=message):
        ops.mix_align(**(good | arguments))


@pytest.mark.parametrize("width", [3, 192])
def test_agreement_is_the_teachers_entropy_and_no_student_is_below_it(width):
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(2, 5, width, generator=generator, dtype=torch.float64)
    floor = align_floor(teacher, "kd")
    entropy = torch.distributions.Categorical(logits=teacher / 0.5).entropy().mean()
    torch.testing.assert_close(floor, entropy)
    agreeing = 2 * teacher + torch.randn(2, 5, 1, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(mix_align(agreeing, teacher, "kd"), floor)
    assert mix_align(teacher, teacher, "kd") > floor + 0.01  # the temperatures differ
    for scale in (0.1, 1.0, 30.0):
        student = scale * torch.randn(2, 5, width, generator=generator, dtype=torch.float64)
        assert mix_align(student, teacher, "kd") >= floor - 1e-6 * width


@pytest.mark.parametrize("kind", ["cosine", "mse"])
def test_other_kinds_are_zero_at_agreement(kind):
    teacher = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    assert align_floor(teacher, kind) == 0
    assert mix_align(teacher, teacher, kind).item() == pytest.approx(0, abs=1e-6)
    assert align_floor(torch.zeros(0, 5, 8), kind) == align_floor(torch.zeros(0, 5, 8), "kd") == 0
