"""A vision transformer in words: the constructor arguments that rebuild it, read off the model as it is now.

They are read off rather than recorded, so that a changed classifier, image size or mode is what gets saved.
"""

from functools import partial
from typing import Any

import torch
from timm.layers import (
    Attention,
    DropPath,
    GluMlp,
    LayerNorm,
    LayerScale,
    Mlp,
    PatchDropout,
    PatchEmbed,
    SwiGLU,
    SwiGLUPacked,
)
from timm.models.vision_transformer import Block
from torch import nn

from dexcore.checks import check_number
from dexcore.nn import DEXBlock, DEXMlp, XFormersAttention
from dexcore.nn.dense_mlp import KINDS, hidden_features_of
from dexcore.nn.mlp_checks import activation_name
from dexcore.ops.checks import check_choice

# Without the backend: which one runs is the machine's matter, not the model's. So is XFormersAttention.
_DEX_SETTINGS = ("tau", "pool", "align", "mode", "keep")
# timm's MLPs by name; a description without one is of the plain `Mlp`.
_MLP_LAYERS = {
    "swiglu_packed": SwiGLUPacked,
    "swiglu_packed_gate_last": partial(GluMlp, act_layer=nn.SiLU, gate_last=True),
    "swiglu": SwiGLU,
}


class NotDescribableError(ValueError):
    """A model holds something that constructor arguments in JSON cannot say; the message names it."""


def describe_vit(vit: Any) -> dict[str, Any]:
    """Keyword arguments, ready for JSON, that rebuild a timm `VisionTransformer`, through `vit_arguments`.

    Where the MLPs are DEX layers they are the arguments of `DEXVisionTransformer`, and include num_experts. A model
    with `XFormersAttention` is described as one with timm's, which computes the same from the same weights anywhere.

    Raises:
        NotDescribableError: the model is no plain ViT; the message names the argument that made it another.
    """
    _check_kinds(vit)
    embed, block = vit.patch_embed, vit.blocks[0]
    attn = block.attn
    dex = [block.mlp for block in vit.blocks if isinstance(block.mlp, DEXMlp)]
    mlp: Any = dex[0].director if dex else block.mlp
    hidden = hidden_features_of(mlp)
    ratio = hidden / vit.embed_dim
    final_norm, fc_norm = not isinstance(vit.norm, nn.Identity), not isinstance(vit.fc_norm, nn.Identity)
    arguments = {
        "img_size": list(embed.img_size),
        "patch_size": list(embed.patch_size),
        "in_chans": vit.in_chans,
        "num_classes": vit.num_classes,
        "global_pool": vit.global_pool,
        "embed_dim": vit.embed_dim,
        "depth": len(vit.blocks),
        "num_heads": attn.num_heads,
        # timm rounds down: half a unit more where the quotient fell below the whole number.
        "mlp_ratio": ratio if int(vit.embed_dim * ratio) == hidden else (hidden + 0.5) / vit.embed_dim,
        "qkv_bias": attn.qkv.bias is not None,
        "qk_norm": not isinstance(attn.q_norm, nn.Identity),
        "scale_attn_norm": not isinstance(attn.norm, nn.Identity),
        "scale_mlp_norm": not isinstance(mlp.norm, nn.Identity),
        "proj_bias": attn.proj.bias is not None,
        "init_values": block.ls1.init_values if isinstance(block.ls1, LayerScale) else None,
        "class_token": vit.has_class_token,
        "pos_embed": "none" if vit.pos_embed is None else "learn",
        "no_embed_class": vit.no_embed_class,
        "reg_tokens": vit.num_reg_tokens,
        "pre_norm": not isinstance(vit.norm_pre, nn.Identity),
        "final_norm": final_norm or fc_norm,
        "fc_norm": fc_norm,
        "pool_include_prefix": vit.pool_include_prefix,
        "dynamic_img_size": vit.dynamic_img_size,
        "dynamic_img_pad": embed.dynamic_img_pad,
        "drop_rate": vit.head_drop.p,
        "pos_drop_rate": vit.pos_drop.p,
        "patch_drop_rate": vit.patch_drop.prob if isinstance(vit.patch_drop, PatchDropout) else 0.0,
        "proj_drop_rate": attn.proj_drop.p,
        "attn_drop_rate": attn.attn_drop.p,
        "drop_path_rate": _drop_path_rate(vit.blocks[-1]),
        "norm_eps": block.norm1.eps,
        "act_layer": activation_name(lambda: mlp.act),
    }
    if type(mlp) is not Mlp:
        arguments["mlp_layer"] = _mlp_layer_name(mlp)
    if dex:
        arguments |= {name: getattr(dex[0], name) for name in _DEX_SETTINGS}
        arguments |= {"num_experts": [m.num_experts for m in dex], "top_k": [m.top_k for m in dex]}
        if dex[0].rule is not None:
            arguments["rule"] = dex[0].rule.as_dict()
    return arguments


