"""The slots' sum, the alignment loss and their backward, against float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import dexcore.kernels.mix_align as module
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
from kernels.expert_rows import in_rows, in_slots, plan_of
from kernels.far_memory import Launch, far
from kernels.memory_check import check_memory

KINDS = ("kd", "cosine", "mse")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
WIDE = 1100  # a program takes one such row, so that its sum of losses is a row's
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
    """Against float64, as good as plain PyTorch in float32. Wide rows have losses of their own, others are summed."""
    want, want_gradient = losses_and_gradient(student, teacher, kind, torch.float64)
    plain, plain_gradient = losses_and_gradient(student, teacher, kind, torch.float32)
    assert losses.dtype == torch.float32
    if student.shape[1] >= WIDE:
        assert_close(losses, want, plain=plain, name="losses")
    else:
        assert_close(losses.sum(), want.sum(), plain=plain.sum(), name="losses")
    assert gradient.dtype == student.dtype
    assert_close(gradient, want_gradient, plain=plain_gradient.to(gradient.dtype), name="gradient")


def make_slots(batch, tokens, width, top_k, dtype, experts=5, seed=0):
    """o in expert order, NaN where a row has no token; and the plan."""
    g = torch.Generator().manual_seed(seed)
    indices = torch.rand(batch, experts - 1, generator=g).argsort(-1)[:, :top_k]  # the last expert has no images
    plan = plan_of(indices.contiguous(), experts, tokens, 4)
    of_slots = torch.randn(batch * top_k, tokens, width, generator=g).to(dtype)
    return in_rows(plan, of_slots, pad=float("nan")), plan


def slots_of_image(o, plan):
    """[k, B*N, D]: the slots' rows in the order of images."""
    return in_slots(plan, o).unflatten(0, (-1, plan.top_k)).transpose(0, 1).flatten(1, 2)


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
    assert_close(losses.sum(), want.sum())
    assert want_gradient.abs().max() < 1e-3  # without the clamp it would be about 1
    assert (gradient - want_gradient).abs().max() < 1e-9


def test_the_constants_are_the_callers():
    student, teacher = 4 * torch.randn(3, 10), torch.randn(3, 10)
    constants = {"teacher_temperature": 2.0, "smallest_probability": 0.05, "cosine_eps": 10.0}
    losses, _ = align_forward(student, teacher, "kd", with_gradient=False, **constants)
    q = student.double().softmax(-1)
    assert (q < 0.05).any()
    assert_close(losses.sum(), -((teacher.double() / 2).softmax(-1) * q.clamp(min=0.05).log()).sum())
    teacher *= 0.1
    losses, _ = align_forward(student, teacher, "cosine", with_gradient=False, **constants)
    norms = student.norm(dim=-1).clamp(min=10) * teacher.norm(dim=-1).clamp(min=10)
    assert_close(losses.sum(), (1 - (student * teacher).sum(-1) / norms).double().sum())


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
    pair = {"student": torch.randn(3, WIDE), "teacher": torch.randn(3, WIDE)}
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
    student = torch.randn(2, WIDE)
    student[0, 3] = float("inf")
    losses, gradient = align_forward(student, torch.randn(2, WIDE), kind, with_gradient=True, **CONSTANTS)
    assert not losses[0].isfinite()
    assert not gradient[0, 3].isfinite()
    assert losses[1].isfinite()
    assert gradient[1].isfinite().all()


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_an_image_of_infinities_stays_alone(kind):
    o, plan = make_slots(3, 4, WIDE, 2, torch.float32)
    teacher = torch.randn(12, WIDE)
    clean = mix_align_forward(o, plan, teacher, kind, with_gradient=True, **CONSTANTS)
    for first in plan.first_rows[2:4].tolist():
        o[first : first + 4] = float("inf")
    results = mix_align_forward(o, plan, teacher, kind, with_gradient=True, **CONSTANTS)
    for result, want in zip(results, clean, strict=True):
        result, want = result.unflatten(0, (3, 4)), want.unflatten(0, (3, 4))
        assert torch.equal(result[[0, 2]], want[[0, 2]])
        assert not result[1].isfinite().any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "width", "each"), [(10, WIDE, 4), (100, 40, 64), (3, WIDE, 1), (200, 40, 96)])
