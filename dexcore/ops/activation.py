"""The activations the DEX ops know, forward and backward, writing where they are told.

    "swiglu"  silu(g) v,  z = [g, v]: of 2 H pre-activations H make the gate, the first, and H the value

All others are of an element each. "quick_gelu" is z sigmoid(1.702 z), and its slope that of silu at 1.702 z.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

aten = torch.ops.aten

ACTIVATIONS = ("gelu", "gelu_tanh", "quick_gelu", "relu", "silu", "swiglu")
_QUICK = 1.702


def columns_of(activation: str) -> int:
    """How many pre-activations, rows of W1, a hidden unit has."""
    return 2 if activation == "swiglu" else 1


def activated(name: str, z: Tensor) -> Tensor:
    """act(z) [..., H] of z [..., columns H], differentiable."""
    if name == "swiglu":
        gate, value = z.chunk(2, -1)
        return F.silu(gate) * value
    if name == "quick_gelu":
        return z * torch.sigmoid(z * _QUICK)
    if name in ("relu", "silu"):
        return getattr(F, name)(z)
    return F.gelu(z, approximate="tanh" if name == "gelu_tanh" else "none")


def activate(name: str, z: Tensor, out: Tensor | None) -> Tensor:
    """act(z) [rows, H], in ``out``; None: in the place of z [rows, columns H], or a part of it."""
    if name == "swiglu":
        gate, value = z.chunk(2, 1)
        return aten.silu.out(gate, out=gate if out is None else out).mul_(value)
    if name == "quick_gelu":  # by the operations of timm's layer, so that it is that to the bit
        sigmoid = torch.mul(z, _QUICK, out=out).sigmoid_()
        return torch.mul(z, sigmoid, out=z if out is None else out)
    out = z if out is None else out
    if name == "relu":
        return aten.relu.out(z, out=out)
    if name == "silu":
        return aten.silu.out(z, out=out)
    return aten.gelu.out(z, approximate="tanh" if name == "gelu_tanh" else "none", out=out)


def activate_backward(name: str, grad: Tensor, z: Tensor, out: Tensor) -> Tensor:
    """z's gradient [rows, columns H], in ``out``, from act(z)'s [rows, H].

    ``out`` may be ``grad`` where a hidden unit has one pre-activation; else they share no memory.
    """
    if name == "swiglu":
        gate, value = z.chunk(2, 1)
        to_gate, to_value = out.chunk(2, 1)
        aten.silu.out(gate, out=to_value).mul_(grad)
        torch.mul(grad, value, out=to_gate)
        aten.silu_backward.grad_input(to_gate, gate, grad_input=to_gate)
        return out
    if name == "relu":
        return aten.threshold_backward.grad_input(grad, z, 0, grad_input=out)
    if name == "silu":
        return aten.silu_backward.grad_input(grad, z, grad_input=out)
    if name == "quick_gelu":
        return aten.silu_backward.grad_input(grad, z * _QUICK, grad_input=out)
    approximate = "tanh" if name == "gelu_tanh" else "none"
    return aten.gelu_backward.grad_input(grad, z, approximate=approximate, grad_input=out)
