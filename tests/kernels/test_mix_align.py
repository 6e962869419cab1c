"""The slots' sum, the alignment loss and their backward, against float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from assertions import assert_close
from dexcore.kernels.mix_align import (
    align_backward,
    align_backward_bytes,
    align_forward,
    align_forward_bytes,
    mix_align_forward,
    mix_align_forward_bytes,
    sum_slots,
    sum_slots_bytes,
)
from dexcore.kernels.plan import make_plan
from kernels.memory_check import check_memory

KINDS = ("kd", "cosine", "mse")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
CONSTANTS = {"teacher_temperature": 0.5, "smallest_probability": 1e-6, "cosine_eps": 1e-8}


def row_losses(student, teacher, kind):
    """In the dtype of the student."""
    if kind == "kd":
        p, q = (teacher / 0.5).softmax(-1), student.softmax(-1)
        return -(p * q.clamp(min=1e-6).log()).sum(-1)
    if kind == "cosine":
        return 1 - torch.nn.functional.cosine_similarity(student, teacher, dim=-1)
    return (student - teacher).square().mean(-1)


def losses_and_gradient(student, teacher, kind, dtype):
    student = student.to(dtype).requires_grad_()
    losses = row_losses(student, teacher.to(dtype), kind)
    return losses.detach(), torch.autograd.grad(losses.sum(), student)[0]


def assert_aligned(losses, gradient, student, teacher, kind):
    """Against float64, as good as plain PyTorch in float32."""
    want, want_gradient = losses_and_gradient(student, teacher, kind, torch.float64)
    plain, plain_gradient = losses_and_gradient(student, teacher, kind, torch.float32)
    assert losses.dtype == torch.float32
    assert_close(losses, want, plain=plain, name="losses")
    assert gradient.dtype == student.dtype
    assert_close(gradient, want_gradient, plain=plain_gradient.to(gradient.dtype), name="gradient")


def make_slots(batch, tokens, width, top_k, dtype, experts=5, seed=0):
    g = torch.Generator().manual_seed(seed)
    indices = torch.rand(batch, experts - 1, generator=g).argsort(-1)[:, :top_k]  # the last expert has no images
    plan = make_plan(indices, experts, tokens, 4)
    return torch.randn(plan.rows, width, generator=g).to(dtype), plan


def slots_of_image(o, plan):
    """[k, B*N, D]: the slots' rows in the order of images."""
    rows = o.view(-1, plan.tokens, o.shape[1])[plan.places.long()]
    return rows.unflatten(0, (-1, plan.top_k)).transpose(0, 1).flatten(1, 2)


def float32_sum(o, plan):
    total = torch.zeros_like(slots_of_image(o, plan)[0], dtype=torch.float32)
    for slot in slots_of_image(o, plan):
        total += slot.float()
    return total


shapes = st.tuples(st.integers(1, 4), st.integers(1, 17), st.integers(1, 64), st.integers(1, 4))


@given(shape=shapes, kind=st.sampled_from(KINDS), dtype=st.sampled_from(DTYPES), scale=st.sampled_from([0.3, 1.0, 8.0]))
def test_the_loss_of_the_rounded_sum_and_its_gradient_agree_with_float64(shape, kind, dtype, scale):
    batch, tokens, width, top_k = shape
    o, plan = make_slots(batch, tokens, width, top_k, dtype)
    o *= scale
    teacher = torch.randn(batch * tokens, width).to(dtype)
    y, losses, gradient = mix_align_forward(o, plan, teacher, kind, with_gradient=True, **CONSTANTS)
    assert torch.equal(y, float32_sum(o, plan).to(dtype))
    assert_close(y, slots_of_image(o, plan).double().sum(0))
    assert_aligned(losses, gradient, y, teacher, kind)


@given(
    rows=st.integers(1, 40),
    width=st.integers(1, 70),
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from(DTYPES),
    teacher_dtype=st.sampled_from(DTYPES),
)
def test_two_feature_maps_are_compared_as_in_float64(rows, width, kind, dtype, teacher_dtype):
    student, teacher = torch.randn(rows, width).to(dtype), torch.randn(rows, width).to(teacher_dtype)
    losses, gradient = align_forward(student, teacher, kind, with_gradient=True, **CONSTANTS)
    assert_aligned(losses, gradient, student, teacher, kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [768, 1280, 3000])
def test_wide_rows(kind, width):
    o, plan = make_slots(2, 3, width, 2, torch.bfloat16)
    teacher = torch.randn(6, width).bfloat16()
    y, losses, gradient = mix_align_forward(o, plan, teacher, kind, with_gradient=True, **CONSTANTS)
    assert torch.equal(sum_slots(o, plan, torch.bfloat16), y)
    assert_aligned(losses, gradient, y, teacher, kind)


