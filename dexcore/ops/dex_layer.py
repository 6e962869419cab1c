"""`dex_layer`: what a DEX layer computes in training, in one op: routing, experts, director and both losses (the
method's steps 1, 2 and 4 to 9).

Outputs and gradients are those of `route`, `dex_mlp` and `balance_loss` one after the other. As one node of autograd
the routing's backward follows the experts', and what x gets through the router is added where x's gradient is summed
over the slots: it never becomes a tensor of x's size. Axes as in `dexcore.ops.expert_mlp`.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from dexcore.ops import experts_eager, routing
from dexcore.ops.backend import resolve
from dexcore.ops.balance import balance_of, mean_probs
from dexcore.ops.checks import check_choice, refuse_transforms
from dexcore.ops.copies import graph_copies
from dexcore.ops.dex_mlp import DexMlpCall, as_target, check_director, empty_align_gradient, forward
from dexcore.ops.expert_mlp import allowed_keep, check_experts, compute_dtype, saved
from dexcore.ops.expert_types import (
    Director,
    ExpertArguments,
    Kept,
    Needs,
    Settings,
    ThroughRouter,
    empty_gradients,
    empty_kept,
)
from dexcore.ops.library import ArgumentList, define_op, flatten
from dexcore.ops.mix_align import ALIGNS, add_scaled_gradient
from dexcore.ops.routing import RouteCall, Routed


def dex_layer(
    x: Tensor,
    router_weight: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    dw1: Tensor,
    db1: Tensor | None,
    dw2: Tensor,
    db2: Tensor | None,
    top_k: int,
    tau: float = 0.5,
    noise: Tensor | None = None,
    pool: str = "cls",
    activation: str = "gelu",
    align: str = "kd",
    keep: str = "both",
    precision: str = "ieee",
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Route whole images, apply their experts, and compare with the director.

    Args:
        x, top_k, tau, noise, pool: as for `route`; ``router_weight`` is its weight [R, D].
        w1, b1, w2, b2, activation, keep, precision, backend: as for `expert_mlp`.
        dw1, db1, dw2, db2, align: as for `dex_mlp`; the director gets no gradient.

    Returns:
        y [B, N, D] as `expert_mlp` returns it; the alignment loss and the balance loss, 0-dim; gates [B, k], indices
        [B, k] and probs [B, R] as `route` returns them. Losses, gates and probs are float32 (float64 for float64
        input). Differentiable once in all but ``indices``; each gradient has its input's dtype.

    Raises:
        TypeError, ValueError, BackendUnavailableError: as `route` and `dex_mlp`.
    """
    routing.check_route_arguments(x, router_weight, top_k, tau, noise, pool, "router_weight")
    check_experts(x, w1, b1, w2, b2, activation, keep, precision)
    if w1.shape[0] != router_weight.shape[0]:
        raise ValueError(f"w1 holds {w1.shape[0]} experts, router_weight chooses among {router_weight.shape[0]}")
    check_director(x, w1, w2, dw1, db1, dw2, db2)
    check_choice("align", align, ALIGNS)
    compute = compute_dtype(x)
    chosen = resolve(backend, x.device, compute, precision)
    keep = allowed_keep(keep, compute, chosen, backend)
    settings = Settings(activation, precision, chosen, compute)
    weights, target = Weights(w1, b1, w2, b2), as_target(Director(dw1, db1, dw2, db2), settings)
    refuse_transforms("dex_layer", x, router_weight, noise, *weights, *target)
    # As `route` chooses, so that training and evaluation route alike.
    router = Router(x, router_weight, noise, top_k, float(tau), pool, resolve(backend, x.device, x.dtype))
    call = DexLayerCall(router, None, weights, target, keep, align, settings)
    trained = torch.is_grad_enabled()
    if trained and any(t is not None and t.requires_grad for t in (x, router_weight, *weights)):
        return _DexLayer.apply(*flatten(call))
    made = Results(*_dex_layer(*flatten(_cast(call._replace(keep="nothing")))))
    return made.y, made.align_loss, made.balance_loss, made.gates, made.indices, made.probs