def _check_kinds(vit: Any) -> None:
    if not len(vit.blocks):
        raise NotDescribableError("depth: a model that is saved must have at least one block")
    _check_kind("embed_layer", vit.patch_embed, PatchEmbed)
    for block in vit.blocks:
        _check_kind("block_fn", block, Block, DEXBlock)
        _check_kind("attn_layer", block.attn, Attention, XFormersAttention)
        _check_kind("norm_layer", block.norm1, LayerNorm, nn.LayerNorm)
        _check_kind("mlp_layer", block.mlp, *((DEXMlp,) if isinstance(vit.blocks[0].mlp, DEXMlp) else KINDS))


def _check_kind(argument: str, module: nn.Module, *expected: type[nn.Module]) -> None:
    if type(module) not in expected:
        wanted = " or ".join(kind.__name__ for kind in expected)
        raise NotDescribableError(f"{argument}: a saved model must have {wanted}, got {type(module).__name__}")


def _mlp_layer_name(mlp: Any) -> str:
    if isinstance(mlp, GluMlp):
        return "swiglu_packed_gate_last" if mlp.gate_last else "swiglu_packed"
    return "swiglu" if isinstance(mlp, SwiGLU) else "mlp"


def vit_arguments(description: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of the constructor, from what `describe_vit` returned."""
    arguments = dict(description)
    arguments["norm_layer"] = norm_layer(arguments.pop("norm_eps"))
    if "mlp_layer" in arguments:
        check_choice("mlp_layer", arguments["mlp_layer"], tuple(_MLP_LAYERS))
        arguments["mlp_layer"] = _MLP_LAYERS[arguments["mlp_layer"]]
    for size in ("img_size", "patch_size"):
        arguments[size] = tuple(arguments[size])
    return arguments


def norm_layer(norm_eps: float) -> partial[LayerNorm]:
    """timm's argument ``norm_layer``, which JSON cannot say.

    Raises:
        TypeError, ValueError: ``norm_eps`` is no number from 0 to 1.
    """
    check_number("norm_eps", norm_eps, "a number from 0 to 1", lambda x: 0 <= x <= 1)
    return partial(LayerNorm, eps=norm_eps)


def check_same_anatomy(original: nn.Module, rebuilt: nn.Module) -> None:
    """Compare a model with what its description rebuilds, part by part.

    Raises:
        NotDescribableError: a part differs, so that loading would give another model; the message names it.
    """
    parts, again = _anatomy(original), _anatomy(rebuilt)
    for name in [*parts, *(name for name in again if name not in parts)]:
        if parts.get(name) != again.get(name):
            raise NotDescribableError(
                f"the model cannot be saved: its part {name!r} is {parts.get(name)}, which its constructor's "
                f"arguments would rebuild as {again.get(name)}"
            )


def _anatomy(vit: nn.Module) -> dict[str, Any]:
    """Everything of a model that decides what it computes but its numbers: part -> words."""
    parts: dict[str, Any] = {f"{name}.shape": list(t.shape) for name, t in vit.state_dict().items()}
    for name, module in vit.named_modules():
        if isinstance(module, DEXMlp):
            parts[name] = {key: getattr(module, key) for key in ("num_experts", "top_k", "rule", *_DEX_SETTINGS)}
        elif isinstance(module, GluMlp):
            parts[name] = _mlp_layer_name(module)
        elif isinstance(module, Attention):
            parts[name] = {"num_heads": module.num_heads, "head_dim": module.head_dim}
        elif name.endswith(("mlp.act", "director.act")):
            parts[name] = activation_name(lambda act=module: act)
        elif not any(module.children()):
            parts[name] = f"{type(module).__name__}({module.extra_repr()})"
    return parts


def _drop_path_rate(block: Any) -> float:
    return float(block.drop_path1.drop_prob or 0.0) if isinstance(block.drop_path1, DropPath) else 0.0


def materialize(model: nn.Module) -> None:
    """Fill the buffers that no file holds, after weights were loaded into a model on the meta device."""
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:
                setattr(module, name, torch.empty_like(buffer, device="cpu"))
        if isinstance(module, DEXMlp):
            module.noise_std = module.noise_std  # fills its buffer
