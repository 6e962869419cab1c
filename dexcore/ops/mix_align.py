"""`mix_align`: the alignment loss between the experts' output and the director's (the method's step 8).

    "kd"      mean over rows of -sum p log max(q, 1e-6),  p = softmax(teacher / 0.5), q = softmax(student / 1.0)
    "cosine"  mean over rows of 1 - cos(student, teacher)
    "mse"     mean over all elements of (student - teacher)^2

The teacher is a target and gets no gradient. Where q < 1e-6 the clamp of "kd" passes none.

The eager path computes a row's gradient while the row is in cache, in the forward, and keeps it: the backward is one
multiplication.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dexcore.ops.backend import TRITON_DTYPES, resolve
from dexcore.ops.checks import check_choice, check_floating, check_same_device, check_shape, refuse_transforms
from dexcore.ops.library import ArgumentList, define_op

ALIGNS = ("kd", "cosine", "mse")
TEACHER_TEMPERATURE = 0.5
SMALLEST_PROBABILITY = 1e-6
_COSINE_EPS = 1e-8  # as torch.nn.functional.cosine_similarity
KERNEL_CONSTANTS = {
    "teacher_temperature": TEACHER_TEMPERATURE,
    "smallest_probability": SMALLEST_PROBABILITY,
    "cosine_eps": _COSINE_EPS,
}
_ROWS_A_BLOCK = 1024


def mix_align(student: Tensor, teacher: Tensor, kind: str = "kd", *, backend: str = "auto") -> Tensor:
    """The alignment loss of two feature maps, over the last axis.

    Args:
        student: [B, N, D], floating: the experts' output; gets the gradient.
        teacher: [B, N, D], floating: the director's output; gets none.
        kind: "kd", "cosine" or "mse" (see the module).
        backend: "auto", "triton" or "eager".

    Returns:
        0-dim, float32 (float64 for float64 input); 0 where there are no rows.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, shape or device; the message names it.
    """
    check_floating("student", student)
    check_floating("teacher", teacher)
    check_shape("student", student, ("B", "N", "D"))
    check_shape("teacher", teacher, student.shape)
    check_same_device(student=student, teacher=teacher)
    check_choice("kind", kind, ALIGNS)
    refuse_transforms("mix_align", student, teacher)
    teacher, chosen = teacher.detach(), resolve(backend, student.device, student.dtype)
    trained = torch.is_grad_enabled() and student.requires_grad
    call = MixAlignCall(student, teacher, kind, with_gradient=trained, backend=chosen)
    return _MixAlign.apply(*call) if trained else _mix_align(*call)[0]


def align_floor(teacher: Tensor, kind: str) -> Tensor:
    """What `mix_align` is at agreement: the teacher's entropy for "kd", else 0. 0-dim, in the teacher's precision.

    "kd" reaches it where softmax(student) = softmax(teacher / 0.5): at a student that is twice the teacher plus a
    constant a row, and not at one that equals it. The clamp at 1e-6 lets it go lower, by at most 1e-6 D.
    """
    teacher = teacher.detach().to(torch.promote_types(teacher.dtype, torch.float32))
    rows = teacher.shape[:-1].numel()
    if kind != "kd" or not rows:
        return teacher.new_zeros(())
    log_p = (teacher * teacher_scale(kind)).log_softmax(-1)
    return -(log_p.exp() * log_p).sum() / rows


def teacher_scale(kind: str) -> float:
    """What `align_rows` finds the teacher multiplied by: where a GEMM makes the teacher, it costs no pass there."""
    return 1 / TEACHER_TEMPERATURE if kind == "kd" else 1.0


def align_rows(student: Tensor, scaled_teacher: Tensor, kind: str, gradient: Tensor | None) -> Tensor:
    """Sum of the rows' losses (0-dim); their gradients, of the sum, go to ``gradient``.

    ``student`` and ``scaled_teacher``, teacher times `teacher_scale`, are [rows, D]; float32 arithmetic, or float64.
    """
    precision = torch.promote_types(student.dtype, torch.float32)
    student, teacher = student.to(precision), scaled_teacher.to(precision)
    if kind == "kd":
        p = teacher.softmax(-1)
        log_q = student.log_softmax(-1)  # the student's temperature is 1
        floor = math.log(SMALLEST_PROBABILITY)
        if student.is_cpu and log_q.numel() and bool(log_q.amin() > floor):  # nothing to clamp: four passes less
            loss = -torch.dot(p.view(-1), log_q.view(-1))
            if gradient is not None:
                _subtract(log_q.exp_(), p, out=gradient)
            return loss
        loss = -torch.dot(p.view(-1), log_q.clamp(min=floor).view(-1))
        if gradient is not None:
            p.mul_(log_q >= floor)  # the clamp passes no gradient below
            _subtract(log_q.exp_().mul_(p.sum(-1, keepdim=True)), p, out=gradient)
        return loss
    if kind == "cosine":
        student_norm = student.norm(dim=-1, keepdim=True).clamp(min=_COSINE_EPS)
        teacher_unit = teacher / teacher.norm(dim=-1, keepdim=True).clamp(min=_COSINE_EPS)
        student_unit = student / student_norm
        cosine = (student_unit * teacher_unit).sum(-1, keepdim=True)
        if gradient is not None:
            gradient.copy_((cosine * student_unit - teacher_unit) / student_norm)
        return (1 - cosine).sum()
    difference = student - teacher
    loss = difference.square().sum() / student.shape[-1]
    if gradient is not None:
        gradient.copy_(difference.mul_(2 / student.shape[-1]))
    return loss


def _subtract(a: Tensor, b: Tensor, out: Tensor) -> None:
    """out = a - b; ``out`` may have another dtype, and ``a`` is spent."""
    if out.dtype == a.dtype:
        torch.sub(a, b, out=out)
    else:
        out.copy_(a.sub_(b))


class MixAlignCall(NamedTuple):
    """The arguments of the op, and of its autograd.Function."""

    student: Tensor  # [B, N, D]
    teacher: Tensor  # [B, N, D]
    kind: str
    with_gradient: bool  # whether the gradient [B, N, D] is made too
    backend: str


class MixAlignBackwardCall(NamedTuple):
    """The arguments of the backward's op."""

    grad_loss: Tensor  # 0-dim
    gradient: Tensor  # [B, N, D], of the sum of the rows' losses
    backend: str


