"""From a dense timm model to Director-Experts layers, and back."""

import copy
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from timm.layers import AttentionPoolLatent, Mlp
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dexcore.nn.mlp import DEXMlp


def per_block(name: str, value: int | Sequence[int], depth: int) -> list[int]:
    """One number a block, from one for all or a sequence of ``depth``.

    Raises:
        ValueError: a sequence of another length; the message calls it ``name``.
    """
    if isinstance(value, int):
        return [value] * depth
    if len(value) != depth:
        raise ValueError(f"{name} must be one number or one for each of {depth} blocks, got {len(value)}")
    return list(value)


def upcycle(
    model: nn.Module,
    num_experts: int | Sequence[int] = 8,
    top_k: int | Sequence[int] = 2,
    *,
    tau: float = 0.5,
    pool: str = "cls",
    align: str = "kd",
    mode: str = "experts",
    keep: str = "both",
    backend: str = "auto",
) -> nn.Module:
    """Replace every block's MLP by a `DEXMlp` whose director and experts are copies of it, in place.

    The gates of an image sum to 1, so the model still computes what it computed before, up to rounding (in
    ``mode="director"`` to the bit). Device, dtype and training mode stay.

    Args:
        model: a timm model whose blocks hold a plain timm `Mlp` as ``.mlp`` and give it tokens [B, N, D].
        num_experts: experts in each pool; a sequence has one number a block.
        top_k: experts that process an image; a sequence has one number a block.
        tau, pool, align, mode, keep, backend: as for `DEXMlp`.

    Returns:
        ``model`` itself.

    Raises:
        ValueError: the model cannot be upcycled; the message names the module and the reason: no plain `Mlp`
            (GLU, MlpMixer), a norm or dropout or convolution in the MLP, an activation the ops do not have, a bias on
            one of its layers only, tokens that are not [B, N, D] (SAM, ConvNeXt), or ``pool="cls"`` where the blocks
            see no class token. The model is left as it was.
    """
    places = [(name, block) for name, block in model.named_modules() if _holds_mlp(block)]
    if not places:
        raise ValueError(f"{type(model).__name__} has no blocks with an MLP as .mlp: it cannot be upcycled")
    for name, block in places:
        _check_mlp(f"{type(model).__name__}.{name}.mlp", block.mlp)
    _check_tokens(model, dict(places), pool)
    experts = per_block("num_experts", num_experts, len(places))
    chosen = per_block("top_k", top_k, len(places))
    layers = [
        _upcycle_mlp(
            block.mlp,
            num_experts=experts[i],
            top_k=chosen[i],
            tau=tau,
            pool=pool,
            align=align,
            mode=mode,
            keep=keep,
            backend=backend,
        )
        for i, (_, block) in enumerate(places)
    ]
    for (_, block), layer in zip(places, layers, strict=True):
        block.mlp = layer
    return model


def collapse(model: nn.Module, to: str = "director") -> nn.Module:
    """The plain timm model in which every DEX layer is its director; ``model`` stays as it is.

    What it computes equals ``model`` in director mode. Its classes are timm's, so its state dict loads into, and
    its pickle opens with, timm alone.

    Args:
        model: any model with `DEXMlp` layers.
        to: "director": the only one of the layer's networks that every image goes through.

    Returns:
        A copy that shares no tensor with ``model``; all parameters of its MLPs require gradients.

    Raises:
        ValueError: ``to`` is another word, or ``model`` has no DEX layer.
    """
    if to != "director":
        raise ValueError(f'to must be "director", got {to!r}')
    layers = [module for module in model.modules() if isinstance(module, DEXMlp)]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no DEX layer to collapse")
    # deepcopy takes what its memo holds for an object instead of copying it: the experts are never copied.
    plain = copy.deepcopy(model, {id(layer): _plain_mlp(layer) for layer in layers})
    for module in plain.modules():
        if type(module).__module__.startswith("dexcore.nn") or isinstance(module, _timm_class(type(plain))):
            module.__class__ = _timm_class(type(module))
    return plain
