"""`expert_mlp`: the gate-weighted sum of the chosen experts, image-wise (the method's steps 5 and 6).

    y[b] = sum_j gates[b, j] (act(x[b] W1_e^T + b1_e) W2_e^T + b2_e),   e = indices[b, j]

With "swiglu" W1_e and b1_e have 2 H rows, the gate's and then the value's: act([g, v]) = silu(g) v.

Axes: b images, n tokens, d width, h hidden, r experts, k chosen. C is the rows of W1, H or 2 H.

``keep`` says what the backward finds stored:

    "both"  z = x W1^T + b1 and the activation   B k N (C + H) elements
    "z"     z; the activation is computed again  B k N C
    "none"  z is computed again too, by one more GEMM
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from dexcore.ops import experts_eager, onnx
from dexcore.ops.activation import ACTIVATIONS, columns_of
from dexcore.ops.backend import resolve
from dexcore.ops.checks import (
    check_choice,
    check_floating,
    check_integer,
    check_same_device,
    check_shape,
    refuse_transforms,
)
from dexcore.ops.copies import graph_copies
from dexcore.ops.expert_types import (
    ExpertArguments,
    Gradients,
    Kept,
    Needs,
    Settings,
    empty_gradients,
    empty_kept,
)
from dexcore.ops.library import ArgumentList, define_op, flatten, is_exporting

KEEPS = ("both", "z", "none")
PRECISIONS = ("ieee", "tf32", "tf32x3")


def expert_mlp(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    gates: Tensor,
    indices: Tensor,
    activation: str = "gelu",
    keep: str = "both",
    precision: str = "ieee",
    *,
    backend: str = "auto",
) -> Tensor:
    """Apply to every token of an image the image's top-k experts, and sum them by the gates.

    Args:
        x: [B, N, D], floating.
        w1, b1: [R, C, D] and [R, C] or None: the experts' first layers.
        w2, b2: [R, D, H] and [R, D] or None: their second layers.
        gates: [B, k], floating; kept in float32.
        indices: [B, k], int64 or int32, each in 0..R-1.
        activation: "gelu" (erf), "gelu_tanh", "quick_gelu", "relu", "silu", or "swiglu", for which C is 2 H.
        keep: what the backward finds stored: "both", "z" or "none" (see the module). The Triton kernels store the
            activation times its gate, which can underflow in float16: there "both" is refused with
            ``backend="triton"``, and taken for "z" with "auto".
        precision: of the Triton kernels' float32 dot products: "ieee", "tf32" or "tf32x3". On the CPU always "ieee";
            eagerly on a GPU PyTorch's own setting holds (`torch.set_float32_matmul_precision`).
        backend: "auto", "triton" or "eager". "auto" runs float32 at precision "ieee" eagerly on NVIDIA GPUs.

    Returns:
        [B, N, D] in x's dtype, or in autocast's where that is on. Differentiable once in all but ``indices``; each
        gradient has its input's dtype.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, shape or device; the message names it.
        IndexError: an index outside 0..R-1. On a GPU the Triton kernels check on the device, and the device's
            assertion stops the program at the next synchronization.
        BackendUnavailableError: ``backend="triton"`` cannot run here.
    """
    check_expert_arguments(x, w1, b1, w2, b2, gates, indices, activation, keep, precision)
    compute = compute_dtype(x)
    chosen = resolve(backend, x.device, compute, precision)
    keep = allowed_keep(keep, compute, chosen, backend)
    given = ExpertArguments(x, w1, b1, w2, b2, gates, indices)
    settings = Settings(activation, precision, chosen, compute)
    refuse_transforms("expert_mlp", *given)
    if torch.onnx.is_in_onnx_export():
        return onnx.expert_mlp(cast(given, compute), activation)
    trained = torch.is_grad_enabled() and not is_exporting()  # no program keeps what no backward reads
    if trained and any(t is not None and t.requires_grad for t in given):
        return _ExpertMlp.apply(*flatten(ExpertMlpCall(given, keep, settings)))
    return _expert_mlp(*flatten(ExpertMlpCall(prepared(given, settings), "nothing", settings)))[0]


def check_expert_arguments(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    gates: Tensor,
    indices: Tensor,
    activation: str,
    keep: str,
    precision: str,
) -> None:
    """Raise an error that names the first argument that does not fit the others."""
    check_experts(x, w1, b1, w2, b2, activation, keep, precision)
    check_floating("gates", gates)
    check_integer("indices", indices)
    batch = x.shape[0]
    check_shape("gates", gates, (batch, "k"))
    if gates.shape[1] < 1:
        raise ValueError("gates must give every image at least one expert, got k = 0")
    check_shape("indices", indices, (batch, gates.shape[1]))
    check_same_device(x=x, gates=gates, indices=indices)


def check_experts(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    activation: str,
    keep: str,
    precision: str,
) -> None:
    """`check_expert_arguments` without gates and indices."""
    check_choice("activation", activation, ACTIVATIONS)
    check_choice("keep", keep, KEEPS)
    check_choice("precision", precision, PRECISIONS)
    for name, tensor in (("x", x), ("w1", w1), ("b1", b1), ("w2", w2), ("b2", b2)):
        if tensor is not None or name not in ("b1", "b2"):
            check_floating(name, tensor)  # type: ignore[arg-type]
    check_shape("x", x, ("B", "N", "D"))
    _, tokens, width = x.shape
    if tokens < 1:
        raise ValueError("x must hold at least one token an image, got N = 0")
    per_unit = columns_of(activation)
    check_shape("w1", w1, ("R", "H" if per_unit == 1 else f"{per_unit} H", width))
    experts, columns, _ = w1.shape
    if columns % per_unit:
        raise ValueError(f"w1 must have {per_unit} rows a hidden unit with activation={activation!r}, got {columns}")
    check_shape("w2", w2, (experts, width, columns // per_unit))
    if b1 is not None:
        check_shape("b1", b1, (experts, columns))
    if b2 is not None:
        check_shape("b2", b2, (experts, width))
    check_same_device(x=x, w1=w1, b1=b1, w2=w2, b2=b2)


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype the GEMMs run in: autocast's where it is on (never for float64), else x's."""
    # The meta device has no autocast, and may not even be asked.
    if x.dtype != torch.float64 and not x.is_meta and torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def allowed_keep(keep: str, compute: torch.dtype, chosen: str, asked: str) -> str:
    """``keep``, but for "both" in float16 by Triton; see `expert_mlp`."""
    if keep != "both" or compute != torch.float16 or chosen != "triton":
        return keep
    if asked == "triton":
        raise ValueError(
            "keep='both' stores gate times activation, which can underflow in float16; use keep='z' or bfloat16"
        )
    return "z"