class Router(NamedTuple):
    """What `route` is given."""

    x: Tensor  # [B, N, D]
    router_weight: Tensor  # [R, D]
    noise: Tensor | None  # [B, R]
    top_k: int
    tau: float
    pool: str
    router_backend: str  # not the experts' where these have reasons of their own


class Weights(NamedTuple):
    """Of the experts."""

    w1: Tensor  # [R, C, D], C as in `expert_types`
    b1: Tensor | None  # [R, C]
    w2: Tensor  # [R, D, H]
    b2: Tensor | None  # [R, D]


class DexLayerCall(NamedTuple):
    """The arguments of the op, and of its autograd.Function."""

    router: Router
    cast_x: Tensor | None  # [B, N, D] in the dtype of the GEMMs, as weights and director are; None: x as it is
    weights: Weights
    director: Director
    keep: str  # one of KEEPS; "nothing" where no backward follows
    align: str
    settings: Settings

    @property
    def rows(self) -> Tensor:
        """What the experts see, [B, N, D]."""
        return self.router.x if self.cast_x is None else self.cast_x


class Results(NamedTuple):
    """What the op returns, and first of it what `dex_layer` does."""

    y: Tensor  # [B, N, D]
    align_loss: Tensor  # 0-dim
    balance_loss: Tensor  # 0-dim
    gates: Tensor  # [B, k]
    indices: Tensor  # [B, k]
    probs: Tensor  # [B, R]
    importance: Tensor  # [R]
    feature: Tensor  # [B, D]; like all that follows empty where no backward does
    z: Tensor  # these as `Kept`
    a: Tensor
    o: Tensor
    x_rows: Tensor
    gate_rows: Tensor
    plan: Tensor
    gradient: Tensor  # [B, N, D], of the sum of the rows' alignment losses


class DexLayerBackwardCall(NamedTuple):
    """The arguments of the backward's op."""

    grad_y: Tensor | None  # [B, N, D]
    grad_align: Tensor | None  # 0-dim
    grad_balance: Tensor | None  # 0-dim
    grad_gates: Tensor | None  # [B, k], besides what they get through y
    grad_probs: Tensor | None  # [B, R]
    given: ExpertArguments
    kept: Kept
    gradient: Tensor  # [B, N, D]
    router_weight: Tensor  # [R, D]
    probs: Tensor  # [B, R]
    importance: Tensor  # [R]
    feature: Tensor  # [B, D]
    tau: float
    pool: str
    router_backend: str
    needs: list[bool]  # `Needs`; the gates' are wanted where those of x or router_weight are
    settings: Settings
    x_dtype: torch.dtype  # of x's gradient
    weight_dtype: torch.dtype  # of the weights' and biases' gradients


class LayerGradients(NamedTuple):
    """Empty where one was not asked for."""

    x: Tensor
    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor
    router_weight: Tensor


def _cast(call: DexLayerCall) -> DexLayerCall:
    """As `prepared`."""
    x, compute, of_director = call.router.x, call.settings.compute, call.director
    if call.settings.backend == "triton":
        w1, w2, dw1, dw2 = graph_copies([call.weights.w1, call.weights.w2, of_director.dw1, of_director.dw2], compute)
        director = of_director._replace(dw1=dw1, dw2=dw2)
        return call._replace(weights=call.weights._replace(w1=w1, w2=w2), director=director)
    weights = Weights(*(None if t is None else t.to(compute) for t in call.weights))  # type: ignore[arg-type]
    return call._replace(cast_x=None if x.dtype == compute else x.to(compute), weights=weights)


def _route_call(call: DexLayerCall) -> RouteCall:
    router = call.router
    return RouteCall(
        router.x, router.router_weight, router.noise, router.top_k, router.tau, router.pool, router.router_backend
    )


