"""How directors learn: the experts' use is counted, and after an optimizer step the directors follow (GEMA).

The method's section 2 and step 10. Omega is over the global batch: all processes, and all micro-batches recorded
since the last update.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dexcore.checks import check_kind
from dexcore.nn.mlp import FREQUENCY_DECAY, DEXMlp, dex_layers
from dexcore.ops import expert_load, group_ema_


@torch.no_grad()
def record_load(model: nn.Module) -> None:
    """With gradient accumulation: count the last training forward's use of experts, once a micro-batch.

    Raises:
        ValueError: the model has no DEX layer.
        RuntimeError: no training forward since the last call.
    """
    layers = _layers_with_forward(model)
    if all(layer._pending is None for layer in layers):
        raise RuntimeError("no training forward since the last call: there is no use of experts to record")
    for layer in layers:
        load = _last_load(layer)
        layer._recorded_load = load if layer._recorded_load is None else layer._recorded_load + load
        layer._pending = None


def discard_load(model: nn.Module) -> None:
    """Forget all counted use, when a step is skipped."""
    for layer in dex_layers(model):
        layer._pending = layer._recorded_load = None


@torch.no_grad()
def share_load(model: nn.Module, beside: Tensor, group: dist.ProcessGroup | None = None) -> tuple[Tensor, list[Tensor]]:
    """Add up over processes what `record_load` counted, and numbers of the caller's with it, by one all-reduce.

    The recorded loads become the sums, bit-identical on all: `update_directors` needs no ``group`` after it, and
    `discard_load` still forgets them.

    Args:
        model: holds L DEX layers.
        beside: float32 [n].
        group: the processes that share the batch; None: this process alone.

    Returns:
        The sums of ``beside`` [n], and the gates that each expert received, [R_l] a layer in experts mode.

    Raises:
        TypeError: ``beside`` is no tensor, ``group`` no process group.
        ValueError: the model has no DEX layer.
        RuntimeError: no recorded load.
    """
    check_kind("beside", beside, Tensor, "a tensor")
    check_group(group)
    layers = _layers_with_forward(model)
    loads = [layer._recorded_load for layer in layers if layer._recorded_load is not None]
    if len(loads) < len(layers):
        raise RuntimeError("share_load needs a call of record_load before it, in every process")
    sizes = [len(load) for load in loads]
    joined = torch.cat([beside, *loads])
    if group is not None:
        dist.all_reduce(joined, group=group)
    summed, *loads = joined.split([len(beside), *sizes])
    for layer, load in zip(layers, loads, strict=True):
        layer._recorded_load = load
    return summed, loads


@torch.no_grad()
def update_directors(model: nn.Module, momentum: float, group: dist.ProcessGroup | None = None) -> None:
    """Move the directors towards their experts, and the activation frequencies towards their use, in place.

        director  <- m director + (1 - m) sum_r Omega_r expert_r
        frequency <- 0.99 frequency + 0.01 Omega

    Omega [R] is the share of all gates that each expert received in the recorded micro-batches, or, without any, in
    the last training forward; both are consumed. A layer that saw no image stays as it is. Call it once after each
    optimizer step.

    Args:
        model: holds DEX layers.
        momentum: m, in [0, 1].
        group: the processes that share the batch; one all-reduce of one small vector makes Omega, and so the
            directors, bit-identical on all. None: this process alone.

    Raises:
        TypeError: ``group`` is no process group.
        ValueError: no DEX layer; a momentum outside 0..1; a director in half precision, where a momentum near 1
            moves nothing (keep parameters in float32 and use autocast).
        RuntimeError: no training forward since the last call.
    """
    check_group(group)
    layers = _layers_with_forward(model)
    pairs = [layer.expert_director_pairs() for layer in layers]
    for layer_pairs in pairs:
        for _, director in layer_pairs:
            if director.dtype in (torch.float16, torch.bfloat16):
                raise ValueError(
                    f"the director is {director.dtype}: a moving average with a momentum near 1 stands still in half "
                    "precision; keep the parameters in float32 and compute under torch.autocast"
                )
    loads = [_last_load(layer) if layer._recorded_load is None else layer._recorded_load for layer in layers]
    joined = torch.cat(loads)
    if group is not None:
        dist.all_reduce(joined, group=group)
    omegas = []
    directors: list[Tensor] = []
    experts: list[Tensor] = []
    weights: list[Tensor] = []
    for layer_pairs, load in zip(pairs, joined.split([layer.num_experts for layer in layers]), strict=True):
        omega = load / load.sum().clamp(min=torch.finfo(load.dtype).tiny)  # zeros where no image came
        omegas.append(omega)
        for expert, director in layer_pairs:
            directors.append(director)
            experts.append(expert)
            weights.append(omega)
    group_ema_(directors, experts, weights, momentum, backend=layers[0].backend)
    for layer, omega in zip(layers, omegas, strict=True):
        step = (1 - FREQUENCY_DECAY) * omega.any().to(omega.dtype)  # 0 where no image came, without a branch
        layer.router.activation_frequency.lerp_(omega, step)
        layer._pending = layer._recorded_load = None


def check_group(group: object) -> None:
    """Raise TypeError unless ``group`` is a process group or None."""
    if group is not None:
        check_kind("group", group, dist.ProcessGroup, "a process group of torch.distributed or None")


def _layers_with_forward(model: nn.Module) -> list[DEXMlp]:
    """The layers in experts mode; RuntimeError unless each has a training forward to count."""
    layers = [layer for layer in dex_layers(model) if layer.mode == "experts"]
    if not layers:
        raise RuntimeError("all DEX layers are in director mode: there is no use of experts to count")
    if all(layer._pending is None and layer._recorded_load is None for layer in layers):
        raise RuntimeError("no training forward since the last update: there is no use of experts to count")
    return layers


def _last_load(layer: DEXMlp) -> Tensor:
    """Gates that each expert received in the last training forward [R], summed in a fixed order."""
    if layer._pending is None:
        return torch.zeros_like(layer.router.activation_frequency)
    load = expert_load(*layer._pending, layer.num_experts, backend=layer.backend)
    return load.to(layer.router.activation_frequency.dtype)
