"""Optimizer groups as timm makes them, with the experts' biases among what is not decayed."""

import math
from typing import Any

from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn

from dexcore.checks import check_kind, check_number
from dexcore.nn.mlp import DEXMlp, check_class_token


def param_groups(model: nn.Module, weight_decay: float, layer_decay: float | None = None) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer.

    Not decayed are what timm leaves out (norms, biases, what a module names in ``no_weight_decay``) and the experts'
    biases, which are 2-D ([R, H]). Frozen parameters are left out.

    Args:
        model: any module; with ``layer_decay`` its ``group_matcher`` tells the layers.
        weight_decay: for all other parameters, finite and >= 0.
        layer_decay: factor on the learning rate from one layer to the one before (``lr_scale`` in each group), in
            (0, 1]; None: no such factor.

    Raises:
        TypeError, ValueError: an argument is of another type or out of its range; the message names it. ValueError,
            too, for DEX layers with ``pool="cls"`` in a model without a class token.
    """
    check_kind("model", model, nn.Module, "a torch.nn.Module")
    check_number("weight_decay", weight_decay, "finite and >= 0", lambda x: 0 <= x < math.inf)
    if layer_decay is not None:
        check_number("layer_decay", layer_decay, "in (0, 1]", lambda x: 0 < x <= 1)
    check_class_token(model)
    excluded = set()
    for prefix, module in model.named_modules():
        dot = prefix + "." if prefix else ""
        if hasattr(module, "no_weight_decay"):
            excluded |= {dot + name for name in module.no_weight_decay()}
        if isinstance(module, DEXMlp):
            excluded |= {f"{dot}experts.{name}" for name in ("fc1.bias", "fc2.bias")}
    if layer_decay is None:
        return param_groups_weight_decay(model, weight_decay, no_weight_decay_list=excluded)
    return param_groups_layer_decay(model, weight_decay, no_weight_decay_list=excluded, layer_decay=layer_decay)
