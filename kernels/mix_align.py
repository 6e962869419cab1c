"""The sum over an image's experts, the alignment loss with its gradient, and the backward of both.

b images, n tokens, d width, k chosen experts; BN = B*N rows of images, S N = B*k*N of them in expert order, that of
`dexcore.kernels.plan`. All kernels here are bound by memory: a row is read once, kept in registers, and everything
about it is written at once. The formulas and their constants are those of `dexcore.ops.mix_align`, which passes the
constants in.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from dexcore.kernels.launch import launch
from dexcore.kernels.numerics import rounded
from dexcore.kernels.plan import Plan
from dexcore.kernels.route import feature_gradient

# Sixteen elements a thread of four warps: two 16-byte loads of bf16, four of fp32, a tensor.
_ELEMENTS_A_PROGRAM = 2048
_ELEMENTS_A_WARP = 512
_MOST_WARPS = 16  # 1024 threads on gfx942
_WIDEST_SUM = 1024
_MOST_SUMS = 1024  # of losses, one a program: few enough that their sum costs nothing


def _rows_and_warps(block_d: int) -> dict[str, int]:
    """Rows a program and warps, so that narrow rows share a program and wide ones get more warps."""
    rows = max(1, _ELEMENTS_A_PROGRAM // block_d)
    return {"ROWS": rows, "num_warps": min(max(rows * block_d // _ELEMENTS_A_WARP, 1), _MOST_WARPS)}


def mix_align_forward(
    o: Tensor,
    plan: Plan,
    teacher: Tensor,
    kind: str,
    *,
    with_gradient: bool,
    teacher_temperature: float,
    smallest_probability: float,
    cosine_eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """y = sum of each image's slots; then the alignment loss of y, rounded to its dtype, against the teacher.

    Args:
        o: [rows, D], expert order, the gates already applied.
        plan: of the routing.
        teacher: [BN, D], or more rows, which are not looked at.
        kind: "kd", "cosine" or "mse".
        with_gradient: whether the loss's gradient by y is written.
        teacher_temperature: of "kd"'s p.
        smallest_probability: "kd"'s clamp of q.
        cosine_eps: the smallest norm.

    Returns:
        y [BN, D] in o's dtype; sums of the rows' losses, float32, 1,024 at most, whose sum is that of all; the gradient
        of that sum [BN, D] in o's dtype, or [0, D].
    """
    y = o.new_empty((plan.images * plan.tokens, o.shape[1]))
    constants = _constants(teacher_temperature, smallest_probability, cosine_eps)
    return y, *_forward(o, plan, teacher, y, kind, with_gradient, constants)


def mix_align_forward_bytes(plan: Plan, width: int, dtype: torch.dtype, *, with_gradient: bool) -> int:
    """Unique bytes that `mix_align_forward` reads and writes; ``dtype`` is o's."""
    rows = plan.images * plan.tokens
    if not rows:
        return 0
    tensors = plan.top_k + 2 + with_gradient  # o, the teacher, y, the gradient
    return rows * width * dtype.itemsize * tensors + plan.first_rows.nbytes + 4 * _programs(rows, width)[0]


def align_forward(
    student: Tensor,
    teacher: Tensor,
    kind: str,
    *,
    with_gradient: bool,
    teacher_temperature: float,
    smallest_probability: float,
    cosine_eps: float,
) -> tuple[Tensor, Tensor]:
    """As `mix_align_forward`, of a student [rows, D] that is one tensor already; the gradient has its dtype."""
    constants = _constants(teacher_temperature, smallest_probability, cosine_eps)
    return _forward(student, None, teacher, None, kind, with_gradient, constants)


def align_forward_bytes(student: Tensor, teacher: Tensor, *, with_gradient: bool) -> int:
    """Unique bytes that `align_forward` reads and writes."""
    sums = 4 * _programs(*student.shape)[0]
    return student.nbytes + teacher.nbytes + sums + (student.nbytes if with_gradient else 0)


def sum_slots(
    o: Tensor, plan: Plan, dtype: torch.dtype, grad_feature: Tensor | None = None, pool: str = "cls"
) -> Tensor:
    """[BN, D] of ``dtype``: the sum of each image's k slots of o [rows, D].

    ``grad_feature`` [B, D], float32, is added: what x gets through the router, to an image's first token (``pool``
    "cls") or spread over all ("mean").
    """
    rows, width = plan.images * plan.tokens, o.shape[1]
    total = torch.empty((rows, width), dtype=dtype, device=o.device)
    block_d = min(triton.next_power_of_2(width), _WIDEST_SUM)
    settings = _rows_and_warps(block_d)
    launch(
        _sum_slots_kernel,
        (triton.cdiv(rows, settings["ROWS"]) * triton.cdiv(width, block_d),),
        o,
        plan.first_rows,
        grad_feature,
        total,
        rows,
        plan.tokens,
        TOP_K=plan.top_k,
        CLS=pool == "cls",
        D=width,
        BLOCK_D=block_d,
        **settings,
    )
    return total


