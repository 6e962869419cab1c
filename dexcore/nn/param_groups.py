"""Optimizer groups as timm makes them, with the experts' biases among what is not decayed."""

from typing import Any

from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn

from dexcore.nn.mlp import DEXMlp


def param_groups(model: nn.Module, weight_decay: float, layer_decay: float | None = None) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer.

    Not decayed are what timm leaves out (norms, biases, what a module names in ``no_weight_decay``) and the experts'
    biases, which are 2-D ([R, H]). Frozen parameters are left out.

    Args:
        model: any module; with ``layer_decay`` its ``group_matcher`` tells the layers.
        weight_decay: for all other parameters, >= 0.
        layer_decay: factor on the learning rate from one layer to the one before (``lr_scale`` in each group), in
            (0, 1]; None: no such factor.
    """
    if not weight_decay >= 0:
        raise ValueError(f"weight_decay must be >= 0, got {weight_decay}")
    if layer_decay is not None and not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay must lie in (0, 1], got {layer_decay}")
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
