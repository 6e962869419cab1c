"""The auxiliary losses of a whole model, from its layers' last forward (the method's section 3)."""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dexcore.nn.mlp import DEXMlp, check_class_token, dex_layers
from dexcore.nn.processes import process_group
from dexcore.nn.records import Routing, judge_last_forward, say_left_out
from dexcore.ops.balance import balance_loss, mean_probs


class AuxLosses(NamedTuple):
    """0-dim, differentiable in training, without lambda_co and lambda_bal."""

    align: Tensor
    balance: Tensor


def aux_losses(model: nn.Module, group: dist.ProcessGroup | None = None) -> AuxLosses:
    """Alignment and balance losses of the last forward, over its DEX layers l = 1..L in experts mode.

        align   = 1/L sum_l align_l / (L - l + 1)        deeper layers are aligned harder
        balance = 1/L sum_l balance_l

    Layers that the last forward did not reach (an early exit, ``forward_intermediates(stop_early=True)``) are left
    out, as if the model ended where the forward did, and a warning says so once; so are layers that you keep in eval
    mode beside others in training. Call it before the next forward, and before `update_directors`, which consumes what
    a forward left behind.

    Args:
        model: holds DEX layers.
        group: the processes that share the batch. The layers' mean probabilities are averaged over them (one
            all-reduce of one small vector), so that the processes' average of ``balance`` has the global batch's value
            and gradient. None: torch.distributed's default group where it is initialized, else this process alone. A
            process that wants to stay alone gives a group of one.

    Raises:
        TypeError: ``group`` is no process group.
        ValueError: the model has no DEX layer, or layers with ``pool="cls"`` and no class token.
        RuntimeError: no forward since the last update; all layers in director mode; a forward in eval mode or after
            ``set_aux(model, "never")``, which computes no losses; or one in training that recorded no gradient.
    """
    group = process_group(group)
    layers = [layer for layer in dex_layers(model) if layer.mode == "experts"]
    if not layers:
        raise RuntimeError("all DEX layers are in director mode: there are no auxiliary losses")
    if all(layer.routing is None for layer in layers):
        raise RuntimeError("aux_losses needs a forward of the model before it")
    check_class_token(model)
    fresh = judge_last_forward([layer.record for layer in layers])
    if not any(fresh):
        raise RuntimeError(
            "no forward since update_directors or discard_load: call aux_losses after the forward and before them"
        )
    say_left_out("aux_losses", [layer.record for layer in layers], fresh)
    used = [(layer, routing) for layer, ok in zip(layers, fresh, strict=True) if ok and (routing := layer.routing)]
    used = [(layer, routing) for layer, routing in used if not _frozen_in_eval(layer, routing)] or used
    losses = [_losses(layer, routing) for layer, routing in used]
    depth = len(used)
    align_losses, balance_losses = zip(*losses, strict=True)
    align = torch.stack([loss / (depth - i) for i, loss in enumerate(align_losses)]).mean()
    if group is None:
        return AuxLosses(align, torch.stack(balance_losses).mean())
    # All layers, zeros for those left out: processes that left out others must not hang.
    means = torch.zeros(sum(layer.num_experts for layer in layers), device=align.device, dtype=used[0][1].probs.dtype)
    shares = dict(zip(layers, means.split([layer.num_experts for layer in layers]), strict=True))
    for layer, routing in used:
        shares[layer].copy_(mean_probs(routing.probs.detach()))
    dist.all_reduce(means, group=group)
    means /= dist.get_world_size(group)
    balance = [balance_loss(routing.probs, shares[layer]) for layer, routing in used]
    return AuxLosses(align, torch.stack(balance).mean())


def _frozen_in_eval(layer: DEXMlp, routing: Routing) -> bool:
    """Whether the layer is one that the user keeps in eval mode, beside others in training."""
    return not layer.training and routing.align_loss is None


def _losses(layer: DEXMlp, routing: Routing) -> tuple[Tensor, Tensor]:
    """Of the layer's last forward; RuntimeError where it has none, or in training none with gradient."""
    if routing.align_loss is None or routing.balance_loss is None:
        if layer.record.training:
            raise RuntimeError(
                'the last forward computed no auxiliary losses, as set_aux(model, "never") asked: set_aux(model, '
                '"train") has training forwards compute them'
            )
        raise RuntimeError(
            "the last forward ran in eval mode, which computes no auxiliary losses: call aux_losses after a training "
            'forward and before you evaluate, or ask for them in eval by set_aux(model, "always")'
        )
    trained = [*layer.experts.parameters(), *layer.router.parameters()]
    learns = layer.training and any(parameter.requires_grad for parameter in trained)
    if torch.is_grad_enabled() and learns and not routing.align_loss.requires_grad:
        raise RuntimeError(
            "the last forward recorded no gradient for the auxiliary losses: it ran in eval mode (call aux_losses "
            "before you evaluate), under no_grad, or under activation checkpointing with use_reentrant=True (pass "
            "use_reentrant=False)"
        )
    return routing.align_loss, routing.balance_loss