def sum_slots_bytes(o: Tensor, plan: Plan, dtype: torch.dtype, grad_feature: Tensor | None = None) -> int:
    """Unique bytes that `sum_slots` reads and writes."""
    elements = plan.images * plan.tokens * o.shape[1]
    feature = 0 if grad_feature is None else grad_feature.nbytes
    return plan.first_rows.nbytes + feature + elements * (plan.top_k * o.itemsize + dtype.itemsize)


def align_backward(grad_loss: Tensor, gradient: Tensor) -> Tensor:
    """grad_loss / rows * gradient, the gradient of the mean over rows, in ``gradient``'s dtype.

    Args:
        grad_loss: 0-dim, float32; stays on the device.
        gradient: [rows, D], of the sum of the rows' losses.
    """
    grad = torch.empty_like(gradient)
    elements = gradient.numel()
    launch(
        _align_backward_kernel,
        (triton.cdiv(elements, _ELEMENTS_A_PROGRAM),),
        grad_loss,
        gradient,
        grad,
        1 / max(gradient.shape[0], 1),
        elements,
        BLOCK=_ELEMENTS_A_PROGRAM,
        num_warps=_ELEMENTS_A_PROGRAM // _ELEMENTS_A_WARP,
    )
    return grad


def align_backward_bytes(gradient: Tensor) -> int:
    """Unique bytes that `align_backward` reads and writes."""
    return 4 + 2 * gradient.nbytes if gradient.numel() else 0


def _constants(teacher_temperature: float, smallest_probability: float, cosine_eps: float) -> tuple[float, ...]:
    return 1 / teacher_temperature, math.log(smallest_probability), cosine_eps


def _programs(rows: int, width: int) -> tuple[int, int]:
    """Programs that align rows, and how many times each takes its ROWS."""
    at_once = _rows_and_warps(triton.next_power_of_2(width))["ROWS"]
    turns = triton.cdiv(triton.cdiv(rows, at_once), _MOST_SUMS)
    return triton.cdiv(rows, at_once * turns) if rows else 0, turns


def _forward(
    student: Tensor,
    plan: Plan | None,
    teacher: Tensor,
    y: Tensor | None,
    kind: str,
    with_gradient: bool,
    constants: tuple[float, ...],
) -> tuple[Tensor, Tensor]:
    rows, width = (student if y is None else y).shape
    programs, turns = _programs(rows, width)
    losses = torch.empty(programs, dtype=torch.float32, device=teacher.device)
    gradient = student.new_empty((rows if with_gradient else 0, width))
    block_d = triton.next_power_of_2(width)
    launch(
        _align_kernel,
        (programs,),
        student,
        None if plan is None else plan.first_rows,
        teacher,
        y,
        losses,
        gradient if with_gradient else None,
        rows,
        turns,
        0 if plan is None else plan.tokens,
        *constants,
        KIND=kind,
        TOP_K=0 if plan is None else plan.top_k,
        D=width,
        BLOCK_D=block_d,
        **_rows_and_warps(block_d),
    )
    return losses, gradient


@triton.jit
def _slots_sum(o_ptr, first_rows_ptr, rows, row_inside, columns, inside, tokens, TOP_K: tl.constexpr, D: tl.constexpr):
    """The rows' columns of sum_j o, float32, j rising.

    Row r is token r % N of image r // N; its slot j begins at row first_rows[image * k + j] of expert order.
    """
    image = rows // tokens
    token = rows % tokens
    total = tl.zeros(inside.shape, tl.float32)
    for j in tl.static_range(TOP_K):
        first_row = tl.load(first_rows_ptr + image * TOP_K + j, mask=row_inside, other=0)
        source = (first_row + token).to(tl.int64) * D
        total += tl.load(o_ptr + source[:, None] + columns[None, :], mask=inside, other=0.0).to(tl.float32)
    return total


@triton.jit
def _kd(student, teacher, column_inside, inverse_temperature, floor):
    """loss = -sum p max(log q, floor); gradient = q sum(kept p) - kept p, kept where log q >= floor.

    The maximum ignores NaN, the sum after it does not: a NaN reaches the whole row.
    """
    student = tl.where(column_inside, student, float("-inf"))
    shifted = student - tl.max(student, 1)[:, None]
    q = tl.exp(shifted)
    q_sum = tl.sum(q, 1)
    log_q = shifted - tl.log(q_sum)[:, None]

    teacher = tl.where(column_inside, teacher * inverse_temperature, float("-inf"))
    p = tl.exp(teacher - tl.max(teacher, 1)[:, None])
    p = p * (1 / tl.sum(p, 1))[:, None]

    loss = -tl.sum(p * tl.maximum(log_q, floor, propagate_nan=tl.PropagateNan.ALL), 1)
    kept = tl.where(log_q >= floor, p, 0.0)
    return loss, q * (tl.sum(kept, 1) / q_sum)[:, None] - kept