def test_where_the_clamp_acts_no_gradient_passes():
    student = torch.tensor([[30.0, 0.0, 0.0], [0.0, 1.0, -40.0]])
    teacher = torch.tensor([[0.0, 5.0, 5.0], [0.0, 0.0, 5.0]])
    losses, gradient = align_forward(student, teacher, "kd", with_gradient=True, **CONSTANTS)
    want, want_gradient = losses_and_gradient(student, teacher, "kd", torch.float64)
    assert_close(losses, want)
    assert want_gradient.abs().max() < 1e-3  # without the clamp it would be about 1
    assert (gradient - want_gradient).abs().max() < 1e-9


def test_the_constants_are_the_callers():
    student, teacher = 4 * torch.randn(3, 10), torch.randn(3, 10)
    constants = {"teacher_temperature": 2.0, "smallest_probability": 0.05, "cosine_eps": 10.0}
    losses, _ = align_forward(student, teacher, "kd", with_gradient=False, **constants)
    q = student.double().softmax(-1)
    assert (q < 0.05).any()
    assert_close(losses, -((teacher.double() / 2).softmax(-1) * q.clamp(min=0.05).log()).sum(-1))
    teacher *= 0.1
    losses, _ = align_forward(student, teacher, "cosine", with_gradient=False, **constants)
    norms = student.norm(dim=-1).clamp(min=10) * teacher.norm(dim=-1).clamp(min=10)
    assert_close(losses, (1 - (student * teacher).sum(-1) / norms).double())


@pytest.mark.parametrize("student", [torch.zeros(1, 6), torch.full((1, 6), 1e-10)])
def test_a_student_of_almost_no_length_has_a_finite_cosine(student):
    teacher = torch.randn(1, 6)
    losses, gradient = align_forward(student, teacher, "cosine", with_gradient=True, **CONSTANTS)
    unit = teacher.double() / teacher.double().norm()
    cosine = (student.double() / 1e-8 * unit).sum()
    assert_close(losses, (1 - cosine).reshape(1))
    assert_close(gradient, (cosine * student.double() / 1e-8 - unit) / 1e-8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["student", "teacher"])
def test_a_nan_reaches_its_rows_loss_and_gradient_and_no_other(kind, where):
    pair = {"student": torch.randn(3, 5), "teacher": torch.randn(3, 5)}
    clean, clean_gradient = align_forward(**pair, kind=kind, with_gradient=True, **CONSTANTS)
    pair[where][1, 2] = float("nan")
    losses, gradient = align_forward(**pair, kind=kind, with_gradient=True, **CONSTANTS)
    assert losses[1].isnan()
    assert gradient[1, 2].isnan()
    if kind != "mse":
        assert gradient[1].isnan().all()
    for row in (0, 2):
        assert torch.equal(losses[row], clean[row])
        assert torch.equal(gradient[row], clean_gradient[row])


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_infinite_features_give_no_finite_loss(kind):
    student = torch.randn(2, 5)
    student[0, 3] = float("inf")
    losses, gradient = align_forward(student, torch.randn(2, 5), kind, with_gradient=True, **CONSTANTS)
    assert not losses[0].isfinite()
    assert not gradient[0, 3].isfinite()
    assert losses[1].isfinite()
    assert gradient[1].isfinite().all()


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_an_image_of_infinities_stays_alone(kind):
    o, plan = make_slots(3, 4, 10, 2, torch.float32)
    teacher = torch.randn(12, 10)
    clean = mix_align_forward(o, plan, teacher, kind, with_gradient=True, **CONSTANTS)
    o.view(-1, 4, 10)[plan.images == 1] = float("inf")
    results = mix_align_forward(o, plan, teacher, kind, with_gradient=True, **CONSTANTS)
    for result, want in zip(results, clean, strict=True):
        result, want = result.unflatten(0, (3, 4)), want.unflatten(0, (3, 4))
        assert torch.equal(result[[0, 2]], want[[0, 2]])
        assert not result[1].isfinite().any()


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_gradient_nothing_else_changes(kind):
    o, plan = make_slots(2, 3, 20, 2, torch.bfloat16)
    teacher = torch.randn(6, 20).bfloat16()
    y, losses, _ = mix_align_forward(o, plan, teacher, kind, with_gradient=True, **CONSTANTS)
    results = mix_align_forward(o, plan, teacher, kind, with_gradient=False, **CONSTANTS)
    assert torch.equal(results[0], y)
    assert torch.equal(results[1], losses)
    assert results[2].shape == (0, 20)
    assert torch.equal(align_forward(y, teacher, kind, with_gradient=False, **CONSTANTS)[0], losses)


