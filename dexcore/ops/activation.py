"""The activations the DEX ops know, forward and backward, writing where they are told."""

import torch
from torch import Tensor

aten = torch.ops.aten

ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "silu")


def activate(name: str, z: Tensor, out: Tensor) -> Tensor:
    """out = act(z); ``out`` may be ``z``."""
    if name == "relu":
        return aten.relu.out(z, out=out)
    if name == "silu":
        return aten.silu.out(z, out=out)
    return aten.gelu.out(z, approximate="tanh" if name == "gelu_tanh" else "none", out=out)


def activate_backward(name: str, grad: Tensor, z: Tensor) -> Tensor:
    """grad <- grad * act'(z), in place."""
    if name == "relu":
        return aten.threshold_backward.grad_input(grad, z, 0, grad_input=grad)
    if name == "silu":
        return aten.silu_backward.grad_input(grad, z, grad_input=grad)
    approximate = "tanh" if name == "gelu_tanh" else "none"
    return aten.gelu_backward.grad_input(grad, z, approximate=approximate, grad_input=grad)
