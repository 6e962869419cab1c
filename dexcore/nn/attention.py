"""`XFormersAttention`: timm's attention over xformers' memory-efficient kernels.

Axes: b images, n tokens, h heads, c a head's width.
"""

from typing import Any

import torch
from timm.layers import Attention
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from dexcore.extras import require

_DEVICES = ("cuda",)  # ROCm's too


class XFormersAttention(Attention):
    """timm's ``Attention``, computed by ``xformers.ops.memory_efficient_attention`` (extra ``xformers``).

    An ``attn_layer`` for timm's blocks and `DEXBlock`. Constructor, parameters and state dict are timm's, so weights
    go from one to the other; a model can be built, loaded and saved anywhere, and run on a CUDA or ROCm device.

    ``forward(x [B, N, C], attn_mask=None, is_causal=False)`` takes the masks that timm's takes: boolean (True takes
    part) or floating (added to the scores), of a shape that broadcasts to [B, heads, N, N].

    Raises (in ``forward``):
        RuntimeError: x is on another device.
        MissingExtraError: xformers is not installed.
        TypeError: ``attn_mask`` is no boolean or floating tensor.
        ValueError: ``attn_mask`` has another shape, wants a gradient, or comes together with ``is_causal``.
    """

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        if x.is_meta or isinstance(x, FakeTensor):  # shapes alone are asked for, by `upcycle` for one
            return super().forward(x, attn_mask, is_causal)
        if x.device.type not in _DEVICES:
            raise RuntimeError(
                f"XFormersAttention runs on CUDA and ROCm devices, got x on {x.device}; timm's Attention runs "
                "anywhere, with the same weights"
            )
        ops = require("xformers.ops", "xformers")
        batch, tokens, _ = x.shape
        gate = None if self.gate is None else self.gate(x).sigmoid()
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim).unbind(2)
        # Under autocast a norm gives float32; xformers wants one dtype.
        q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        bias: Any = _bias(attn_mask, (batch, self.num_heads, tokens, tokens), v.dtype)
        if is_causal:
            if bias is not None:
                raise ValueError("attn_mask and is_causal exclude one another in XFormersAttention")
            bias = ops.LowerTriangularMask()
        dropout = self.attn_drop.p if self.training else 0.0
        y_bnhc = ops.memory_efficient_attention(q, k, v, attn_bias=bias, p=dropout, scale=self.scale)
        y = self.norm(y_bnhc.reshape(batch, tokens, self.attn_dim))
        if gate is not None:
            y = y * gate
        return self.proj_drop(self.proj(y))


def _bias(mask: Tensor | None, shape: tuple[int, int, int, int], dtype: torch.dtype) -> Tensor | None:
    """What is added to the scores, as xformers wants it: [B, H, N, N], rows 16 bytes aligned."""
    if mask is None:
        return None
    if not isinstance(mask, Tensor):
        raise TypeError(f"attn_mask must be a tensor in XFormersAttention, got {type(mask).__name__}")
    if mask.dtype != torch.bool and not mask.dtype.is_floating_point:
        raise TypeError(f"attn_mask must be boolean or floating point, got {mask.dtype}")
    if mask.requires_grad:
        raise ValueError("attn_mask must not require a gradient: XFormersAttention has none for it")
    if mask.ndim > 4 or any(have not in (1, want) for have, want in zip(mask.shape[::-1], shape[::-1], strict=False)):
        raise ValueError(f"attn_mask must broadcast to [B, heads, N, N] = {list(shape)}, got {list(mask.shape)}")
    mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
    tokens = shape[-1]
    bias = mask.new_zeros((*mask.shape[:2], tokens, (tokens + 7) // 8 * 8), dtype=dtype)[..., :tokens]
    if mask.dtype == torch.bool:
        bias.masked_fill_(~mask, float("-inf"))
    else:
        bias.copy_(mask)
    return bias.expand(shape)