@pytest.mark.parametrize("kind", KINDS)
def test_twice_the_same_bits(kind):
    o, plan = make_slots(3, 7, 50, 3, torch.float16)
    teacher = torch.randn(21, 50).half()
    first = mix_align_forward(o, plan, teacher, kind, with_gradient=True, **CONSTANTS)
    again = mix_align_forward(o, plan, teacher, kind, with_gradient=True, **CONSTANTS)
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("batch", "tokens"), [(0, 5), (3, 0)])
def test_no_rows(batch, tokens):
    o, plan = make_slots(batch, tokens, 8, 2, torch.float32)
    teacher = torch.zeros(0, 8)
    y, losses, gradient = mix_align_forward(o, plan, teacher, "kd", with_gradient=True, **CONSTANTS)
    assert (y.shape, losses.shape, gradient.shape) == ((0, 8), (0,), (0, 8))
    assert sum_slots(o, plan, torch.float32).shape == (0, 8)
    assert align_backward(torch.ones(()), gradient, None, torch.float32).shape == (0, 8)


@given(shape=shapes, dtype=st.sampled_from(DTYPES), total_dtype=st.sampled_from(DTYPES))
def test_the_slots_sum_is_that_of_float32_rounded_once(shape, dtype, total_dtype):
    batch, tokens, width, top_k = shape
    o, plan = make_slots(batch, tokens, width, top_k, dtype)
    total = sum_slots(o, plan, total_dtype)
    assert total.dtype == total_dtype
    assert torch.equal(total, float32_sum(o, plan).to(total_dtype))


@given(shape=shapes, dtype=st.sampled_from(DTYPES), pool=st.sampled_from(("cls", "mean")))
def test_what_comes_through_the_router_is_added_before_the_sum_is_rounded(shape, dtype, pool):
    batch, tokens, width, top_k = shape
    o, plan = make_slots(batch, tokens, width, top_k, dtype)
    grad_feature = 3 * torch.randn(batch, width)
    total = sum_slots(o, plan, dtype, grad_feature, pool)
    also = torch.zeros(batch, tokens, width)
    if pool == "cls":
        also[:, 0] = grad_feature
    else:
        also[:] = grad_feature[:, None] / tokens
    assert torch.equal(total, (float32_sum(o, plan) + also.view(-1, width)).to(dtype))


@given(
    rows=st.integers(1, 70),
    width=st.integers(1, 64),
    dtype=st.sampled_from(DTYPES),
    grad_dtype=st.sampled_from(DTYPES),
    also=st.booleans(),
)
def test_the_backward_scales_the_gradient_and_adds_the_other(rows, width, dtype, grad_dtype, also):
    gradient, grad_loss = torch.randn(rows, width).to(dtype), torch.tensor(3.0)
    grad_y = torch.randn(rows, width).to(dtype) if also else None
    grad = align_backward(grad_loss, gradient, grad_y, grad_dtype)
    want = gradient.double() * 3 / rows + (grad_y.double() if also else 0)
    assert grad.dtype == grad_dtype
    assert_close(grad, want, plain=want.to(grad_dtype))


def test_a_loss_that_is_nan_poisons_the_gradient():
    assert align_backward(torch.tensor(float("nan")), torch.zeros(2, 3), torch.ones(2, 3), torch.float32).isnan().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("with_gradient", [True, False])
def test_the_forward_moves_the_bytes_it_says_and_writes_all_once(kind, with_gradient):
    o, plan = make_slots(3, 5, 40, 2, torch.bfloat16)
    teacher = torch.randn(15, 40).bfloat16()
    with check_memory() as memory:
        results = mix_align_forward(o, plan, teacher, kind, with_gradient=with_gradient, **CONSTANTS)
    memory.assert_written(*results)
    assert memory.unique_bytes == mix_align_forward_bytes(o, plan, teacher, with_gradient=with_gradient)
    student = torch.randn(15, 40)
    with check_memory() as memory:
        results = align_forward(student, teacher, kind, with_gradient=with_gradient, **CONSTANTS)
    memory.assert_written(*results)
    assert memory.unique_bytes == align_forward_bytes(student, teacher, with_gradient=with_gradient)


@pytest.mark.parametrize("width", [40, 1100])
def test_the_sum_and_the_backward_move_the_bytes_they_say_and_write_all_once(width):
    o, plan = make_slots(3, 5, width, 2, torch.bfloat16)
    with check_memory() as memory:
        total = sum_slots(o, plan, torch.float32)
    memory.assert_written(total)
    assert memory.unique_bytes == sum_slots_bytes(o, plan, torch.float32)
    for grad_y in (None, torch.randn(15, width)):
        with check_memory() as memory:
            grad = align_backward(torch.ones(()), total, grad_y, torch.float16)
        memory.assert_written(grad)
        assert memory.unique_bytes == align_backward_bytes(total, grad_y, torch.float16)


def test_no_rows_move_no_bytes():
    o, plan = make_slots(3, 0, 40, 2, torch.bfloat16)
    teacher = torch.zeros(0, 40)
    assert mix_align_forward_bytes(o, plan, teacher, with_gradient=True) == 0
    assert sum_slots_bytes(o, plan, torch.float32) == 0
    assert align_backward_bytes(teacher, None, torch.float32) == 0