def cast(given: ExpertArguments, compute: torch.dtype) -> ExpertArguments:
    """x, weights and biases in the GEMMs' dtype, the gates in float32 at least."""
    gates_dtype = torch.promote_types(compute, torch.float32)
    return ExpertArguments(
        x=given.x.to(compute),
        w1=given.w1.to(compute),
        b1=None if given.b1 is None else given.b1.to(compute),
        w2=given.w2.to(compute),
        b2=None if given.b2 is None else given.b2.to(compute),
        gates=given.gates.to(gates_dtype),
        indices=given.indices,
    )


def prepared(given: ExpertArguments, settings: Settings) -> ExpertArguments:
    """What the op is given: Triton's kernels cast x on its way into expert order, and know copies of the weights but
    for those of a CUDA graph."""
    if settings.backend == "eager":
        return cast(given, settings.compute)
    w1, w2 = graph_copies([given.w1, given.w2], settings.compute)
    return given._replace(w1=w1, w2=w2, gates=given.gates.to(torch.float32))


def saved(given: ExpertArguments, settings: Settings) -> ExpertArguments:
    """What of `prepared` the backward needs: for Triton x is in `Kept`, and its dtype and width do here."""
    return given if settings.backend == "eager" else given._replace(x=given.x.new_empty((0, *given.x.shape[1:])))