@triton.jit
def _cosine(student, teacher, eps):
    """loss = 1 - <s, t>, s and t of length 1; gradient = (<s, t> s - t) / |student|. Norms are at least eps."""
    student_norm = tl.maximum(tl.sqrt(tl.sum(student * student, 1)), eps, propagate_nan=tl.PropagateNan.ALL)
    teacher_norm = tl.maximum(tl.sqrt(tl.sum(teacher * teacher, 1)), eps, propagate_nan=tl.PropagateNan.ALL)
    s = student * (1 / student_norm)[:, None]
    t = teacher * (1 / teacher_norm)[:, None]
    cosine = tl.sum(s * t, 1)
    return 1 - cosine, (s * cosine[:, None] - t) * (1 / student_norm)[:, None]


@triton.jit
def _mse(student, teacher, D: tl.constexpr):
    """loss = sum of squared differences / D; gradient = 2 difference / D."""
    difference = student - teacher
    return tl.sum(difference * difference, 1) / D, difference * (2 / D)


@triton.jit(do_not_specialize=["num_rows", "turns"])
def _align_kernel(
    student_ptr,
    first_rows_ptr,
    teacher_ptr,
    y_ptr,
    losses_ptr,
    gradient_ptr,
    num_rows,
    turns,
    tokens,
    inverse_temperature,
    floor,
    eps,
    KIND: tl.constexpr,
    TOP_K: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Loss and gradient of rows; with ``first_rows_ptr`` the student's rows are first summed over their slots into y.

    Grid (cdiv(rows, turns ROWS),): a program owns turns times ROWS whole rows, in registers, and writes them
    everywhere: y and gradient; and the sum of their losses. Reads o S N D, or student rows D; teacher rows D;
    first_rows 4 S. Writes y rows D and gradient rows D where asked for; losses 4 a program. FLOPs about 20 rows D. All
    arithmetic is float32; of y its rounded values go on. Registers hold a row of up to 16,384; wider ones spill.
    """
    columns = tl.arange(0, BLOCK_D)
    column_inside = (columns < D)[None, :]
    losses = tl.zeros((ROWS,), tl.float32)
    for turn in range(0, turns):
        rows = (tl.program_id(0) * turns + turn) * ROWS + tl.arange(0, ROWS)
        row_inside = rows < num_rows
        inside = row_inside[:, None] & column_inside
        offsets = (rows.to(tl.int64) * D)[:, None] + columns[None, :]

        teacher = tl.load(teacher_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        if first_rows_ptr is not None:
            total = _slots_sum(student_ptr, first_rows_ptr, rows, row_inside, columns, inside, tokens, TOP_K, D)
            y = rounded(total, y_ptr.dtype.element_ty)
            tl.store(y_ptr + offsets, y, mask=inside)
            student = y.to(tl.float32)
        else:
            student = tl.load(student_ptr + offsets, mask=inside, other=0.0).to(tl.float32)

        if KIND == "kd":
            loss, gradient = _kd(student, teacher, column_inside, inverse_temperature, floor)
        elif KIND == "cosine":
            loss, gradient = _cosine(student, teacher, eps)
        else:
            tl.static_assert(KIND == "mse")
            loss, gradient = _mse(student, teacher, D)
        losses += tl.where(row_inside, loss, 0.0)
        if gradient_ptr is not None:
            tl.store(gradient_ptr + offsets, rounded(gradient, gradient_ptr.dtype.element_ty), mask=inside)
    tl.store(losses_ptr + tl.program_id(0), tl.sum(losses, 0))


@triton.jit(do_not_specialize=["num_rows"])
def _sum_slots_kernel(
    o_ptr,
    first_rows_ptr,
    grad_feature_ptr,
    total_ptr,
    num_rows,
    tokens,
    TOP_K: tl.constexpr,
    CLS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
):
    """total = sum over an image's slots of o, and what comes through the router's feature, in float32.

    Grid (cdiv(rows, ROWS) * cdiv(D, BLOCK_D),), columns fastest: a program owns and writes one tile. Reads o S N D,
    first_rows 4 S, where there is one grad_feature 4 B D; writes total rows D. FLOPs S N D.
    """
    column_blocks: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    rows = tl.program_id(0) // column_blocks * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(0) % column_blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    row_inside = rows < num_rows
    inside = row_inside[:, None] & (columns < D)[None, :]
    total = _slots_sum(o_ptr, first_rows_ptr, rows, row_inside, columns, inside, tokens, TOP_K, D)
    if grad_feature_ptr is not None:
        total += feature_gradient(grad_feature_ptr, rows, columns, inside, tokens, D, CLS)
    offsets = (rows.to(tl.int64) * D)[:, None] + columns[None, :]
    tl.store(total_ptr + offsets, rounded(total, total_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _align_backward_kernel(grad_loss_ptr, gradient_ptr, grad_ptr, inverse_rows, num_elements, BLOCK: tl.constexpr):
    """grad = grad_loss / rows * gradient, in float32.

    Grid (cdiv(rows D, BLOCK),): a program owns and writes BLOCK elements. Reads gradient, rows D, and 4 bytes; writes
    rows D. FLOPs rows D.
    """
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < num_elements
    scale = tl.load(grad_loss_ptr) * inverse_rows
    grad = tl.load(gradient_ptr + offsets, mask=inside, other=0.0).to(tl.float32) * scale
    tl.store(grad_ptr + offsets, rounded(grad, grad_ptr.dtype.element_ty), mask=inside)
