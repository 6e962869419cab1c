"""Experts that are given to a model's layers for each image, in the place of those that their routers would choose."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dexcore.checks import check_kind
from dexcore.nn.mlp import DEXMlp, dex_layers
from dexcore.nn.rules import RoutingRule
from dexcore.ops.checks import check_integer, check_shape


def set_routes(model: nn.Module, routes: Sequence[Tensor] | None) -> None:
    """Give each image's experts, used until replaced; None: the routers choose again.

    A layer computes what it would if its router had chosen them with equal gates, 1 / k each: by the same ops, with the
    alignment loss, and counted for the directors. Router and exploration noise take no part, and the router's gradient
    is zeros. A forward of another number of images is refused.

    Args:
        model: holds L DEX layers.
        routes: L whole-number tensors [B, k_l] in order of depth, k_l different experts an image; or None.

    Raises:
        TypeError: no sequence of such tensors.
        ValueError: not one tensor a layer, a wrong number of experts, one that the layer does not have, or one twice.
    """
    layers = dex_layers(model)
    if routes is None:
        for layer in layers:
            layer.routes = None
        return
    check_kind("routes", routes, Sequence, "one tensor [B, k] for each DEX layer")
    if len(routes) != len(layers):
        raise ValueError(f"routes must hold one tensor for each of the {len(layers)} DEX layers, got {len(routes)}")
    for i, (layer, chosen) in enumerate(zip(layers, routes, strict=True)):
        check_integer(f"routes[{i}]", chosen)
        check_shape(f"routes[{i}]", chosen, ("B", layer.top_k))
        ordered = chosen.sort(dim=1).values
        if len(chosen) and not (0 <= int(ordered.min()) and int(ordered.max()) < layer.num_experts):
            raise ValueError(f"routes[{i}] must be experts 0..{layer.num_experts - 1}")
        if bool((ordered[:, 1:] == ordered[:, :-1]).any()):
            raise ValueError(f"routes[{i}] must be different experts for an image, got one twice")
    for layer, chosen in zip(layers, routes, strict=True):
        layer.routes = chosen.to(layer.router.weight.device, torch.int64)


def set_rule(model: nn.Module, rule: RoutingRule | Mapping[str, Any] | None) -> None:
    """Have a rule choose the experts of every image: the model then runs with `route_by_rule` (or `set_routes`) alone.

    The rule is saved with the model. None: the routers choose.

    Raises:
        TypeError, ValueError: it is no rule, or the model has no DEX layer.
    """
    given = None if rule is None else RoutingRule.of(rule)
    for layer in dex_layers(model):
        layer.rule, layer.routes = given, None


def rule_of(model: nn.Module) -> RoutingRule | None:
    """The rule of the model's DEX layers; None where their routers choose, or there are none."""
    return next((layer.rule for layer in model.modules() if isinstance(layer, DEXMlp)), None)


def route_by_rule(model: nn.Module, names: Sequence[str], modalities: Sequence[str]) -> None:
    """Give the images of the next forwards the experts that the model's rule says; without a rule nothing happens.

    Args:
        model: any; its DEX layers have a rule, or none.
        names: of the B images: what stands for them in the rule "fixed".
        modalities: their modalities, names.

    Raises:
        ValueError: a modality that the rule does not know.
    """
    rule = rule_of(model)
    if rule is None:
        return
    layers = dex_layers(model)
    chosen = rule.choose([(layer.num_experts, layer.top_k) for layer in layers], names, modalities)
    for layer, experts in zip(layers, chosen, strict=True):
        layer.routes = torch.from_numpy(experts).to(layer.router.weight.device)
