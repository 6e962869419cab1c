"""Switches over all DEX layers of a model: exploration noise, mode, when losses are computed, which experts run."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from dexcore.checks import check_kind, check_number
from dexcore.nn.expert_mask import INSTEAD, REROUTE
from dexcore.nn.mlp import AUX, DEXMlp, dex_layers
from dexcore.ops.checks import check_choice, check_floating, check_shape

_LARGEST = torch.finfo(torch.float32).max


def set_noise_std(model: nn.Module, sigma: float) -> None:
    """Set sigma of the routers' exploration noise (training only; 0 switches it off).

    Raises:
        TypeError, ValueError: ``sigma`` is no number, or not finite in float32 and at least 0. No layer is changed.
    """
    check_number("sigma", sigma, "finite in float32 and at least 0", lambda x: 0 <= x <= _LARGEST)
    for layer in dex_layers(model):
        layer.noise_std = sigma


def set_router_noise(model: nn.Module, noise: Sequence[Tensor] | None) -> None:
    """Give the standard normal draws of the exploration noise, used until replaced; None: torch draws them.

    Args:
        model: holds L DEX layers.
        noise: L tensors [B, R_l] in order of depth, or None.

    Raises:
        TypeError: no sequence of floating tensors.
        ValueError: not one tensor a layer, or a wrong number of experts.
    """
    layers = dex_layers(model)
    if noise is not None:
        check_kind("noise", noise, Sequence | Tensor, "one tensor [B, R] for each DEX layer")
        if len(noise) != len(layers):
            raise ValueError(f"noise must hold one tensor for each of the {len(layers)} DEX layers, got {len(noise)}")
        for i, (layer, normal) in enumerate(zip(layers, noise, strict=True)):
            check_floating(f"noise[{i}]", normal)
            check_shape(f"noise[{i}]", normal, ("B", layer.num_experts))
    for i, layer in enumerate(layers):
        layer.router_noise = None if noise is None else noise[i]


def set_aux(model: nn.Module, when: str) -> None:
    """Set when a forward runs the director beside the experts and computes the auxiliary losses.

    Args:
        model: holds DEX layers.
        when: "train", as at first: in training alone, so that evaluation costs no director; "always": in eval too,
            where the losses have no gradient; "never": for training without them (`aux_losses` is then an error).

    Raises:
        TypeError, ValueError: another word, or no DEX layer. No layer is changed.
    """
    check_choice("when", when, AUX)
    for layer in dex_layers(model):
        layer.aux = when


def set_mode(model: nn.Module, mode: str) -> None:
    """Run all DEX layers through their "experts" or their "director".

    Director mode trains the director and freezes experts and router; experts mode the reverse.

    ``save_pretrained`` writes the mode, and so does ``timm.models.save_for_hf`` for the registered ``dex_vit_*``.
    Of a stock timm model that holds DEX layers timm saves none of their settings: at loading say the mode with the
    others, as in ``mlp_layer=partial(DEXMlp, num_experts=8, mode="director")``, or call this again.
    """
    for layer in dex_layers(model):
        layer.set_mode(mode)


def set_expert_mask(model: nn.Module, keep: Any, instead: str = REROUTE) -> AbstractContextManager[None]:
    """Say which experts routing may choose, at once; as a context manager, until the block ends.

        with set_expert_mask(model, keep):
            ...  # also after an exception the model is as before, bit for bit

    Masks take part in eval and in training, under autocast, in compiled models, and in what is exported or saved by
    ``torch.export`` meanwhile. They are no part of a state dict, of `save_pretrained`'s folders, nor of ``collapse``. A
    deep copy that is made meanwhile keeps them. In director mode no expert runs, and a mask changes nothing.

    Args:
        model: holds L DEX layers.
        keep: L times R_l bools in order of depth (lists, arrays or tensors): whether each expert may run; None: all.
        instead: what stands in for the others. "reroute": their logits are -inf before the top k are chosen, so that
            the next best experts take the image, gates summing to 1. "zero": routing is as ever, and those of the
            chosen that are not kept give nothing; gates are not normalized anew. "director": as "zero", with the
            director's output in their share.

    Returns:
        A context manager; the masks from before return when it ends.

    Raises:
        TypeError, ValueError: no DEX layer, not one list a layer, a list of another length or not of bools, or
            rerouting among fewer experts than top_k. No layer is changed.
    """
    layers = dex_layers(model)
    check_choice("instead", instead, INSTEAD)
    masks = [None] * len(layers) if keep is None else _kept(layers, keep, instead)
    before = [(layer.kept_experts, layer.instead) for layer in layers]
    for layer, kept in zip(layers, _on_devices(layers, masks), strict=True):
        layer.kept_experts, layer.instead = kept, REROUTE if kept is None else instead
    return _Before(layers, before)


class _Before(AbstractContextManager[None]):
    """Gives layers back the masks that they had."""

    def __init__(self, layers: list[DEXMlp], masks: list[tuple[Tensor | None, str]]) -> None:
        self._layers, self._masks = layers, masks

    def __exit__(self, *error: object) -> None:
        for layer, (kept, instead) in zip(self._layers, self._masks, strict=True):
            layer.kept_experts = None if kept is None else kept.to(layer.router.weight.device)
            layer.instead = instead


def _kept(layers: list[DEXMlp], keep: Any, instead: str) -> list[Tensor | None]:
    """The experts that each layer keeps, int64; None where it keeps all."""
    if not hasattr(keep, "__len__"):
        raise TypeError(f"keep must be one list of bools for each DEX layer, or None, got {type(keep).__name__}")
    if len(keep) != len(layers):
        raise ValueError(f"keep must hold one list for each of the {len(layers)} DEX layers, got {len(keep)}")
    found: list[Tensor | None] = []
    for i, (layer, own) in enumerate(zip(layers, keep, strict=True)):
        try:
            mask = torch.as_tensor(own)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"keep[{i}] must be {layer.num_experts} bools, got {own!r}") from error
        if mask.dtype != torch.bool:
            raise TypeError(f"keep[{i}] must be {layer.num_experts} bools, got numbers of type {mask.dtype}")
        if tuple(mask.shape) != (layer.num_experts,):
            raise ValueError(f"keep[{i}] must be {layer.num_experts} bools, got shape {list(mask.shape)}")
        kept = mask.cpu().nonzero().flatten()
        if instead == REROUTE and len(kept) < layer.top_k:
            raise ValueError(
                f"keep[{i}] leaves {len(kept)} of {layer.num_experts} experts, an image needs top_k = {layer.top_k}: "
                'keep more, or let instead="zero" or "director" stand in for the others'
            )
        found.append(None if len(kept) == layer.num_experts else kept)
    return found


def _on_devices(layers: list[DEXMlp], masks: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Each mask where its layer is; what goes to one device goes in one copy."""
    found: list[Tensor | None] = [None] * len(layers)
    devices = [layer.router.weight.device for layer in layers]
    for device in set(devices):
        own = {i: mask for i, mask in enumerate(masks) if mask is not None and devices[i] == device}
        if own:
            there = torch.cat(list(own.values())).to(device).split([len(mask) for mask in own.values()])
            for i, mask in zip(own, there, strict=True):
                found[i] = mask.clone()  # by itself: a compiled model is given no view
    return found
