"""Routing where some experts may not be chosen, or do nothing: what `dexcore.nn.set_expert_mask` makes of a layer.

Axes: b images, n tokens, d width, r experts, k chosen, m experts that are kept.
"""

import torch
from torch import Tensor

from dexcore import ops

REROUTE, ZERO, DIRECTOR = INSTEAD = ("reroute", "zero", "director")


def route_among(
    kept_m: Tensor, x: Tensor, weight: Tensor, top_k: int, tau: float, noise: Tensor | None, pool: str, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    """`dexcore.ops.route` among the experts ``kept_m`` (int64, rising): logits of the others are -inf before top-k.

    The others' rows take no part, so that no rounding can bring one in: where probabilities underflow to 0, a logit of
    -inf would be as good as they are.

    Returns:
        gates and indices [B, k] and probs [B, R], as `route` does; probs of the others are 0.
    """
    noise = None if noise is None else noise.index_select(1, kept_m)
    gates, place_bk, probs_bm = ops.route(x, weight.index_select(0, kept_m), top_k, tau, noise, pool, backend=backend)
    probs = probs_bm.new_zeros(x.shape[0], weight.shape[0]).scatter(1, kept_m.expand(x.shape[0], -1), probs_bm)
    return gates, kept_m[place_bk], probs


def without_others(kept_m: Tensor, gates: Tensor, indices: Tensor) -> Tensor:
    """The gates [B, k], 0 of experts that are not kept; what is left is not normalized anew."""
    is_kept = (indices.unsqueeze(-1) == kept_m).any(-1)
    return torch.where(is_kept, gates, torch.zeros_like(gates))


def filled_by(director_bnd: Tensor, y_bnd: Tensor, missing_b: Tensor) -> Tensor:
    """The experts' output, with the director's in the share ``missing_b`` that experts which are not kept had."""
    return (y_bnd.float() + missing_b.float()[:, None, None] * director_bnd.float()).to(y_bnd.dtype)
