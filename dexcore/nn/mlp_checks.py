"""What a `DEXMlp` refuses, by name."""

import math
from collections.abc import Callable

from timm.layers import GELU, GELUTanh
from timm.layers.activations import QuickGELU
from torch import Tensor, nn

from dexcore.checks import check_number

_ACTIVATIONS = (
    (nn.GELU, "gelu"),
    (GELU, "gelu"),
    (GELUTanh, "gelu_tanh"),
    (QuickGELU, "quick_gelu"),
    (nn.ReLU, "relu"),
    (nn.SiLU, "silu"),
)


def activation_name(act_layer: Callable[..., nn.Module]) -> str:
    """The ops' name of timm's ``act_layer``; ValueError for one that they do not have."""
    module = act_layer()
    if isinstance(module, nn.GELU) and module.approximate == "tanh":
        return "gelu_tanh"
    for kind, name in _ACTIVATIONS:
        if isinstance(module, kind):
            return name
    raise ValueError(
        f"act_layer must be one of {', '.join(dict.fromkeys(name for _, name in _ACTIVATIONS))} (nn.GELU, GELUTanh, "
        f"QuickGELU, nn.ReLU, nn.SiLU), got {type(module).__name__}"
    )


def refuse_unsupported(
    in_features: int, out_features: int | None, norm_layer: object, bias: object, drop: object, use_conv: bool
) -> None:
    if out_features not in (None, 0, in_features):
        raise ValueError(f"out_features must equal in_features ({in_features}) in a DEX layer, got {out_features}")
    if norm_layer is not None:
        raise ValueError("norm_layer inside the MLP (timm: scale_mlp_norm) is not supported by a DEX layer")
    if not isinstance(bias, bool):
        raise ValueError(f"bias must be True or False for both layers of a DEX layer, got {bias!r}")
    if isinstance(drop, tuple | list) or drop != 0:
        raise ValueError(f"drop must be 0: a DEX layer has no dropout (timm: proj_drop_rate), got {drop!r}")
    if use_conv:
        raise ValueError("use_conv=True is not supported: a DEX layer works on tokens [B, N, D]")


def check_routing_arguments(num_experts: int, top_k: int, tau: float) -> None:
    for name, value in (("num_experts", num_experts), ("top_k", top_k)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an int, got {value!r}")
    if num_experts < 1:
        raise ValueError(f"num_experts must be at least 1, got {num_experts}")
    if not 1 <= top_k <= num_experts:
        raise ValueError(f"top_k must lie in 1..{num_experts} (num_experts), got {top_k}")
    check_number("tau", tau, "finite and > 0", lambda tau: 0 < tau < math.inf)


def check_linear(name: str, layer: nn.Module) -> None:
    """Raise TypeError unless ``layer``, called ``name``, is a plain or parametrized nn.Linear of floating numbers."""
    weight = getattr(layer, "weight", None)
    if not (isinstance(layer, nn.Linear) and isinstance(weight, Tensor) and weight.is_floating_point()):
        kind = type(layer)
        raise TypeError(
            f"{name} is a {kind.__module__}.{kind.__qualname__} where a DEX layer needs an nn.Linear of floating "
            "numbers: experts are aligned to its weights, and update_directors writes them. Leave the director out of "
            'what replaces linear layers (quantizers, PEFT), or train through it alone: set_mode(model, "director"). '
            "For LoRA on experts use torch.nn.utils.parametrize"
        )
