"""The norm of a step's gradient."""

from collections.abc import Sequence

import torch
from torch import Tensor


def gradient_norm(gradients: Sequence[Tensor]) -> Tensor:
    """2-norm of all gradients together (at least one), 0-dim in their dtype; not finite where one of them is not.

    On a CPU it is that of the norms of their rows: PyTorch adds up the squares of a whole tensor one after another,
    which for millions of them is slower, and in float32 wrong in the fourth digit.
    """
    if any(gradient.device.type != "cpu" for gradient in gradients):
        return torch.nn.utils.get_total_norm(gradients)
    rows = [torch.linalg.vector_norm(gradient, dim=-1 if gradient.ndim else None) for gradient in gradients]
    return torch.linalg.vector_norm(torch.cat([norms.flatten() for norms in rows]))
