"""What `torch.utils.flop_counter.FlopCounterMode` counts for the DEX ops: their GEMMs, as it does for PyTorch's own;
and for oneDNN's dense layer (`dexcore.nn.linear`), which it does not know.

A multiplication and an addition are two FLOPs; elementwise work counts nothing, as there. Importing this module
registers the formulas. Axes as in `dexcore.ops.expert_mlp`; shapes take the tensors' places.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from dexcore.ops.dex_layer import DexLayerBackwardCall, DexLayerCall
from dexcore.ops.dex_mlp import DexMlpBackwardCall, DexMlpCall
from dexcore.ops.expert_mlp import ExpertMlpBackwardCall, ExpertMlpCall
from dexcore.ops.expert_types import Needs
from dexcore.ops.library import ArgumentList
from dexcore.ops.routing import RouteBackwardCall, RouteCall

_ops = torch.ops.dexcore
_Shape = tuple[int, ...]


def _counts(op: Any, kind: type[Any]) -> Callable[..., Any]:
    """Register the FLOPs of ``op``, whose argument list is ``kind``; the formula gets one with shapes for tensors."""
    arguments = ArgumentList(kind)

    def register(formula: Callable[[Any], int]) -> Callable[[Any], int]:
        @register_flop_formula(op)
        def count(*flat: Any, out_shape: Any = None, **named: Any) -> int:
            names = list(arguments.types)[len(flat) :]
            return formula(arguments.nest([*flat, *[named[name] for name in names]]))

        return formula

    return register


@_counts(_ops.route, RouteCall)
def _route(call: RouteCall) -> int:
    return _router(call.x, call.weight)


@_counts(_ops.route_backward, RouteBackwardCall)
def _route_backward(call: RouteBackwardCall) -> int:
    return 2 * _router(call.x, call.weight)  # to x and to the weight


@_counts(_ops.expert_mlp, ExpertMlpCall)
def _expert_mlp(call: ExpertMlpCall) -> int:
    given = call.given
    return _both_layers(given.x, given.w1, given.w2, given.gates)


@_counts(_ops.dex_mlp, DexMlpCall)
def _dex_mlp(call: DexMlpCall) -> int:
    given = call.given
    return _with_director(given.x, given.w1, given.w2, given.gates)


@_counts(_ops.dex_layer, DexLayerCall)
def _dex_layer(call: DexLayerCall) -> int:
    x, weights, gates = call.router.x, call.weights, (call.router.x[0], call.router.top_k)
    return _router(x, call.router.router_weight) + _with_director(x, weights.w1, weights.w2, gates)


@_counts(_ops.expert_mlp_backward, ExpertMlpBackwardCall)
@_counts(_ops.dex_mlp_backward, DexMlpBackwardCall)
def _backward(call: ExpertMlpBackwardCall | DexMlpBackwardCall | DexLayerBackwardCall) -> int:
    """A GEMM each for the gradients of W1, W2, x and the activation, and one where z was not kept.

    Those of W1 and x, and z again, have W1's size, the others W2's.
    """
    wanted, given = Needs(*call.needs), call.given
    again = bool((wanted.z or wanted.w2) and call.kept.z[0] == 0)
    first, second = (_gemm(call.grad_y, weight, given.gates) for weight in (given.w1, given.w2))  # x may be away
    return (wanted.w1 + wanted.x + again) * first + (wanted.w2 + wanted.z) * second


@_counts(_ops.dex_layer_backward, DexLayerBackwardCall)
def _dex_layer_backward(call: DexLayerBackwardCall) -> int:
    batch, _ = call.given.gates
    router = 2 * _router((batch, *call.given.x[1:]), call.router_weight) if Needs(*call.needs).gates else 0
    return router + (0 if call.grad_y is None else _backward(call))


def _linear_pointwise(x: _Shape, weight: _Shape, *rest: Any, **kwargs: Any) -> int:
    return 2 * math.prod(x) * weight[0]


if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
    register_flop_formula(torch.ops.mkldnn._linear_pointwise)(_linear_pointwise)


def _router(x: Any, weight: Any) -> int:
    (images, _, _), (experts, width) = x, weight
    return 2 * images * experts * width


def _with_director(x: Any, w1: Any, w2: Any, gates: Any) -> int:
    """Both layers of the experts and of the director, which sees every image once."""
    return _both_layers(x, w1, w2, gates) + _both_layers(x, w1, w2, (x[0], 1))


def _both_layers(x: Any, w1: Any, w2: Any, gates: Any) -> int:
    return _gemm(x, w1, gates) + _gemm(x, w2, gates)


def _gemm(x: Any, weight: Any, gates: Any) -> int:
    """One of the experts' GEMMs, over the B * k * N rows that the chosen experts see."""
    (images, tokens, _), (_, out_features, in_features), (_, top_k) = x, weight, gates
    return 2 * images * top_k * tokens * out_features * in_features
