"""`dex_mlp`: experts, director and alignment loss of a DEX layer in one op (the method's steps 5 to 8).

Axes as in `dexcore.ops.expert_mlp`. Triton's kernels run the director in the experts' launches, and align where the
experts' outputs are summed.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from dexcore.ops import experts_eager
from dexcore.ops.backend import resolve
from dexcore.ops.checks import check_choice, check_floating, check_same_device, check_shape, refuse_transforms
from dexcore.ops.expert_mlp import (
    allowed_keep,
    check_expert_arguments,
    compute_dtype,
    dtypes_of,
    prepared,
    returned,
    saved,
)
from dexcore.ops.expert_types import (
    Director,
    ExpertArguments,
    Gradients,
    Kept,
    Needs,
    Settings,
    empty_gradients,
    empty_kept,
)
from dexcore.ops.library import ArgumentList, define_op, flatten
from dexcore.ops.mix_align import ALIGNS, add_scaled_gradient


def dex_mlp(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    dw1: Tensor,
    db1: Tensor | None,
    dw2: Tensor,
    db2: Tensor | None,
    gates: Tensor,
    indices: Tensor,
    activation: str = "gelu",
    align: str = "kd",
    keep: str = "both",
    precision: str = "ieee",
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """`expert_mlp`, and its alignment loss against the director's output.

    Args:
        x, w1, b1, w2, b2, gates, indices, activation, keep, precision, backend: as for `expert_mlp`.
        dw1, db1, dw2, db2: [C, D], [C] or None, [D, H], [D] or None: the director. It is a target and gets no
            gradient.
        align: "kd", "cosine" or "mse", as for `mix_align`.

    Returns:
        y [B, N, D] as `expert_mlp` returns it, and the loss, 0-dim, float32 (float64 for float64 input).

    Raises:
        TypeError, ValueError, IndexError: as `expert_mlp`.
    """
    check_expert_arguments(x, w1, b1, w2, b2, gates, indices, activation, keep, precision)
    check_director(x, w1, w2, dw1, db1, dw2, db2)
    check_choice("align", align, ALIGNS)
    compute = compute_dtype(x)
    chosen = resolve(backend, x.device, compute, precision)
    keep = allowed_keep(keep, compute, chosen, backend)
    given = ExpertArguments(x, w1, b1, w2, b2, gates, indices)
    settings = Settings(activation, precision, chosen, compute)
    target = as_target(Director(dw1, db1, dw2, db2), settings)
    refuse_transforms("dex_mlp", *given, *target)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given):
        return _DexMlp.apply(*flatten(DexMlpCall(given, target, keep, align, settings)))
    y, loss, *_ = _dex_mlp(*flatten(DexMlpCall(prepared(given, settings), target, "nothing", align, settings)))
    return y, loss


def check_director(
    x: Tensor, w1: Tensor, w2: Tensor, dw1: Tensor, db1: Tensor | None, dw2: Tensor, db2: Tensor | None
) -> None:
    """Raise an error that names the first of the director's tensors that does not fit x and the experts' weights."""
    director = {
        "dw1": (dw1, w1.shape[1:]),
        "db1": (db1, w1.shape[1:2]),
        "dw2": (dw2, w2.shape[1:]),
        "db2": (db2, w2.shape[1:2]),
    }
    for name, (tensor, shape) in director.items():
        if tensor is not None or name in ("dw1", "dw2"):
            check_floating(name, tensor)  # type: ignore[arg-type]
            check_shape(name, tensor, shape)  # type: ignore[arg-type]
    check_same_device(x=x, dw1=dw1, db1=db1, dw2=dw2, db2=db2)


def as_target(director: Director, settings: Settings) -> Director:
    """Without gradient; for eager GEMMs in their dtype. What has none stays itself: copies are kept by the object."""
    target = Director(*(t.detach() if t is not None and t.requires_grad else t for t in director))  # type: ignore[arg-type]
    if settings.backend == "triton":
        return target
    return Director(*(None if t is None else t.to(settings.compute) for t in target))  # type: ignore[arg-type]


class DexMlpCall(NamedTuple):
    """The arguments of the op, and of its autograd.Function."""

    given: ExpertArguments
    director: Director
    keep: str  # one of KEEPS; "nothing" where no backward follows
    align: str
    settings: Settings


class DexMlpBackwardCall(NamedTuple):
    """The arguments of the backward's op."""

    grad_y: Tensor | None  # [B, N, D]
    grad_loss: Tensor | None  # 0-dim
    given: ExpertArguments
    kept: Kept
    gradient: Tensor  # [B, N, D], of the sum of the rows' losses
    needs: list[bool]  # `Needs`
    settings: Settings
    x_dtype: torch.dtype  # of x's gradient
    weight_dtype: torch.dtype  # of the weights' and biases' gradients


