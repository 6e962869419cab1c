"""From a dense timm model to Director-Experts layers, and back."""

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from timm.layers import AttentionPoolLatent, Mlp
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dexcore.nn.mlp import DEXMlp, activation_name


def per_block(name: str, value: int | Sequence[int], depth: int) -> list[int]:
    """One number a block, from one for all or a sequence of ``depth``.

    Raises:
        TypeError: neither an int nor a sequence; the message calls it ``name``.
        ValueError: a sequence of another length.
    """
    if isinstance(value, int):
        return [value] * depth
    if not isinstance(value, Sequence):
        raise TypeError(f"{name} must be an int or a sequence with one for each block, got {value!r}")
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
            (GLU, MlpMixer), a norm, dropout or convolution in the MLP, an activation the ops do not have, a
            bias on one of its layers only, tokens that are not [B, N, D] (ConvNeXt), or ``pool="cls"`` where
            the blocks see no class token. The model is left as it was.
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

    What it computes equals ``model`` in director mode. Its classes are timm's: its state dict loads into, and
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
    plain = copy.deepcopy(model, {id(layer): copy.deepcopy(layer.director).requires_grad_() for layer in layers})
    for module in plain.modules():
        kind = type(module)
        if kind.__module__.startswith("dexcore."):
            module.__class__ = next((base for base in kind.__mro__ if base.__module__.startswith("timm.")), kind)
    return plain


def _holds_mlp(module: nn.Module) -> bool:
    # The MLP of an attention-pooling head is not a block's.
    return isinstance(getattr(module, "mlp", None), nn.Module) and not isinstance(module, AttentionPoolLatent)


def _check_mlp(name: str, mlp: Any) -> None:
    """Refuse an MLP that a `DEXMlp` cannot stand in for; ValueError that calls it ``name``."""
    if type(mlp) is not Mlp:
        raise ValueError(f"{name} is a {type(mlp).__name__}: only timm's plain Mlp can be upcycled")
    if not isinstance(mlp.fc1, nn.Linear):
        raise ValueError(f"{name} uses convolutions (use_conv): only linear layers can be upcycled")
    if not isinstance(mlp.norm, nn.Identity):
        raise ValueError(f"{name} has a norm inside (norm_layer, scale_mlp_norm): it cannot be upcycled")
    if mlp.drop1.p > 0 or mlp.drop2.p > 0:
        raise ValueError(f"{name} has dropout (drop, proj_drop_rate): a DEX layer has none")
    if (mlp.fc1.bias is None) != (mlp.fc2.bias is None):
        raise ValueError(f"{name} has a bias on one of its layers only: it cannot be upcycled")
    if mlp.fc1.in_features != mlp.fc2.out_features:
        raise ValueError(f"{name} changes the width ({mlp.fc1.in_features} to {mlp.fc2.out_features})")
    try:
        activation_name(partial(copy.deepcopy, mlp.act))
    except ValueError as error:
        raise ValueError(f"{name} cannot be upcycled: {error}") from error


def _check_tokens(model: nn.Module, blocks: dict[str, Any], pool: str) -> None:
    """Run the dense model on fake tensors (shapes alone) and look at what each block gives its MLP.

    Raises:
        ValueError: something other than [B, N, D]; or no class token among it although ``pool`` is "cls".
    """
    patch_embed = getattr(model, "patch_embed", None)
    channels, *size = getattr(model, "pretrained_cfg", {}).get("input_size", (3, 224, 224))
    size = getattr(patch_embed, "img_size", None) or size
    weight = next(model.parameters())
    seen: dict[str, torch.Size] = {}

    def note(name: str, _: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seen[name] = inputs[0].shape

    hooks = [block.mlp.register_forward_pre_hook(partial(note, name)) for name, block in blocks.items()]
    training = [module for module in model.modules() if module.training]
    try:
        model.eval()
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            shape = (2, getattr(model, "in_chans", channels), *size)
            model(torch.zeros(shape, device=weight.device, dtype=weight.dtype))
    finally:
        for module in training:
            module.training = True
        for hook in hooks:
            hook.remove()
    prefix, patches = getattr(model, "num_prefix_tokens", 0), getattr(patch_embed, "num_patches", None)
    for name, block in blocks.items():
        tokens = list(seen[name])
        if len(tokens) != 3 or tokens[0] != 2 or tokens[2] != block.mlp.fc1.in_features:
            raise ValueError(
                f"{type(model).__name__}.{name} gives its MLP a tensor of shape {tokens} for 2 images: "
                "a DEX layer needs [images, tokens, width]"
            )
        if pool == "cls" and (getattr(model, "cls_token", None) is None or tokens[1] != prefix + (patches or 0)):
            raise ValueError(
                f'pool="cls" needs a class token as first token, which {type(model).__name__}.{name} does '
                'not have; use pool="mean"'
            )


def _upcycle_mlp(mlp: Any, **settings: Any) -> DEXMlp:
    layer = DEXMlp(
        mlp.fc1.in_features,
        mlp.fc1.out_features,
        act_layer=partial(copy.deepcopy, mlp.act),
        bias=mlp.fc1.bias is not None,
        device=mlp.fc1.weight.device,
        dtype=mlp.fc1.weight.dtype,
        **settings,
    )
    layer.director.load_state_dict(mlp.state_dict())
    layer.init_weights()
    return layer.train(mlp.training)
