"""`route`: which experts an image uses, and with which gates (the method's steps 1 to 4).

Axes: b images, n tokens, d width, r experts, k chosen. Always in float32 (float64 for float64 input), under
autocast too: a tie in half precision must not route differently between backends.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dexcore.checks import check_number
from dexcore.ops import onnx
from dexcore.ops.backend import resolve
from dexcore.ops.checks import (
    check_choice,
    check_floating,
    check_integer,
    check_same_device,
    check_shape,
    refuse_transforms,
)
from dexcore.ops.library import ArgumentList, define_op

POOLS = ("cls", "mean")


def route(
    x: Tensor,
    weight: Tensor,
    top_k: int,
    tau: float = 0.5,
    noise: Tensor | None = None,
    pool: str = "cls",
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Route whole images: softmax((c W^T + noise) / tau) over the experts, the top_k largest, gates that sum to 1.

    Args:
        x: [B, N, D], floating; c is its first token (``pool="cls"``) or the mean of all (``pool="mean"``).
        weight: [R, D], floating.
        top_k: how many experts an image uses, 1 to R.
        tau: temperature, > 0.
        noise: [B, R], added to the logits before the temperature; gets no gradient.
        pool: "cls" or "mean".
        backend: "auto", "triton" or "eager".

    Returns:
        gates [B, k] and probs [B, R] in float32 (float64 for float64 input), differentiable in x and weight;
        indices [B, k] int64, largest gate first, ties to the lower index.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or shape; the message names it.
    """
    check_route_arguments(x, weight, top_k, tau, noise, pool)
    refuse_transforms("route", x, weight, noise)
    if pool == "cls":
        x = x[:, :1].contiguous()  # a copy: what the backward keeps is not all of x
    if torch.onnx.is_in_onnx_export():
        return onnx.route(x, weight, noise, top_k, float(tau), pool)
    chosen = resolve(backend, x.device, x.dtype)
    call = RouteCall(x, weight, noise, top_k, float(tau), pool, chosen)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        gates, indices, probs = _Route.apply(*call)
    else:
        gates, indices, probs = _route(*call)
    return gates, indices, probs


def check_route_arguments(
    x: Tensor, weight: Tensor, top_k: int, tau: float, noise: Tensor | None, pool: str, name: str = "weight"
) -> None:
    """Raise an error that names the first argument that does not fit the others; ``name`` is the weight's."""
    check_floating("x", x)
    check_floating(name, weight)
    check_shape("x", x, ("B", "N", "D"))
    check_shape(name, weight, ("R", x.shape[2]))
    check_choice("pool", pool, POOLS)
    experts = weight.shape[0]
    if isinstance(top_k, bool) or not isinstance(top_k, int):
        raise TypeError(f"top_k must be an int, got {type(top_k).__name__}")
    if not 1 <= top_k <= experts:
        raise ValueError(f"top_k must lie in 1..{experts} (the number of experts), got {top_k}")
    check_number("tau", tau, "finite and > 0", lambda tau: 0 < tau < math.inf)
    if x.shape[1] < 1:
        raise ValueError("x must hold at least one token an image, got N = 0")
    if noise is not None:
        check_floating("noise", noise)
        check_shape("noise", noise, (x.shape[0], experts))
    check_same_device(**{"x": x, name: weight, "noise": noise})


@torch.no_grad()
def expert_load(gates: Tensor, indices: Tensor, num_experts: int, *, backend: str = "auto") -> Tensor:
    """The sum of the gates that each expert received, [R], added up in a fixed order; without gradient.

    Args:
        gates, indices: [B, k], as `route` returns them.
        num_experts: R.
        backend: "auto", "triton" or "eager".

    Raises:
        TypeError, ValueError: gates or indices of the wrong kind or shape; the message names them.
    """
    check_floating("gates", gates)
    check_integer("indices", indices)
    check_shape("gates", gates, ("B", "k"))
    check_shape("indices", indices, gates.shape)
    if resolve(backend, gates.device, gates.dtype) == "triton":
        from dexcore.kernels.route import expert_load as load

        return load(gates.float().contiguous(), indices.contiguous(), num_experts)
    return dense_gates(gates, indices, num_experts).sum((0, 1))


def dense_gates(gates_bk: Tensor, indices_bk: Tensor, num_experts: int) -> Tensor:
    """[B, k, R]: every choice's gate at its expert, else 0. To be summed: in a fixed order on every device."""
    dense_bkr = gates_bk.new_zeros(*gates_bk.shape, num_experts)
    return dense_bkr.scatter_(2, indices_bk.long().unsqueeze(2), gates_bk.unsqueeze(2))


