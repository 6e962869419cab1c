"""The auxiliary losses of a whole model, from its layers' last forward (the method's section 3)."""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dexcore.nn.directors import check_group
from dexcore.nn.mlp import balance_loss, check_class_token, dex_layers, mean_probs


class AuxLosses(NamedTuple):
    """0-dim, differentiable in training, without lambda_co and lambda_bal."""

    align: Tensor
    balance: Tensor


def aux_losses(model: nn.Module, group: dist.ProcessGroup | None = None) -> AuxLosses:
    """Alignment and balance losses of the last forward, over all DEX layers l = 1..L in experts mode.

        align   = 1/L sum_l align_l / (L - l + 1)        deeper layers are aligned harder
        balance = 1/L sum_l balance_l

    With a ``group`` the layers' mean probabilities are averaged over its processes (one all-reduce of one small
    vector), so that the processes' average of ``balance`` has the global batch's value and gradient.

    Raises:
        TypeError: ``group`` is no process group.
        ValueError: the model has no DEX layer, or layers with ``pool="cls"`` and no class token.
        RuntimeError: no forward, all layers in director mode, or a model in training whose last forward recorded no
            gradient.
    """
    layers = [layer for layer in dex_layers(model) if layer.mode == "experts"]
    if not layers:
        raise RuntimeError("all DEX layers are in director mode: there are no auxiliary losses")
    routings = [layer.routing for layer in layers if layer.routing is not None]
    if len(routings) < len(layers):
        raise RuntimeError("aux_losses needs a forward of every DEX layer before it")
    check_class_token(model)
    if torch.is_grad_enabled() and any(
        layer.training and layer.router.weight.requires_grad and not routing.probs.requires_grad
        for layer, routing in zip(layers, routings, strict=True)
    ):
        raise RuntimeError(
            "the last forward recorded no gradient for the auxiliary losses: it ran in eval mode (call aux_losses "
            "before you evaluate), under no_grad, or under activation checkpointing with use_reentrant=True (pass "
            "use_reentrant=False)"
        )
    depth = len(routings)
    align = torch.stack([r.align_loss / (depth - i) for i, r in enumerate(routings)]).mean()
    if group is None:
        return AuxLosses(align, torch.stack([r.balance_loss for r in routings]).mean())
    check_group(group)
    means = torch.cat([mean_probs(r.probs.detach()) for r in routings])
    dist.all_reduce(means, group=group)
    shares = (means / dist.get_world_size(group)).split([r.probs.shape[1] for r in routings])
    balance = [balance_loss(r.probs, share) for r, share in zip(routings, shares, strict=True)]
    return AuxLosses(align, torch.stack(balance).mean())
