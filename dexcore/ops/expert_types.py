"""What the experts' ops pass between schema and implementations, and its shapes.

Axes: b images, n tokens, d width, h hidden, r experts, k chosen; s slots, the B*k pairs (image, choice). C is H, but
2 H with "swiglu" (`dexcore.ops.activation.columns_of`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class ExpertArguments(NamedTuple):
    """What is computed on: the gates in float32 at least; for "eager" all else in the dtype of the GEMMs."""

    x: Tensor  # [B, N, D]
    w1: Tensor  # [R, C, D]
    b1: Tensor | None  # [R, C]
    w2: Tensor  # [R, D, H]
    b2: Tensor | None  # [R, D]
    gates: Tensor  # [B, k]
    indices: Tensor  # [B, k]

    @property
    def differentiable(self) -> tuple[Any, ...]:
        """What stands at the arguments that have gradients, in the order of `Needs` and `Gradients`."""
        return self.x, self.w1, self.b1, self.w2, self.b2, self.gates


class Director(NamedTuple):
    """The director's weights; for "eager" in the dtype of the GEMMs."""

    dw1: Tensor  # [C, D]
    db1: Tensor | None  # [C]
    dw2: Tensor  # [D, H]
    db2: Tensor | None  # [D]


class Settings(NamedTuple):
    """How it is computed, forward and backward; see `dexcore.ops.expert_mlp`."""

    activation: str
    precision: str
    backend: str  # "triton" or "eager"
    compute: torch.dtype  # of the GEMMs


class Kept(NamedTuple):
    """What the forward leaves for its backward, rows sorted by expert; empty where it was not kept.

    For "triton", where rows are those of the plan, padded to tiles (`dexcore.kernels.plan`), also its own input.
    """

    z: Tensor  # [B*k*N, C]
    a: Tensor  # [B*k*N, H]: act(z), eager; gate * act(z), triton
    o: Tensor  # [B*k*N, D]: eager alone
    x_rows: Tensor  # [rows, D]: triton alone, and so the next two
    gate_rows: Tensor  # [rows], float32
    plan: Tensor  # int32, the plan's tables


class Needs(NamedTuple):
    """Which gradients are wanted."""

    x: bool = False
    w1: bool = False
    b1: bool = False
    w2: bool = False
    b2: bool = False
    gates: bool = False

    @property
    def z(self) -> bool:
        """Whether the backward goes through the activation."""
        return self.x or self.w1 or self.b1


class ThroughRouter(NamedTuple):
    """In a whole layer's backward: what x gets by way of the gates, to be added where its gradient is summed."""

    feature_gradient: Callable[[Tensor], Tensor]  # of the router's feature [B, D], given that of the gates
    pool: str  # which tokens the feature was made of


class Gradients(NamedTuple):
    """Of the experts' arguments, contiguous; empty where it was not asked for."""

    x: Tensor
    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor
    gates: Tensor


def empty_kept(given: ExpertArguments, keep: str, settings: Settings) -> Kept:
    """Room for what ``keep`` stores; "nothing" where no backward follows."""
    x, (_, columns, _), (_, width, hidden) = given.x, given.w1.shape, given.w2.shape
    rows, extra = given.indices.numel() * x.shape[1], 0
    if settings.backend == "triton" and keep != "nothing":
        from dexcore.ops import experts_triton

        shape = experts_triton.plan_shape(given, settings)
        rows, extra = shape.rows, shape.elements

    def room(*shape: int, dtype: torch.dtype = settings.compute) -> Tensor:
        return x.new_empty(shape, dtype=dtype)

    return Kept(
        z=room(rows if keep in ("both", "z") else 0, columns),
        a=room(rows if keep == "both" else 0, hidden),
        o=room(0 if keep == "nothing" or settings.backend == "triton" else rows, width),
        x_rows=room(rows if extra else 0, width),
        gate_rows=room(rows if extra else 0, dtype=torch.float32),
        plan=room(extra, dtype=torch.int32),
    )


def empty_gradients(given: ExpertArguments, needs: Needs, x_dtype: torch.dtype, weight_dtype: torch.dtype) -> Gradients:
    """Room for the gradients: x's in ``x_dtype``, the weights' and biases' in ``weight_dtype``."""
    dtypes = {"x": x_dtype, "gates": given.gates.dtype}
    return Gradients(
        *(
            tensor.new_empty(tensor.shape, dtype=dtypes.get(name, weight_dtype))
            if needed and tensor is not None
            else given.x.new_empty(0)
            for name, tensor, needed in zip(Gradients._fields, given.differentiable, needs, strict=True)
        )
    )
