"""Where a model looked in an image, and which experts took it at each block."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from timm.layers import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from dexcore.models import TaskModel
from dexcore.nn import DEXMlp


@dataclass(frozen=True, eq=False)
class Looked:
    """What happened to one image.

    Attributes:
        attention: float32 [rows, columns] over the patches, sums to at most 1: the class token's in the last block,
            the mean over heads; without a class token the mean over all patches that ask.
        gates: float32 [blocks, experts]: the weight of each expert, 0 where the image did not go; blocks with fewer
            experts have NaN at the end. None of a dense model, or in director mode.
    """

    attention: np.ndarray
    gates: np.ndarray | None


@torch.inference_mode()
def look(model: TaskModel, image: Tensor) -> Looked:
    """Look at one image [C, S, S], as `input_of` makes it; the model is in evaluation mode.

    Raises:
        TypeError: the last block's attention is none of timm's `Attention`.
    """
    encoder, seen = model.encoder, []
    block: Any = encoder.blocks[-1]
    if not isinstance(block.attn, Attention):
        raise TypeError(f"attention must be timm's Attention to be looked at, got {type(block.attn).__name__}")
    hook = block.attn.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        model(image[None])
    finally:
        hook.remove()
    rows, columns = encoder.patch_embed.dynamic_feat_size(tuple(image.shape[-2:]))
    attention = _attention(block.attn, seen[0], encoder)
    return Looked(attention.reshape(rows, columns).float().cpu().numpy(), _gates(model))


def _attention(attn: Attention, tokens_bnd: Tensor, encoder: VisionTransformer) -> Tensor:
    """Of the first image's class token, or of all patches, on each patch."""
    batch, tokens, _ = tokens_bnd.shape
    qkv = attn.qkv(tokens_bnd).reshape(batch, tokens, 3, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4)
    q, k = attn.q_norm(qkv[0]), attn.k_norm(qkv[1])
    prefix = encoder.num_prefix_tokens
    asking = q[:, :, :1] if encoder.has_class_token else q[:, :, prefix:]
    weights = (asking * attn.scale @ k.transpose(-2, -1)).softmax(dim=-1)
    return weights.mean(dim=(1, 2))[0, prefix:]


def _gates(model: TaskModel) -> np.ndarray | None:
    layers = [layer for layer in model.encoder.modules() if isinstance(layer, DEXMlp) and layer.mode == "experts"]
    if not layers:
        return None
    most = max(layer.num_experts for layer in layers)
    gates = np.full((len(layers), most), np.nan, np.float32)
    for row, layer in zip(gates, layers, strict=True):
        assert layer.routing is not None
        row[: layer.num_experts] = 0
        row[layer.routing.indices[0].cpu().numpy()] = layer.routing.gates[0].float().cpu().numpy()
    return gates