class DexMlpResult(NamedTuple):
    """What the op returns: y, the loss, the fields of `Kept`, and the gradient of the sum of the rows' losses."""

    y: Tensor
    loss: Tensor
    z: Tensor
    a: Tensor
    o: Tensor
    x_rows: Tensor
    gate_rows: Tensor
    plan: Tensor
    gradient: Tensor


def _run(call: DexMlpCall) -> DexMlpResult:
    y, loss, kept, gradient = forward(call)
    return DexMlpResult(y, loss, *kept, gradient)


def forward(call: DexMlpCall, balance: Any = None) -> tuple[Tensor, Tensor, Kept, Tensor]:
    """y, the alignment loss, what the backward needs, and the gradient of the rows' losses.

    Triton fills ``balance`` (`dexcore.kernels.route.Balance`) in passing.
    """
    x = call.given.x
    if call.settings.backend == "triton":
        from dexcore.ops import experts_triton

        y, total, kept, gradient = experts_triton.forward_align(*call, balance)
    else:
        y, kept = experts_eager.forward(call.given, call.keep, call.settings)
        gradient = empty_align_gradient(x, call.keep, call.settings)
        wanted = gradient if call.keep != "nothing" else None
        total = experts_eager.align_director(x, call.director, y, wanted, call.align, call.settings)
    return y, total / max(x.shape[:-1].numel(), 1), kept, gradient


def empty_align_gradient(x: Tensor, keep: str, settings: Settings) -> Tensor:
    """Room for the gradient of the rows' losses; empty where no backward follows."""
    return x.new_empty(x.shape if keep != "nothing" else (0, *x.shape[1:]), dtype=settings.compute)


def _fake(call: DexMlpCall) -> DexMlpResult:
    x, compute = call.given.x, call.settings.compute
    y = x.new_empty(x.shape, dtype=compute)
    loss = x.new_empty((), dtype=torch.promote_types(compute, torch.float32))
    kept = empty_kept(call.given, call.keep, call.settings)
    return DexMlpResult(y, loss, *kept, empty_align_gradient(x, call.keep, call.settings))


def _run_backward(call: DexMlpBackwardCall) -> Gradients:
    needs, rest = Needs(*call.needs), (call.settings, call.x_dtype, call.weight_dtype)
    if call.settings.backend == "triton":
        from dexcore.ops import experts_triton

        align = experts_triton.AlignGradient.of(call.grad_loss, call.gradient)
        return experts_triton.backward(call.grad_y, call.given, call.kept, needs, *rest, align)
    total = add_scaled_gradient(call.grad_y, call.grad_loss, call.gradient)
    return experts_eager.backward(total, call.given, call.kept, needs, *rest)


def _fake_backward(call: DexMlpBackwardCall) -> Gradients:
    given = call.given._replace(x=call.given.x.new_empty(call.gradient.shape))
    return empty_gradients(given, Needs(*call.needs), call.x_dtype, call.weight_dtype)


_dex_mlp = define_op("dex_mlp", DexMlpCall, _run, _fake)
_dex_mlp_backward = define_op("dex_mlp_backward", DexMlpBackwardCall, _run_backward, _fake_backward)


class _Saved(NamedTuple):
    given: ExpertArguments
    kept: Kept
    gradient: Tensor


_CALL, _SAVED = ArgumentList(DexMlpCall), ArgumentList(_Saved)


class _DexMlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        call = _CALL.nest(arguments)
        given = prepared(call.given, call.settings)
        y, loss, *kept = _dex_mlp(*flatten(call._replace(given=given)))
        ctx.save_for_backward(*saved(given, call.settings), *kept)
        ctx.settings, ctx.dtypes = call.settings, dtypes_of(call.given)
        ctx.set_materialize_grads(False)
        return y, loss

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor | None, grad_loss: Tensor | None) -> tuple[Any, ...]:
        if grad_y is None and grad_loss is None:
            return _CALL.place({})
        kept = _SAVED.nest(ctx.saved_tensors)
        needs = Needs(*_CALL.nest(ctx.needs_input_grad).given.differentiable)
        call = DexMlpBackwardCall(
            grad_y=grad_y,
            grad_loss=grad_loss,
            given=kept.given,
            kept=kept.kept,
            gradient=kept.gradient,
            needs=list(needs),
            settings=ctx.settings,
            x_dtype=ctx.dtypes.x,
            weight_dtype=ctx.dtypes.w1,
        )
        grads = Gradients(*_dex_mlp_backward(*flatten(call)))
        return _CALL.place(returned(grads, ctx.dtypes, needs))
