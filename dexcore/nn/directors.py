"""How directors learn: the experts' use is counted, and after an optimizer step the directors follow (GEMA).

The method's section 2 and step 10. Omega is over the global batch: all processes, and all micro-batches recorded
since the last update.
"""

import warnings
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from dexcore.checks import check_kind
from dexcore.nn.dense_mlp import linear_layers
from dexcore.nn.mlp import FREQUENCY_DECAY, DEXMlp, dex_layers
from dexcore.nn.mlp_checks import check_linear
from dexcore.nn.processes import process_group
from dexcore.nn.records import countable, say_left_out
from dexcore.ops import expert_load, group_ema_
from dexcore.shards import own_share


class LeftOut(NamedTuple):
    """Of one DEX layer, what `update_directors` left as it was since numbers were not finite."""

    updates: int  # the whole director, since the experts' use of a batch was not finite
    elements: int  # of the director, that stand still now: it, or an expert that was ever used, is not finite there


@torch.no_grad()
def record_load(model: nn.Module) -> None:
    """With gradient accumulation: count the last training forward's use of experts, once a micro-batch.

    Raises:
        ValueError: the model has no DEX layer.
        RuntimeError: no training forward since the last call.
    """
    layers = _layers_with_forward(model)
    records = [layer.record for layer in layers]
    ready = countable(records)
    if not any(ready):
        raise RuntimeError("no training forward since the last call: there is no use of experts to record")
    _say_left_out("record_load", layers, ready)
    for layer, counted in zip(layers, ready, strict=True):
        if counted:
            layer.record.add(_last_load(layer))
        elif layer.record.recorded is None:
            layer.record.add(_no_load(layer))


def discard_load(model: nn.Module) -> None:
    """Forget all counted use, when a step is skipped."""
    for layer in dex_layers(model):
        layer.record.consume()


@torch.no_grad()
def share_load(model: nn.Module, beside: Tensor, group: dist.ProcessGroup | None = None) -> tuple[Tensor, list[Tensor]]:
    """Add up over processes what `record_load` counted, and numbers of the caller's with it, by one all-reduce.

    The recorded loads become the sums, bit-identical on all: `update_directors` reduces nothing after it, and
    `discard_load` still forgets them.

    Args:
        model: holds L DEX layers.
        beside: float32 [n].
        group: the processes that share the batch, as for `update_directors`.

    Returns:
        The sums of ``beside`` [n], and the gates that each expert received, [R_l] a layer in experts mode.

    Raises:
        TypeError: ``beside`` is no tensor, ``group`` no process group.
        ValueError: the model has no DEX layer.
        RuntimeError: no recorded load.
    """
    check_kind("beside", beside, Tensor, "a tensor")
    group = process_group(group)
    layers = _layers_with_forward(model)
    loads = [layer.record.recorded for layer in layers if layer.record.recorded is not None]
    if len(loads) < len(layers):
        raise RuntimeError("share_load needs a call of record_load before it, in every process")
    sizes = [len(load) for load in loads]
    joined = torch.cat([beside, *loads])
    if group is not None:
        dist.all_reduce(joined, group=group)
    summed, *loads = joined.split([len(beside), *sizes])
    for layer, load in zip(layers, loads, strict=True):
        layer.record.share(load)
    return summed, loads


@torch.no_grad()
def update_directors(model: nn.Module, momentum: float, group: dist.ProcessGroup | None = None) -> None:
    """Move the directors towards their experts, and the activation frequencies towards their use, in place.

        director  <- m director + (1 - m) sum_r Omega_r expert_r
        frequency <- 0.99 frequency + 0.01 Omega

    Omega [R] is the share of all gates that each expert received in the recorded micro-batches, or, without any, in
    the last training forward; both are consumed. Call it once after each optimizer step.

    A layer that saw no image, or that the last forward did not reach, stays as it is; so does one whose Omega is not
    finite (a NaN image), and an element of a director where an expert in use is not finite. `left_out` counts both.

    Parameters that FSDP2 has sharded are moved where they lie: see `dexcore.nn.shard_placement`.

    Args:
        model: holds DEX layers.
        momentum: m, in [0, 1].
        group: the processes that share the batch; one all-reduce of one small vector makes Omega, and so the
            directors, bit-identical on all. None: torch.distributed's default group where it is initialized, else this
            process alone. A process that wants to stay alone gives a group of one.

    Raises:
        TypeError: ``group`` is no process group; a director's layer is no nn.Linear, or is parametrized.
        ValueError: no DEX layer; a momentum outside 0..1; a director in half precision, where a momentum near 1
            moves nothing (keep parameters in float32 and use autocast).
        RuntimeError: no training forward since the last call.
    """
    group = process_group(group)
    layers = _layers_with_forward(model)
    for layer in layers:
        _check_director(layer)
    loads = _loads(layers)
    joined = torch.cat(loads)
    if group is not None and not all(layer.record.shared for layer in layers):
        dist.all_reduce(joined, group=group)
    omegas, totals = [], []
    directors: list[Tensor] = []
    experts: list[Tensor] = []
    weights: list[Tensor] = []
    for layer, load in zip(layers, joined.split([len(load) for load in loads]), strict=True):
        totals.append(load.sum())
        omega = load / totals[-1].clamp(min=torch.finfo(load.dtype).tiny)  # zeros where no image came
        omega = omega.nan_to_num(0, 0, 0)  # a load that is not finite leaves no other number: as if no image had come
        omegas.append(omega)
        for expert, director in layer.expert_director_pairs():
            directors.append(own_share(director))
            experts.append(own_share(expert))
            weights.append(omega.to(directors[-1].device))  # FSDP2 may hold its shards in host memory
    group_ema_(directors, experts, weights, momentum, backend=layers[0].backend)
    wrong = ~torch.stack(totals).isfinite()
    for i, (layer, omega) in enumerate(zip(layers, omegas, strict=True)):
        step = (1 - FREQUENCY_DECAY) * omega.any().to(omega.dtype)  # 0 where no image came, without a branch
        frequency = layer.router.activation_frequency
        # One that is not finite, as an old checkpoint may hold, begins anew.
        frequency.copy_(torch.where(frequency.isfinite(), frequency.lerp(omega, step), omega))
        layer.record.count_skipped(wrong[i])
        layer.record.consume(updated=True)


