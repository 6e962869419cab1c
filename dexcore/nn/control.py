"""Switches over all DEX layers of a model: exploration noise, mode, and when losses are computed."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dexcore.checks import check_kind, check_number
from dexcore.nn.mlp import AUX, dex_layers
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
