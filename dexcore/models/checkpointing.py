"""Activation checkpointing: blocks that run again in the backward, whole or but for what is dear to compute."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

_DEAR = ("dexcore::", "aten::_scaled_dot_product_")  # experts and their choice, fused attention
_FACTORS = {"aten::mm": (0, 1), "aten::addmm": (1, 2), "mkldnn::_linear_pointwise": (0, 1)}  # places of x and weight


def checkpointed(blocks: Iterable[Any], x: torch.Tensor, selective: bool = False) -> torch.Tensor:
    """Run blocks in turn, each anew in the backward.

    Args:
        blocks: each takes and returns one tensor.
        x: the first one's.
        selective: keep what experts, routers, fused attention and dense layers return, and compute only the rest
            anew: norms, activations, casts, sums.
    """
    settings: dict[str, Any] = {"context_fn": _contexts} if selective else {}
    for block in blocks:
        x = checkpoint(block, x, use_reentrant=False, **settings)
    return x


def _contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    return create_selective_checkpoint_contexts(_policy)


def _policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    kept = op.name().startswith(_DEAR) or _is_wide_product(op.name(), args)
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def _is_wide_product(name: str, args: tuple[Any, ...]) -> bool:
    """Whether it is a dense layer's product that is as wide as its input. A narrower one ends an MLP, and no backward
    asks for it: checkpointing stops before."""
    if name not in _FACTORS:
        return False
    x, weight = (args[place] for place in _FACTORS[name])
    return weight.numel() >= x.shape[-1] ** 2
