"""Where a model looked in an image, and which experts took it at each block."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from timm.layers import Attention
from torch import Tensor
from torch.nn import functional as F

from dexcore.evaluate.prediction.native import decided
from dexcore.models import ClassificationHead, TaskModel
from dexcore.nn import DEXMlp


@dataclass(frozen=True, eq=False)
class Looked:
    """What happened to one image.

    Attributes:
        attention: float32 [rows, columns] over the patches, sums to at most 1: of the tokens that the head reads, in
            the last block whose output it reads; the mean over heads and over these tokens.
        asking: which tokens they are: "class token"; "patches", all of them, where the head reads their mean, or
            where a mask is empty; "patches of the mask", each counting by its pixels that are not of the first class,
            or are of any channel.
        block: the number of that block, counted from 1.
        gates: float32 [blocks, experts], of the blocks up to that one: the weight of each expert, 0 where the image
            did not go; experts that a block does not have are NaN. None of a dense model, or in director mode.
    """

    attention: np.ndarray
    asking: str
    block: int
    gates: np.ndarray | None


@torch.inference_mode()
def look(model: TaskModel, image: Tensor) -> Looked:
    """Look at one image [C, S, S], as `input_of` makes it; the model is in evaluation mode.

    Raises:
        TypeError: the block's attention is none of timm's `Attention`.
    """
    encoder, seen = model.encoder, []
    number = model.blocks[-1] if model.task.is_segmentation else len(encoder.blocks)
    block: Any = encoder.blocks[number - 1]
    attn = getattr(block, "attn", None)
    if not isinstance(attn, Attention):
        raise TypeError(
            f"block {number} is a {type(block).__name__} with {type(attn).__name__} for its attention, expected timm's "
            "Attention, of which it can be told where it looked"
        )
    hook = attn.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        logits = model(image[None])
    finally:
        hook.remove()
    grid = encoder.patch_embed.dynamic_feat_size(tuple(image.shape[-2:]))
    asking, weights = _asking(model, logits[0], grid)
    attention = _attention(attn, seen[0][:1], weights.to(logits.device), encoder.num_prefix_tokens)
    return Looked(attention.reshape(grid).cpu().numpy(), asking, number, _gates(model, number))


def _asking(model: TaskModel, logits: Tensor, grid: tuple[int, int]) -> tuple[str, Tensor]:
    """Of which tokens the answer is made, and how much each counts: float32 [tokens], sum 1."""
    prefix, patches = model.encoder.num_prefix_tokens, grid[0] * grid[1]
    weights = torch.zeros(prefix + patches)
    asking = "patches"
    if isinstance(model.head, ClassificationHead) and model.head.pool == "cls":
        weights[0] = 1
        return "class token", weights
    weights[prefix:] = 1
    if model.task.is_segmentation:
        mask = decided(model.task.kind, logits)
        found = torch.from_numpy(mask.any(0) if mask.ndim == 3 else mask > 0).float()
        if found.any():
            asking = "patches of the mask"
            weights[prefix:] = F.adaptive_avg_pool2d(found[None], grid).flatten()
    return asking, weights / weights.sum()


def _attention(attn: Attention, tokens_bnd: Tensor, weights_n: Tensor, prefix: int) -> Tensor:
    """Of an image's tokens, each counting by its weight, on each patch."""
    _, tokens, _ = tokens_bnd.shape
    qkv = attn.qkv(tokens_bnd).reshape(tokens, 3, attn.num_heads, attn.head_dim).permute(1, 2, 0, 3)
    q, k = attn.q_norm(qkv[0][None])[0].float(), attn.k_norm(qkv[1][None])[0].float()
    who = weights_n.nonzero()[:, 0]
    on = torch.zeros(tokens, device=q.device)
    for q_nd, k_nd in zip(q, k, strict=True):  # one head after the other: of all patches it is a large matrix
        on += weights_n[who] @ (q_nd[who] * attn.scale @ k_nd.T).softmax(dim=-1)
    return on[prefix:] / attn.num_heads


def _gates(model: TaskModel, blocks: int) -> np.ndarray | None:
    layers = [
        next((part for part in block.modules() if isinstance(part, DEXMlp) and part.mode == "experts"), None)
        for block in list(model.encoder.blocks)[:blocks]
    ]
    if not any(layers):
        return None
    gates = np.full((blocks, max(layer.num_experts for layer in layers if layer)), np.nan, np.float32)
    for row, layer in zip(gates, layers, strict=True):
        if layer is None:
            continue
        assert layer.routing is not None
        row[: layer.num_experts] = 0
        row[layer.routing.indices[0].cpu().numpy()] = layer.routing.gates[0].float().cpu().numpy()
    return gates
