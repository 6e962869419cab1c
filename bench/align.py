"""The alignment loss, forward and backward: time, and share of the largest copy's bandwidth.

    python -m bench.align

    dexcore     dexcore.ops.mix_align: one pass forward, one backward
    eager       separate operations of PyTorch, as the published loop has them
    compiled    the same through torch.compile
    kernels     on a GPU: dexcore's two kernels alone, without the last sum of the losses

The kernels' forward reads student and teacher and writes a gradient, their backward reads and writes one: five tensors
of the student's size, which the share of the copy's bandwidth counts. The goal is of the two kernels; a model's layers
run them within `dex_mlp`. The others move more, and have no such share.
"""

import sys
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.command import Ceilings, Goal, Line, Options, Refused, capture_or_reason, dtype_name, judged, run, table_row
from bench.contenders import REFERENCE, Shape, WrongResultError, relative_error
from bench.published import published_align
from bench.timing import beside_ceilings, captured, interleaved, machine
from dexcore.ops import mix_align, reference
from dexcore.ops.mix_align import ALIGNS, KERNEL_CONSTANTS

COPY_SHARE = 0.85  # the goal on an H100
_CPU_SHAPE, _QUICK = Shape(32, 65, 768), Shape(4, 5, 64)
# Allowed beyond twice the error of the separate operations.
_LUCK = {torch.float32: 1e-5, torch.bfloat16: 2e-2}

Loss = Callable[[Tensor, Tensor], Tensor]


def shape_of(options: Options) -> Shape:
    if options.quick:
        return _QUICK
    return REFERENCE if options.on_gpu else _CPU_SHAPE


def _cosine(student: Tensor, teacher: Tensor) -> Tensor:
    return (1 - F.cosine_similarity(student.float(), teacher.float(), dim=-1)).mean()


def _mse(student: Tensor, teacher: Tensor) -> Tensor:
    return F.mse_loss(student.float(), teacher.float())


def _kd(student: Tensor, teacher: Tensor) -> Tensor:
    return published_align(student.float(), teacher.float())


def losses(kind: str) -> dict[str, Loss]:
    """The contenders for a kind of loss."""
    eager = {"kd": _kd, "cosine": _cosine, "mse": _mse}[kind]
    return {
        "dexcore": partial(mix_align, kind=kind),
        "eager": eager,
        "compiled": torch.compile(eager, dynamic=False),
    }