def _pooled(x_bnd: Tensor, pool: str) -> Tensor:
    """The image's feature [B, D] in the routing precision, a tensor of its own."""
    precision = torch.promote_types(x_bnd.dtype, torch.float32)
    if pool == "mean":
        return x_bnd.mean(1, dtype=precision)
    return x_bnd[:, 0].to(precision, copy=True).contiguous()


class RouteCall(NamedTuple):
    """The arguments of the op, and of its autograd.Function."""

    x: Tensor  # [B, N, D]
    weight: Tensor  # [R, D]
    noise: Tensor | None  # [B, R]
    top_k: int
    tau: float
    pool: str
    backend: str


class Routed(NamedTuple):
    """What `gradients` needs of the forward."""

    gates: Tensor  # [B, k]
    indices: Tensor  # [B, k]
    probs: Tensor  # [B, R]
    feature: Tensor  # [B, D]
    importance: Tensor | None  # [R], the mean of probs, where the balance loss has a gradient


class RouteBackwardCall(NamedTuple):
    """The arguments of the backward's op."""

    grad_gates: Tensor  # [B, k]
    grad_probs: Tensor  # [B, R]
    x: Tensor  # [B, N, D]
    weight: Tensor  # [R, D]
    gates: Tensor  # [B, k]
    indices: Tensor  # [B, k]
    probs: Tensor  # [B, R]
    tau: float
    pool: str
    backend: str


def _run(call: RouteCall) -> tuple[Tensor, Tensor, Tensor]:
    gates, indices, probs, _ = forward(call, keep_feature=False)
    return gates, indices, probs


