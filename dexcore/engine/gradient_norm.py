"""The norm of a step's gradient, and the gradient cut to a norm."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dexcore.shards import own_share


def gradients_of(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Their gradients, those that they have; of sharded ones this process's share."""
    return [own_share(parameter.grad) for parameter in parameters if parameter.grad is not None]


def gradient_norm(gradients: Sequence[Tensor]) -> Tensor:
    """2-norm of all gradients together (at least one), 0-dim in their dtype; not finite where one of them is not.

    On a CPU it is the norm of the rows' norms: PyTorch's of a whole tensor is slower there (2.14), and for millions of
    float32 values less exact.
    """
    if any(gradient.device.type != "cpu" for gradient in gradients):
        return torch.nn.utils.get_total_norm(gradients)
    rows = [torch.linalg.vector_norm(gradient, dim=-1 if gradient.ndim else None) for gradient in gradients]
    return torch.linalg.vector_norm(torch.cat([norms.flatten() for norms in rows]))


def clip_(gradients: Sequence[Tensor], most: float, norm: Tensor) -> None:
    """Multiply gradients whose norm [0-dim] is above ``most`` down to it, in place, without a word from the device; as
    `torch.nn.utils.clip_grads_with_norm_` does with whole ones."""
    factor = (most / (norm + 1e-6)).clamp(max=1.0).to(gradients[0].device)
    torch._foreach_mul_(list(gradients), factor)