def _run(call: DexLayerCall) -> Results:
    gates, indices, probs, feature = routing.forward(_route_call(call), keep_feature=call.keep != "nothing")
    given = ExpertArguments(call.rows, *call.weights, gates, indices)
    if call.settings.backend == "triton":
        from dexcore.kernels.route import Balance

        balance = Balance.of(probs)
        experts = forward(DexMlpCall(given, call.director, call.keep, call.align, call.settings), balance)
        importance, balance_loss = balance.importance, balance.loss
    else:
        experts = forward(DexMlpCall(given, call.director, call.keep, call.align, call.settings))
        importance = mean_probs(probs)
        balance_loss = balance_of(importance)
    y, align_loss, kept, gradient = experts
    return Results(y, align_loss, balance_loss, gates, indices, probs, importance, feature, *kept, gradient)


def _fake(call: DexLayerCall) -> Results:
    gates, indices, probs = routing.fake(_route_call(call))
    rows, compute = call.rows, call.settings.compute
    given = ExpertArguments(rows, *call.weights, gates, indices)
    kept_images = rows.shape[0] if call.keep != "nothing" else 0
    return Results(
        y=rows.new_empty(rows.shape, dtype=compute),
        align_loss=rows.new_empty((), dtype=torch.promote_types(compute, torch.float32)),
        balance_loss=probs.new_empty(()),
        gates=gates,
        indices=indices,
        probs=probs,
        importance=probs.new_empty(probs.shape[1]),
        feature=probs.new_empty((kept_images, rows.shape[2])),
        **empty_kept(given, call.keep, call.settings)._asdict(),
        gradient=empty_align_gradient(rows, call.keep, call.settings),
    )


def _run_backward(call: DexLayerBackwardCall) -> LayerGradients:
    needs, given = Needs(*call.needs), call.given
    rest = call.settings, call.x_dtype, call.weight_dtype
    grad_router_weight = call.router_weight.new_empty(0)

    def feature_gradient(grad_gates: Tensor) -> Tensor:
        nonlocal grad_router_weight
        if call.grad_gates is not None:
            grad_gates = grad_gates + call.grad_gates
        grad_feature, grad_router_weight = routing.gradients(
            grad_gates,
            call.grad_probs,
            call.grad_balance,
            call.router_weight,
            Routed(given.gates, given.indices, call.probs, call.feature, call.importance),
            call.tau,
            call.router_backend,
        )
        return grad_feature

    router = ThroughRouter(feature_gradient, call.pool) if needs.gates else None
    if call.grad_y is None and call.grad_align is None:  # the experts take no part
        grads = empty_gradients(_whole(given), Needs(x=needs.x), call.x_dtype, call.weight_dtype)
        if router is not None:
            grad_feature = feature_gradient(torch.zeros_like(given.gates))
            if needs.x:
                routing.add_feature_gradient_(grads.x.zero_(), grad_feature, call.pool)
    elif call.settings.backend == "triton":
        from dexcore.ops import experts_triton

        align = experts_triton.AlignGradient.of(call.grad_align, call.gradient)
        grads = experts_triton.backward(call.grad_y, given, call.kept, needs, *rest, align, router)
    else:
        total = add_scaled_gradient(call.grad_y, call.grad_align, call.gradient)
        grads = experts_eager.backward(total, given, call.kept, needs, *rest, router)
    return LayerGradients(grads.x, grads.w1, grads.b1, grads.w2, grads.b2, grad_router_weight)


def _whole(given: ExpertArguments) -> ExpertArguments:
    """With an x of its shape, where only its dtype and width were kept."""
    return given._replace(x=given.x.new_empty((given.gates.shape[0], *given.x.shape[1:])))


