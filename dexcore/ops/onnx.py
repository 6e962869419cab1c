"""The DEX ops in ATen's own, for ``torch.onnx.export(model, ..., dynamo=True)``; nothing else uses them.

The ops call these themselves while PyTorch exports to ONNX. Axes as in `dexcore.ops.expert_mlp`.
"""

from typing import Any

import torch
from torch import Tensor

from dexcore.ops.activation import activated
from dexcore.ops.expert_types import ExpertArguments


def route(
    x: Tensor, weight: Tensor, noise: Tensor | None, top_k: int, tau: float, pool: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Gates, indices and probs, as `dexcore.ops.route` returns them."""
    precision = torch.promote_types(x.dtype, torch.float32)
    feature_bd = x[:, 0].to(precision) if pool == "cls" else x.to(precision).mean(1)
    logits_br = feature_bd @ weight.to(precision).T
    if noise is not None:
        logits_br = logits_br + noise.to(precision)
    probs_br = (logits_br / tau).softmax(-1)
    chosen_bk, indices_bk = probs_br.topk(top_k)  # ONNX's TopK gives ties to the lower index, as `route` does
    return chosen_bk / chosen_bk.sum(-1, keepdim=True), indices_bk, probs_br


def expert_mlp(given: ExpertArguments, activation: str) -> Tensor:
    """One choice after the other: each image's expert is gathered, so B times its weights are in memory at once."""
    x, w1, b1, w2, b2, gates, indices = given
    y_bnd: Any = 0
    for j in range(gates.shape[1]):
        expert_b = indices[:, j]
        a_bnh = activated(activation, _linear(x, w1, b1, expert_b))
        y_bnd = y_bnd + gates[:, j, None, None] * _linear(a_bnh, w2, b2, expert_b)
    return y_bnd.to(x.dtype)


def _linear(x_bni: Tensor, weight_roi: Tensor, bias_ro: Tensor | None, expert_b: Tensor) -> Tensor:
    y_bno = x_bni @ weight_roi.index_select(0, expert_b).transpose(1, 2)
    return y_bno if bias_ro is None else y_bno + bias_ro.index_select(0, expert_b).unsqueeze(1)
