"""What `torch.utils.flop_counter.FlopCounterMode` counts for the DEX ops: their GEMMs, as it does for PyTorch's own;
and for oneDNN's dense layer (`dexcore.nn.linear`), which it does not know.

A multiplication and an addition are two FLOPs; elementwise work counts nothing, as there. Importing this module
registers the formulas. Axes as in `dexcore.ops.expert_mlp`; shapes take the tensors' places.
"""

import math
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

import dexcore.ops.dex_mlp
import dexcore.ops.routing  # noqa: F401
from dexcore.ops.expert_types import Needs

_ops = torch.ops.dexcore
_Shape = tuple[int, ...]


@register_flop_formula(_ops.route)
def _route(x: _Shape, weight: _Shape, *rest: Any, **kwargs: Any) -> int:
    return 2 * x[0] * weight[0] * weight[1]


@register_flop_formula(_ops.route_backward)
def _route_backward(
    grad_gates: _Shape, grad_probs: _Shape, x: _Shape, weight: _Shape, *rest: Any, **kwargs: Any
) -> int:
    return 2 * _route(x, weight)  # to x and to the weight


@register_flop_formula(_ops.expert_mlp)
def _expert_mlp(x: _Shape, w1: _Shape, b1: Any, w2: Any, b2: Any, gates: _Shape, *rest: Any, **kwargs: Any) -> int:
    return 2 * _gemm(x, w1, gates)


@register_flop_formula(_ops.dex_mlp)
def _dex_mlp(x: _Shape, w1: _Shape, b1: Any, w2: Any, b2: Any, gates: _Shape, *rest: Any, **kwargs: Any) -> int:
    director = 2 * _gemm(x, w1, (x[0], 1))
    return 2 * _gemm(x, w1, gates) + director


@register_flop_formula(_ops.expert_mlp_backward)
def _expert_mlp_backward(grad_y: _Shape, *arguments: Any, **kwargs: Any) -> int:
    return _backward(*arguments[:11])


@register_flop_formula(_ops.dex_mlp_backward)
def _dex_mlp_backward(grad_y: _Shape, grad_loss: _Shape, *arguments: Any, **kwargs: Any) -> int:
    gradient_behind = (*arguments[:10], arguments[11])
    return _backward(*gradient_behind)


def _backward(
    x: _Shape, w1: _Shape, b1: Any, w2: Any, b2: Any, gates: _Shape, indices: Any, z: _Shape, a: Any, o: Any, needs: Any
) -> int:
    """A GEMM each for the gradients of W1, W2, x and the activation, and one where z was not kept."""
    wanted = Needs(*needs)
    again = z[0] == 0 and (wanted.z or wanted.w2)
    return (wanted.w1 + wanted.w2 + wanted.x + wanted.z + again) * _gemm(x, w1, gates)


def _linear_pointwise(x: _Shape, weight: _Shape, *rest: Any, **kwargs: Any) -> int:
    return 2 * math.prod(x) * weight[0]


if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
    register_flop_formula(torch.ops.mkldnn._linear_pointwise)(_linear_pointwise)


def _gemm(x: _Shape, w1: _Shape, gates: _Shape) -> int:
    """One of the experts' GEMMs, over the B * k * N rows that the chosen experts see."""
    (images, tokens, width), hidden = x, w1[1]
    return 2 * images * gates[1] * tokens * width * hidden