def _run(call: MixAlignCall) -> tuple[Tensor, Tensor]:
    student, teacher, kind, with_gradient, backend = call
    rows, width = student.shape[:-1].numel(), student.shape[-1]
    if backend == "triton":
        from dexcore.kernels.mix_align import align_forward

        teacher = teacher if teacher.dtype in TRITON_DTYPES else teacher.float()
        flat = [t.reshape(rows, width).contiguous() for t in (student, teacher)]
        losses, gradient = align_forward(*flat, kind, with_gradient=with_gradient, **KERNEL_CONSTANTS)
        return losses.sum() / max(rows, 1), gradient.view(student.shape if with_gradient else (0, 0, width))
    gradient = student.new_empty(student.shape if with_gradient else (0, 0, width))
    total = student.new_zeros((), dtype=torch.promote_types(student.dtype, torch.float32))
    blocks = [t.reshape(-1, width).split(_ROWS_A_BLOCK) for t in (student, teacher, gradient)]
    scale = teacher_scale(kind)
    for i, (student_block, teacher_block) in enumerate(zip(*blocks[:2], strict=True)):
        total += align_rows(student_block, teacher_block * scale, kind, blocks[2][i] if with_gradient else None)
    return total / max(rows, 1), gradient


def _fake(call: MixAlignCall) -> tuple[Tensor, Tensor]:
    student = call.student
    loss = student.new_empty((), dtype=torch.promote_types(student.dtype, torch.float32))
    return loss, student.new_empty(student.shape if call.with_gradient else (0, 0, student.shape[-1]))


def _run_backward(call: MixAlignBackwardCall) -> Tensor:
    grad_loss, gradient, backend = call
    if backend == "triton":
        from dexcore.kernels.mix_align import align_backward

        flat = gradient.contiguous().flatten(0, 1)
        return align_backward(grad_loss.float(), flat).view(gradient.shape)
    return _scaled(grad_loss, gradient).to(gradient.dtype)


def _fake_backward(call: MixAlignBackwardCall) -> Tensor:
    return call.gradient.new_empty(call.gradient.shape)


_mix_align = define_op("mix_align", MixAlignCall, _run, _fake)
_mix_align_backward = define_op("mix_align_backward", MixAlignBackwardCall, _run_backward, _fake_backward)
_CALL = ArgumentList(MixAlignCall)


def _scaled(grad_loss: Tensor, gradient: Tensor) -> Tensor:
    """From the gradient of the rows' sum to that of their mean, times the incoming one; in grad_loss's dtype."""
    return gradient * _scale(grad_loss, gradient)


def _scale(grad_loss: Tensor, gradient: Tensor) -> Tensor:
    return (grad_loss / max(gradient.shape[:-1].numel(), 1)).expand(1)


def add_scaled_gradient(grad_y: Tensor | None, grad_loss: Tensor | None, gradient: Tensor) -> Tensor:
    """grad_y plus the gradient of the mean of the rows' losses, in ``gradient``'s dtype; by PyTorch. One of the first
    two may be None."""
    if grad_loss is None:
        assert grad_y is not None
        return grad_y.to(gradient.dtype)
    if grad_y is None:
        return _scaled(grad_loss, gradient).to(gradient.dtype)
    if grad_y.dtype == gradient.dtype == grad_loss.dtype:
        return torch.addcmul(grad_y, gradient, _scale(grad_loss, gradient))
    return (grad_y + _scaled(grad_loss, gradient)).to(gradient.dtype)


class _MixAlign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        call = _CALL.nest(arguments)
        loss, gradient = _mix_align(*call)
        ctx.save_for_backward(gradient)
        ctx.backend = call.backend
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Any, ...]:
        (gradient,) = ctx.saved_tensors
        grad_student = _mix_align_backward(*MixAlignBackwardCall(grad_loss, gradient, ctx.backend))
        return _CALL.place({"student": grad_student})