def left_out(model: nn.Module) -> list[LeftOut]:
    """What `update_directors` left as it was, a `LeftOut` for each DEX layer in order of depth.

    Counted since the model was made, copied or loaded; all zeros where nothing went wrong. Of a sharded model a process
    counts the elements that it holds. It asks the device, so a
    training loop calls it now and then, not every step.

    Raises:
        ValueError: the model has no DEX layer.
    """
    counts = []
    for layer in dex_layers(model):
        skipped = layer.record.skipped
        used = layer.router.activation_frequency != 0
        standing = 0
        for expert, director in layer.expert_director_pairs():
            expert = own_share(expert.detach())
            follows = own_share(director.detach()).isfinite() & expert[used.to(expert.device)].isfinite().all(0)
            standing += int((~follows).sum())
        counts.append(LeftOut(0 if skipped is None else int(skipped), standing))
    return counts


def _check_director(layer: DEXMlp) -> None:
    """Raise an error where GEMA cannot write the director."""
    for name, linear in linear_layers(layer.director).items():
        check_linear(f"director.{name}", linear)
        if is_parametrized(linear):
            raise TypeError(
                f"director.{name} is parametrized: update_directors writes its weights, which would be lost. "
                'Parametrize the experts, or the director after set_mode(model, "director")'
            )
    for _, director in layer.expert_director_pairs():
        if director.dtype in (torch.float16, torch.bfloat16):
            raise ValueError(
                f"the director is {director.dtype}: a moving average with a momentum near 1 stands still in half "
                "precision; keep the parameters in float32 and compute under torch.autocast"
            )


def _layers_with_forward(model: nn.Module) -> list[DEXMlp]:
    """The layers in experts mode; RuntimeError unless each has a training forward to count."""
    layers = [layer for layer in dex_layers(model) if layer.mode == "experts"]
    if not layers:
        raise RuntimeError("all DEX layers are in director mode: there is no use of experts to count")
    if all(layer.record.pending is None and layer.record.recorded is None for layer in layers):
        raise RuntimeError("no training forward since the last update: there is no use of experts to count")
    return layers


def _loads(layers: list[DEXMlp]) -> list[Tensor]:
    """The gates that each expert received [R], a layer: what was recorded, else those of the last training forward."""
    records = [layer.record for layer in layers]
    if any(record.recorded is not None for record in records):
        if any(record.pending is not None for record in records):
            warnings.warn(
                "update_directors uses the recorded loads alone: a training forward after the last record_load is not "
                "counted. Call record_load(model) after each micro-batch, the last one included",
                stacklevel=3,
            )
        return [_no_load(layer) if (load := layer.record.recorded) is None else load for layer in layers]
    ready = countable(records)
    _say_left_out("update_directors", layers, ready)
    return [_last_load(layer) if counted else _no_load(layer) for layer, counted in zip(layers, ready, strict=True)]


def _say_left_out(by: str, layers: list[DEXMlp], ready: list[bool]) -> None:
    """But for layers that are kept in eval mode."""
    say_left_out(
        by, [layer.record for layer in layers], [r or not m.training for r, m in zip(ready, layers, strict=True)]
    )


def _last_load(layer: DEXMlp) -> Tensor:
    """Gates that each expert received in the last training forward [R], summed in a fixed order."""
    assert layer.record.pending is not None
    load = expert_load(*layer.record.pending, layer.num_experts, backend=layer.backend)
    return load.to(layer.router.activation_frequency.dtype)


def _no_load(layer: DEXMlp) -> Tensor:
    return torch.zeros_like(layer.router.activation_frequency)
