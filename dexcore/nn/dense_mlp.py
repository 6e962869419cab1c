"""The MLPs of timm's that a DEX layer can have for its director, and where their parameters lie in its experts.

    director                            experts' fc1, [R, H, D] or [R, 2 H, D]
    Mlp                                 as the director's
    GluMlp, gate_last=False             as the director's: the gate's rows, then the value's   (SwiGLUPacked)
    GluMlp, gate_last=True              the director's halves change places
    SwiGLU                              fc1_g, then fc1_x

Their fc2, [R, D, H], are always as the director's.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

from timm.layers import GluMlp, Mlp, SwiGLU
from torch import Tensor, nn

from dexcore.nn.mlp_checks import activation_name

KINDS = (Mlp, GluMlp, SwiGLU)


def first_layers(mlp: Any) -> dict[str, nn.Linear]:
    """The linear layers before the activation, by their names; the gate's first where there are two."""
    return {name: getattr(mlp, name) for name in (("fc1_g", "fc1_x") if isinstance(mlp, SwiGLU) else ("fc1",))}


def linear_layers(mlp: Any) -> dict[str, nn.Linear]:
    """All linear layers, by their names."""
    return {**first_layers(mlp), "fc2": mlp.fc2}


def activation_of(mlp: Any) -> str:
    """The ops' name of what lies between the linear layers; ValueError for what they do not have."""
    if isinstance(mlp, Mlp):
        return activation_name(lambda: mlp.act)
    if not isinstance(mlp.act, nn.SiLU):
        raise ValueError(
            f"act_layer must be nn.SiLU in a gated MLP ({type(mlp).__name__}), got {type(mlp.act).__name__}"
        )
    return "swiglu"


def has_rows_of_experts(mlp: Any) -> bool:
    """Whether row i of every parameter is row i of the experts' too."""
    return not (isinstance(mlp, SwiGLU) or _has_gate_last(mlp))


def _has_gate_last(mlp: Any) -> bool:
    return isinstance(mlp, GluMlp) and mlp.gate_last


def first_layer_pieces(mlp: Any, kind: str) -> list[Tensor]:
    """The first layers' "weight" or "bias" in the order of the experts' rows; [] without.

    It is the parameter itself where `has_rows_of_experts`, else its halves or two parameters.
    """
    tensors = [getattr(layer, kind) for layer in first_layers(mlp).values()]
    if tensors[0] is None:
        return []
    return [*reversed(tensors[0].chunk(2))] if _has_gate_last(mlp) else tensors


def pieces(mlp: Any) -> list[Tensor]:
    """All parameters in the order of `expert_pieces`."""
    second = [] if mlp.fc2.bias is None else [mlp.fc2.bias]
    return [*first_layer_pieces(mlp, "weight"), *first_layer_pieces(mlp, "bias"), mlp.fc2.weight, *second]


def expert_pieces(experts: Any, mlp: Any) -> list[Tensor]:
    """Of `dexcore.nn.mlp.Experts`, [R, *piece.shape] for each of the `pieces` of ``mlp``, which they are copies of."""
    fc1, fc2 = experts.fc1, experts.fc2
    found: list[Tensor] = []
    for tensor in (fc1.weight, fc1.bias):
        if tensor is not None:
            found.extend([tensor] if has_rows_of_experts(mlp) else tensor.chunk(2, 1))
    return [*found, fc2.weight, *([] if fc2.bias is None else [fc2.bias])]


def constructor_of(mlp: Any) -> Callable[..., nn.Module]:
    """What builds such an MLP, given sizes, activation and whether there are biases."""
    return partial(GluMlp, gate_last=mlp.gate_last) if isinstance(mlp, GluMlp) else type(mlp)


def hidden_features_of(mlp: Any) -> int:
    """What timm's constructor calls hidden_features: of a `GluMlp` twice the width of its second layer."""
    return next(iter(first_layers(mlp).values())).out_features


def check_dense_mlp(name: str, mlp: Any) -> None:
    """Refuse an MLP that a `DEXMlp` cannot stand in for; ValueError that calls it ``name``."""
    if type(mlp) not in KINDS:
        raise ValueError(
            f"{name} is a {type(mlp).__name__}: only timm's plain Mlp, GluMlp (SwiGLUPacked) and SwiGLU can be upcycled"
        )
    layers = linear_layers(mlp).values()
    if any(isinstance(layer, nn.Conv2d) for layer in layers):
        raise ValueError(f"{name} uses convolutions (use_conv): only linear layers can be upcycled")
    for layer in layers:
        if type(layer) is not nn.Linear:
            raise ValueError(f"{name} has a {type(layer).__name__} for a linear layer: it cannot be upcycled")
    if not isinstance(mlp.norm, nn.Identity):
        raise ValueError(f"{name} has a norm inside (norm_layer, scale_mlp_norm, scale_mlp): it cannot be upcycled")
    if mlp.drop1.p > 0 or mlp.drop2.p > 0:
        raise ValueError(f"{name} has dropout (drop, proj_drop_rate): a DEX layer has none")
    if len({layer.bias is None for layer in layers}) > 1:
        raise ValueError(f"{name} has a bias on one of its layers only: it cannot be upcycled")
    width = next(iter(layers)).in_features
    if width != mlp.fc2.out_features:
        raise ValueError(f"{name} changes the width ({width} to {mlp.fc2.out_features})")
    try:
        activation_of(mlp)
    except ValueError as error:
        raise ValueError(f"{name} cannot be upcycled: {error}") from error


def activation_like(mlp: Any) -> Callable[..., nn.Module]:
    """timm's ``act_layer`` for another of the kind."""
    return partial(copy.deepcopy, mlp.act)