def dtypes_of(given: ExpertArguments) -> ExpertArguments:
    """The arguments' dtypes at their places; None where there is no argument."""
    return ExpertArguments(*(None if t is None else t.dtype for t in given))  # type: ignore[arg-type]


def returned(grads: Gradients, dtypes: ExpertArguments, needs: Needs) -> dict[str, Tensor]:
    """An autograd.Function's gradients by their inputs' names and in their dtypes: those that were asked for."""
    return {
        name: grad.to(dtype)
        for name, grad, dtype, needed in zip(grads._fields, grads, dtypes.differentiable, needs, strict=True)
        if needed and dtype is not None
    }


class ExpertMlpCall(NamedTuple):
    """The arguments of the op, and of its autograd.Function."""

    given: ExpertArguments
    keep: str  # one of KEEPS; "nothing" where no backward follows
    settings: Settings


class MlpResult(NamedTuple):
    """What the op returns: y and the fields of `Kept`."""

    y: Tensor
    z: Tensor
    a: Tensor
    o: Tensor
    x_rows: Tensor
    gate_rows: Tensor
    plan: Tensor


class ExpertMlpBackwardCall(NamedTuple):
    """The arguments of the backward's op."""

    grad_y: Tensor  # [B, N, D]
    given: ExpertArguments
    kept: Kept
    needs: list[bool]  # `Needs`
    settings: Settings
    x_dtype: torch.dtype  # of x's gradient
    weight_dtype: torch.dtype  # of the weights' and biases' gradients


def _run(call: ExpertMlpCall) -> MlpResult:
    if call.settings.backend == "triton":
        from dexcore.ops import experts_triton

        y, kept = experts_triton.forward(*call)
    else:
        y, kept = experts_eager.forward(*call)
    return MlpResult(y, *kept)


def _fake(call: ExpertMlpCall) -> MlpResult:
    x = call.given.x
    y = x.new_empty(x.shape, dtype=call.settings.compute)
    return MlpResult(y, *empty_kept(call.given, call.keep, call.settings))


def _run_backward(call: ExpertMlpBackwardCall) -> Gradients:
    needs, rest = Needs(*call.needs), (call.settings, call.x_dtype, call.weight_dtype)
    if call.settings.backend == "triton":
        from dexcore.ops import experts_triton

        return experts_triton.backward(call.grad_y, call.given, call.kept, needs, *rest)
    return experts_eager.backward(call.grad_y.to(call.given.x.dtype), call.given, call.kept, needs, *rest)


def _fake_backward(call: ExpertMlpBackwardCall) -> Gradients:
    given = call.given._replace(x=call.given.x.new_empty(call.grad_y.shape))
    return empty_gradients(given, Needs(*call.needs), call.x_dtype, call.weight_dtype)


_expert_mlp = define_op("expert_mlp", ExpertMlpCall, _run, _fake)
_expert_mlp_backward = define_op("expert_mlp_backward", ExpertMlpBackwardCall, _run_backward, _fake_backward)


class _Saved(NamedTuple):
    given: ExpertArguments
    kept: Kept


_CALL, _SAVED = ArgumentList(ExpertMlpCall), ArgumentList(_Saved)


class _ExpertMlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        call = _CALL.nest(arguments)
        given = prepared(call.given, call.settings)
        y, *kept = _expert_mlp(*flatten(call._replace(given=given)))
        ctx.save_for_backward(*saved(given, call.settings), *kept)
        ctx.settings, ctx.dtypes = call.settings, dtypes_of(call.given)
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Any, ...]:
        kept = _SAVED.nest(ctx.saved_tensors)
        needs = Needs(*_CALL.nest(ctx.needs_input_grad).given.differentiable)
        call = ExpertMlpBackwardCall(
            grad_y=grad_y,
            given=kept.given,
            kept=kept.kept,
            needs=list(needs),
            settings=ctx.settings,
            x_dtype=ctx.dtypes.x,
            weight_dtype=ctx.dtypes.w1,
        )
        grads = Gradients(*_expert_mlp_backward(*flatten(call)))
        return _CALL.place(returned(grads, ctx.dtypes, needs))