def forward(call: RouteCall, *, keep_feature: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gates, indices, probs, and the images' features [B, D] for `gradients`, or [0, D]."""
    x, weight, noise, top_k, tau, pool, backend = call
    if backend == "triton":
        from dexcore.kernels.launch import is_compiling
        from dexcore.kernels.route import route_forward

        if pool == "cls" and not x.is_contiguous():
            x = x[:, :1]  # not all of it is copied
        x, weight, noise = _contiguous(x, weight, noise)
        feature_bd = x.new_empty((x.shape[0] if keep_feature else 0, x.shape[2]), dtype=torch.float32)
        gates, indices, probs = route_forward(x, weight, noise, top_k, tau, pool, feature_bd if keep_feature else None)
        # Nothing was launched, and eager experts read what they are given.
        return gates, indices.zero_() if is_compiling() else indices, probs, feature_bd
    feature_bd = _pooled(x, pool)
    logits_br = feature_bd @ weight.to(feature_bd.dtype).T
    if noise is not None:
        logits_br = logits_br + noise.to(logits_br.dtype)
    probs_br = (logits_br / tau).softmax(-1)
    # topk breaks ties as it likes; a stable sort gives them to the lower index.
    chosen_br, indices_br = probs_br.sort(dim=-1, descending=True, stable=True)
    chosen_bk = chosen_br[:, :top_k]
    gates_bk, indices_bk = chosen_bk / chosen_bk.sum(-1, keepdim=True), indices_br[:, :top_k].contiguous()
    return gates_bk, indices_bk, probs_br, feature_bd if keep_feature else feature_bd.new_empty((0, x.shape[2]))


def _contiguous(*tensors: Tensor | None) -> Any:
    """For the kernels, which read float32, float16 and bfloat16."""
    return (None if t is None else (t.float() if t.dtype == torch.float64 else t).contiguous() for t in tensors)


def fake(call: RouteCall) -> tuple[Tensor, Tensor, Tensor]:
    """Gates, indices and probs, of their shapes."""
    x, weight = call.x, call.weight
    precision = torch.promote_types(x.dtype, torch.float32)
    gates_bk = x.new_empty((x.shape[0], call.top_k), dtype=precision)
    return (
        gates_bk,
        gates_bk.new_empty(gates_bk.shape, dtype=torch.int64),
        gates_bk.new_empty((x.shape[0], weight.shape[0])),
    )


def _run_backward(call: RouteBackwardCall) -> tuple[Tensor, Tensor]:
    grad_gates, grad_probs, x, weight, gates, indices, probs, tau, pool, backend = call
    if backend == "triton":
        from dexcore.kernels.route import route_backward

        tensors = _contiguous(grad_gates, grad_probs, x, weight, gates, indices, probs)
        grad_x, grad_weight = route_backward(*tensors, tau, pool)
        return grad_x, grad_weight.to(weight.dtype)
    forward_results = Routed(gates, indices, probs, _pooled(x, pool), None)
    grad_feature_bd, grad_weight = gradients(grad_gates, grad_probs, None, weight, forward_results, tau, backend)
    grad_feature_bd = grad_feature_bd.to(x.dtype)
    if pool == "mean":
        return (grad_feature_bd / x.shape[1]).unsqueeze(1).expand(x.shape).contiguous(), grad_weight
    return F.pad(grad_feature_bd.unsqueeze(1), (0, 0, 0, x.shape[1] - 1)), grad_weight


def gradients(
    grad_gates: Tensor,
    grad_probs: Tensor | None,
    grad_balance: Tensor | None,
    weight: Tensor,
    routed: Routed,
    tau: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """The gradients of the feature [B, D], in the routing precision, and of the weight [R, D], in its dtype."""
    gates, indices, probs, feature_bd, importance = routed
    if backend == "triton":
        from dexcore.kernels.route import route_gradients

        tensors = _contiguous(grad_gates, grad_probs, grad_balance, feature_bd, weight, *routed[:3], importance)
        grad_feature_bd, grad_weight = route_gradients(*tensors, tau)
        return grad_feature_bd, grad_weight.to(weight.dtype)
    if grad_balance is not None and importance is not None:  # in the order of `balance_loss`'s own backward
        experts = probs.shape[1]
        through_r = grad_balance * experts * importance / max(probs.shape[0], 1)
        grad_probs = through_r.expand(probs.shape) if grad_probs is None else grad_probs + through_r
    elif grad_probs is None:
        grad_probs = torch.zeros_like(probs)
    # Through w = p / sum(p) over the chosen, then through the softmax.
    chosen_bk = probs.gather(-1, indices)
    through_bk = (grad_gates - (grad_gates * gates).sum(-1, keepdim=True)) / chosen_bk.sum(-1, keepdim=True)
    grad_probs = grad_probs.scatter_add(-1, indices, through_bk)
    grad_logits_br = probs * (grad_probs - (grad_probs * probs).sum(-1, keepdim=True)) / tau
    grad_weight = (grad_logits_br.T @ feature_bd).to(weight.dtype)
    return grad_logits_br @ weight.to(feature_bd.dtype), grad_weight


def add_feature_gradient_(grad_x_bnd: Tensor, grad_feature_bd: Tensor, pool: str) -> None:
    """Add to x's gradient what comes through the feature: to the first token, or spread over all."""
    grad_feature_bd = grad_feature_bd.to(grad_x_bnd.dtype)
    if pool == "mean":
        grad_x_bnd += (grad_feature_bd / grad_x_bnd.shape[1]).unsqueeze(1)
    else:
        grad_x_bnd[:, 0] += grad_feature_bd


def _fake_backward(call: RouteBackwardCall) -> tuple[Tensor, Tensor]:
    return call.x.new_empty(call.x.shape), call.weight.new_empty(call.weight.shape)


_route = define_op("route", RouteCall, _run, fake)
_route_backward = define_op("route_backward", RouteBackwardCall, _run_backward, _fake_backward)
_CALL = ArgumentList(RouteCall)


class _Route(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        call = _CALL.nest(arguments)
        gates, indices, probs = _route(*call)
        ctx.save_for_backward(call.x, call.weight, gates, indices, probs)
        ctx.tau, ctx.pool, ctx.backend = call.tau, call.pool, call.backend
        ctx.mark_non_differentiable(indices)
        return gates, indices, probs

    @staticmethod
    def backward(ctx: Any, grad_gates: Tensor, _: Any, grad_probs: Tensor) -> tuple[Any, ...]:
        x, weight, gates, indices, probs = ctx.saved_tensors
        call = RouteBackwardCall(
            grad_gates=grad_gates,
            grad_probs=grad_probs,
            x=x,
            weight=weight,
            gates=gates,
            indices=indices,
            probs=probs,
            tau=ctx.tau,
            pool=ctx.pool,
            backend=ctx.backend,
        )
        grad_x, grad_weight = _route_backward(*call)
        needs = _CALL.nest(ctx.needs_input_grad)
        return _CALL.place({"x": grad_x if needs.x else None, "weight": grad_weight if needs.weight else None})