def _fake_backward(call: DexLayerBackwardCall) -> LayerGradients:
    needs = Needs(*call.needs)
    grads = empty_gradients(_whole(call.given), needs, call.x_dtype, call.weight_dtype)
    weight = call.router_weight
    grad_router_weight = weight.new_empty(weight.shape if needs.gates else (0,))
    return LayerGradients(grads.x, grads.w1, grads.b1, grads.w2, grads.b2, grad_router_weight)


_dex_layer = define_op("dex_layer", DexLayerCall, _run, _fake)
_dex_layer_backward = define_op("dex_layer_backward", DexLayerBackwardCall, _run_backward, _fake_backward)


class _Saved(NamedTuple):
    given: ExpertArguments
    kept: Kept
    gradient: Tensor
    router_weight: Tensor
    probs: Tensor
    importance: Tensor
    feature: Tensor


_CALL, _SAVED = ArgumentList(DexLayerCall), ArgumentList(_Saved)


class _DexLayer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        call = _CALL.nest(arguments)
        made_of = _cast(call)
        made = Results(*_dex_layer(*flatten(made_of)))
        given = saved(ExpertArguments(made_of.rows, *made_of.weights, made.gates, made.indices), call.settings)
        kept = _Saved(
            given=given,
            kept=Kept(**{name: getattr(made, name) for name in Kept._fields}),
            gradient=made.gradient,
            router_weight=call.router.router_weight,
            probs=made.probs,
            importance=made.importance,
            feature=made.feature,
        )
        ctx.save_for_backward(*flatten(kept))
        router = call.router
        ctx.tau, ctx.pool, ctx.router_backend, ctx.settings = (
            router.tau,
            router.pool,
            router.router_backend,
            call.settings,
        )
        inputs = {"x": call.router.x, "router_weight": call.router.router_weight, **call.weights._asdict()}
        ctx.dtypes = {name: tensor.dtype for name, tensor in inputs.items() if tensor is not None}
        asked = _CALL.nest(ctx.needs_input_grad).router
        if asked.x or asked.router_weight:
            ctx.mark_non_differentiable(made.indices)
        else:  # as `route` would have it
            ctx.mark_non_differentiable(made.balance_loss, made.gates, made.indices, made.probs)
        ctx.set_materialize_grads(False)
        return made.y, made.align_loss, made.balance_loss, made.gates, made.indices, made.probs

    @staticmethod
    def backward(
        ctx: Any,
        grad_y: Tensor | None,
        grad_align: Tensor | None,
        grad_balance: Tensor | None,
        grad_gates: Tensor | None,
        _: None,
        grad_probs: Tensor | None,
    ) -> tuple[Any, ...]:
        kept = _SAVED.nest(ctx.saved_tensors)
        asked: Any = _CALL.nest(ctx.needs_input_grad)
        wanted = {"x": asked.router.x, "router_weight": asked.router.router_weight}
        if grad_y is not None or grad_align is not None:
            wanted |= asked.weights._asdict()
        needs = Needs(
            **{name: wanted.get(name, False) for name in ("x", *Weights._fields)},
            gates=asked.router.x or asked.router.router_weight,
        )
        call = DexLayerBackwardCall(
            grad_y=grad_y,
            grad_align=grad_align,
            grad_balance=grad_balance,
            grad_gates=grad_gates,
            grad_probs=grad_probs,
            given=kept.given,
            kept=kept.kept,
            gradient=kept.gradient,
            router_weight=kept.router_weight,
            probs=kept.probs,
            importance=kept.importance,
            feature=kept.feature,
            tau=ctx.tau,
            pool=ctx.pool,
            router_backend=ctx.router_backend,
            needs=list(needs),
            settings=ctx.settings,
            x_dtype=ctx.dtypes["x"],
            weight_dtype=ctx.dtypes["w1"],
        )
        grads = LayerGradients(*_dex_layer_backward(*flatten(call)))._asdict()
        return _CALL.place(
            {name: grads[name].to(dtype) for name, dtype in ctx.dtypes.items() if wanted.get(name, False)}
        )