def test_losses_are_few_sums_however_many_rows_there_are(monkeypatch, kind, rows, width, each):
    """At most three, of equally many rows each but the last."""
    monkeypatch.setattr(module, "_MOST_SUMS", 3)
    student, teacher = torch.randn(2, rows, width)
    losses, gradient = align_forward(student, teacher, kind, with_gradient=True, **CONSTANTS)
    want, want_gradient = losses_and_gradient(student, teacher, kind, torch.float64)
    assert len(losses) <= 3
    assert_close(losses, torch.stack([part.sum() for part in want.split(each)]))
    assert_close(gradient, want_gradient)


def test_a_batch_of_the_papers_has_at_most_1024_sums():
    for rows, width in ((14_560, 768), (14_560, 192), (50_176, 1280), (1024, WIDE), (1025, WIDE)):
        programs, turns = module._programs(rows, width)
        assert programs <= 1024
        at_once = max(1, 2048 // (1 << (width - 1).bit_length()))
        assert (programs - 1) * turns * at_once < rows <= programs * turns * at_once


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_gradient_nothing_else_changes(kind):
    o, plan = make_slots(2, 3, 20, 2, torch.bfloat16)
    teacher = torch.randn(8, 20).bfloat16()  # of whole tiles: two rows are not looked at
    y, losses, _ = mix_align_forward(o, plan, teacher, kind, with_gradient=True, **CONSTANTS)
    results = mix_align_forward(o, plan, teacher, kind, with_gradient=False, **CONSTANTS)
    assert torch.equal(results[0], y)
    assert torch.equal(results[1], losses)
    assert results[2].shape == (0, 20)
    assert torch.equal(align_forward(y, teacher[:6], kind, with_gradient=False, **CONSTANTS)[0], losses)


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
    assert align_backward(torch.ones(()), gradient).shape == (0, 8)


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


@given(rows=st.integers(1, 70), width=st.integers(1, 64), dtype=st.sampled_from(DTYPES))
def test_the_backward_scales_the_gradient(rows, width, dtype):
    gradient, grad_loss = torch.randn(rows, width).to(dtype), torch.tensor(3.0)
    grad = align_backward(grad_loss, gradient)
    want = gradient.double() * 3 / rows
    assert grad.dtype == dtype
    assert_close(grad, want, plain=want.to(dtype))


def test_a_loss_that_is_nan_poisons_the_gradient():
    assert align_backward(torch.tensor(float("nan")), torch.zeros(2, 3)).isnan().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("with_gradient", [True, False])
def test_the_forward_moves_the_bytes_it_says_and_writes_all_once(kind, with_gradient):
    o, plan = make_slots(3, 5, 40, 2, torch.bfloat16)
    teacher = torch.randn(16, 40).bfloat16()
    with check_memory() as memory:
        results = mix_align_forward(o, plan, teacher, kind, with_gradient=with_gradient, **CONSTANTS)
    memory.assert_written(*results)
    assert memory.unique_bytes == mix_align_forward_bytes(plan, 40, torch.bfloat16, with_gradient=with_gradient)
    student, teacher = torch.randn(2, 15, 40)
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
    with check_memory() as memory:
        grad = align_backward(torch.ones(()), total)
    memory.assert_written(grad)
    assert memory.unique_bytes == align_backward_bytes(total)


def test_no_rows_move_no_bytes():
    o, plan = make_slots(3, 0, 40, 2, torch.bfloat16)
    assert mix_align_forward_bytes(plan, 40, torch.bfloat16, with_gradient=True) == 0
    assert sum_slots_bytes(o, plan, torch.float32) == plan.first_rows.nbytes
    assert align_backward_bytes(torch.zeros(0, 40)) == 0


FAR = 2**25  # a row of 64 columns from here on lies beyond 2^31 elements


def far_launch():
    """An image of four tokens and one slot, and the mean squared error with its gradient."""
    o, plan = make_slots(1, 4, 64, 1, torch.float16)
    teacher = torch.randn(4, 64).half()
    launch = Launch(module, lambda: mix_align_forward(o, plan, teacher, "mse", with_gradient=True, **CONSTANTS))
    y = in_slots(plan, o)[0]
    return launch, y, teacher, losses_and_gradient(y, teacher, "mse", torch.float64)


def test_expert_order_may_have_more_than_two_to_the_31_elements(tmp_path):
    launch, y, _, (want, _) = far_launch()
    o = far(tmp_path / "o", FAR + 4, 64)
    o[FAR:] = y
    out, losses = torch.zeros(4, 64).half(), torch.zeros(1)
    launch.run(0, student_ptr=o, first_rows_ptr=torch.tensor([FAR]).int(), y_ptr=out, losses_ptr=losses)
    assert torch.equal(out, y)
    assert_close(losses[0], want.sum())


@pytest.mark.parametrize("mixed", [True, False])
def test_images_may_have_more_than_two_to_the_31_elements(tmp_path, mixed):
    """The last of them, which program FAR / 32 owns."""
    launch, y, teacher, (want, want_gradient) = far_launch()
    tensors = {name: far(tmp_path / name, FAR + 4, 64) for name in ("y_ptr", "teacher_ptr", "gradient_ptr")}
    tensors["teacher_ptr"][FAR:] = teacher
    if mixed:
        tensors["first_rows_ptr"] = far(tmp_path / "first rows", FAR // 4 + 1, dtype=torch.int32)
        tensors["student_ptr"] = y
    else:
        student = tensors["student_ptr"] = tensors.pop("y_ptr")
        student[FAR:] = y
        tensors |= {"first_rows_ptr": None, "y_ptr": None}
    losses = torch.zeros(FAR // 32 + 1)
    launch.run(FAR // 32, **tensors, num_rows=FAR + 4, losses_ptr=losses)
    if mixed:
        assert torch.equal(tensors["y_ptr"][FAR:], y)
    assert_close(losses[-1], want.sum())
    assert_close(tensors["gradient_ptr"][FAR:], want_gradient)


def test_a_slots_sum_may_have_more_than_two_to_the_31_elements(tmp_path):
    """The last image of four tokens, whose slot is the last in expert order too."""
    o, plan = make_slots(1, 4, 64, 1, torch.float16)
    launch = Launch(module, lambda: sum_slots(o, plan, torch.float16))
    rows, total = (far(tmp_path / name, FAR + 4, 64) for name in ("rows", "total"))
    rows[FAR:] = in_slots(plan, o)[0]
    first_rows = far(tmp_path / "first rows", FAR // 4 + 1, dtype=torch.int32)
    first_rows[-1] = FAR
    launch.run(FAR // 32, o_ptr=rows, first_rows_ptr=first_rows, total_ptr=total, num_rows=FAR + 4)
    assert torch.equal(total[FAR:], rows[FAR:])


def test_a_backward_may_have_more_than_two_to_the_31_elements(tmp_path):
    launch = Launch(module, lambda: align_backward(torch.tensor(3.0), torch.ones(1, 64).half()))
    gradient, grad = (far(tmp_path / name, FAR + 1, 64) for name in ("gradient", "grad"))
    gradient[FAR] = torch.randn(64)
    launch.run(2**31 // 2048, gradient_ptr=gradient, grad_ptr=grad, num_elements=gradient.numel())
    assert_close(grad[FAR], 3 * gradient[FAR].double())
