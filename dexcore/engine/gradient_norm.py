"""The norm of a step's gradient."""

from collections.abc import Sequence

import torch
from torch import Tensor


def gradient_norm(gradients: Sequence[Tensor]) -> Tensor:
    """2-norm of all gradients together (at least one), 0-dim in their dtype; not finite where one of them is not.

    On a CPU it is the norm of the rows' norms: PyTorch's of a whole tensor is slower there (2.14), and for millions of
    float32 values less exact.
    """
    if any(gradient.device.type != "cpu" for gradient in gradients):
        return torch.nn.utils.get_total_norm(gradients)
    rows = [torch.linalg.vector_norm(gradient, dim=-1 if gradient.ndim else None) for gradient in gradients]
    return torch.linalg.vector_norm(torch.cat([norms.flatten() for norms in rows]))