def _tensors(shape: Shape, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Student and teacher."""
    generator = torch.Generator(device).manual_seed(5)
    return [torch.randn(shape, generator=generator, device=device).to(dtype) for _ in range(2)]


def make_step(
    loss: Loss, shape: Shape, dtype: torch.dtype, device: torch.device, computed: torch.dtype | None = None
) -> Callable[[], list[Tensor]]:
    """Forward and backward, of values rounded to ``dtype``, in ``computed``: the loss and the student's gradient."""
    computed = computed or dtype
    student, teacher = (tensor.to(computed) for tensor in _tensors(shape, dtype, device))
    student.requires_grad_()
    one = torch.ones((), dtype=torch.promote_types(computed, torch.float32), device=device)

    def step() -> list[Tensor]:
        student.grad = None
        value = loss(student, teacher)
        value.backward(one)
        return [value.detach(), student.grad]

    return step


def kernels_step(kind: str, shape: Shape, dtype: torch.dtype, device: torch.device) -> Callable[[], list[Tensor]]:
    """The two launches of dexcore's op: sums of the rows' losses, and the student's gradient."""
    from dexcore.kernels.mix_align import align_backward, align_forward  # a GPU's alone: without Triton the rest runs

    student, teacher = (tensor.flatten(0, 1) for tensor in _tensors(shape, dtype, device))
    one = torch.ones((), device=device)

    def step() -> list[Tensor]:
        sums, gradient = align_forward(student, teacher, kind, with_gradient=True, **KERNEL_CONSTANTS)
        return [sums, align_backward(one, gradient).view(shape)]

    return step


def make_steps(kind: str, shape: Shape, dtype: torch.dtype, options: Options) -> dict[str, Callable[[], list[Tensor]]]:
    """The contenders' steps; "eager" is what the others may err by."""
    steps = {name: make_step(loss, shape, dtype, options.device) for name, loss in losses(kind).items()}
    if not options.compiled:
        del steps["compiled"]
    return steps | ({"kernels": kernels_step(kind, shape, dtype, options.device)} if options.on_gpu else {})


def case_name(kind: str, dtype: torch.dtype) -> str:
    return f"{kind}, {dtype_name(dtype)}"


def check(options: Options) -> Refused:
    """Hold loss and gradient of every contender to float64."""
    refused: Refused = {}
    shape = shape_of(options)
    for dtype in options.dtypes:
        for kind in ALIGNS:
            plain = partial(reference.mix_align, kind=kind)
            truth = make_step(plain, shape, dtype, options.device, computed=torch.float64)()
            allowed: list[float] = []
            steps = make_steps(kind, shape, dtype, options)
            for name in ("eager", *(name for name in steps if name != "eager")):
                try:
                    loss, gradient = steps[name]()
                    found = [loss.sum() / (shape.images * shape.tokens) if loss.dim() else loss, gradient]
                except Exception as error:  # no compiler, or none that this machine's PyTorch can use
                    if name != "compiled":
                        raise
                    refused.setdefault(case_name(kind, dtype), {})[name] = str(error).splitlines()[0]
                    continue
                errors = [relative_error(ours, theirs) for ours, theirs in zip(found, truth, strict=True)]
                allowed = allowed or [2 * error + _LUCK[dtype] for error in errors]
                if not all(error <= bound for error, bound in zip(errors, allowed, strict=True)):
                    raise WrongResultError(f"align, {name}, {kind} {dtype}: {errors} off, allowed {allowed}")
    return refused


def measure(options: Options, ceilings: Ceilings, refused: Refused) -> list[Line]:
    """A table a dtype and kind. On a GPU from CUDA graphs, so that the host's part of the time is nobody's."""
    shape, lines = shape_of(options), []
    for dtype in options.dtypes:
        for kind in ALIGNS:
            case = case_name(kind, dtype)
            steps: dict[str, Callable[[], object]] = {}
            for name, step in make_steps(kind, shape, dtype, options).items():
                if name in refused.get(case, {}):
                    continue
                if options.on_gpu:
                    replay, reason = capture_or_reason(lambda step=step: captured(step))
                    if replay is None:
                        print(f"{name} is timed with the host's part, since it cannot be captured: {reason}")
                    step = replay or step
                steps[name] = step
            ceiling = ceilings[dtype]
            if options.on_gpu:
                times, ceiling = beside_ceilings(steps, options.seconds / 2, dtype, options.device, options.quick)
            else:
                times = interleaved(steps, options.seconds / 2, options.device)
            moved = 5 * shape.images * shape.tokens * shape.width * dtype.itemsize
            print(f"{shape} {case}: dexcore moves {moved / 1e6:.1f} MB")
            print(table_row("", "ms", "p20", "p80", "x eager", "of copy"))
            for name, time in times.items():
                speedup = times["eager"].median / time.median
                cells = [f"{seconds * 1e3:.3f}" for seconds in (time.median, time.p20, time.p80)] + [f"{speedup:.2f}"]
                line: Line = {"bench": "align", **machine(options.device), **shape._asdict(), "kind": kind}
                line |= {"dtype": dtype_name(dtype), "contender": name, **vars(time), "speedup": speedup}
                if name in ("dexcore", "kernels"):
                    share = moved / time.median / 1e9 / ceiling["copy_gbs"]
                    cells.append(f"{share:.2f}")
                    line |= {"bytes": moved, "copy_share": share}
                print(table_row(name, *cells), flush=True)
                if name == "kernels":
                    goal = Goal("share of the largest copy's bandwidth", share, COPY_SHARE)
                    line |= judged(goal)
                lines.append(line | ceiling)
    return lines


if __name__ == "__main__":
    run(__doc__, {"align": sys.modules[__name__]})
