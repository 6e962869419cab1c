"""What the experts' ops pass between schema and implementations, and its shapes.

Axes: b images, n tokens, d width, h hidden, r experts, k chosen; s slots, the B*k pairs (image, choice).
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Experts(NamedTuple):
    """An op's arguments: x and the weights in the dtype of the GEMMs, the gates in float32 at least."""

    x: Tensor  # [B, N, D]
    w1: Tensor  # [R, H, D]
    b1: Tensor | None  # [R, H]
    w2: Tensor  # [R, D, H]
    b2: Tensor | None  # [R, D]
    gates: Tensor  # [B, k]
    indices: Tensor  # [B, k]


class Director(NamedTuple):
    """The director's weights, in the dtype of the GEMMs."""

    w1: Tensor  # [H, D]
    b1: Tensor | None  # [H]
    w2: Tensor  # [D, H]
    b2: Tensor | None  # [D]


class Kept(NamedTuple):
    """What the forward leaves for its backward, rows sorted by expert; empty where it was not kept."""

    z: Tensor  # [B*k*N, H]
    a: Tensor  # [B*k*N, H]: act(z), eager; gate * act(z), triton
    o: Tensor  # [B*k*N, D]: eager alone


class Needs(NamedTuple):
    """Which gradients are wanted."""

    x: bool
    w1: bool
    b1: bool
    w2: bool
    b2: bool
    gates: bool

    @property
    def z(self) -> bool:
        """Whether the backward goes through the activation."""
        return self.x or self.w1 or self.b1


class Gradients(NamedTuple):
    """Of the experts' arguments, contiguous; empty where it was not asked for."""

    x: Tensor
    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor
    gates: Tensor


def empty_kept(x: Tensor, w1: Tensor, indices: Tensor, keep: str, backend: str) -> Kept:
    """Room for what ``keep`` stores; "nothing" where no backward follows."""
    rows, hidden, width = indices.numel() * x.shape[1], w1.shape[1], x.shape[2]
    return Kept(
        z=x.new_empty((rows if keep in ("both", "z") else 0, hidden)),
        a=x.new_empty((rows if keep == "both" else 0, hidden)),
        o=x.new_empty((0 if keep == "nothing" or backend == "triton" else rows, width)),
    )


def empty_gradients(given: Experts, needs: Needs, x_dtype: torch.dtype, weight_dtype: torch.dtype) -> Gradients:
    """Room for the gradients: x's in ``x_dtype``, the weights' and biases' in ``weight_dtype``."""
    dtypes = (x_dtype, *[weight_dtype] * 4, given.gates.dtype)
    return Gradients(
        *(
            given.x.new_empty(0) if tensor is None or not needed else tensor.new_empty(tensor.shape, dtype=dtype)
            for tensor, needed, dtype in zip(given[:6], needs, dtypes, strict=True)
        )
    )
