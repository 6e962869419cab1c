"""`fast_layers`: on a CPU, run timm's attention and PyTorch's dense layers by the kernels that are fast there."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dexcore.checks import check_kind
from dexcore.nn.linear import ONEDNN_DTYPES, faster_by_onednn, linear


@contextmanager
def fast_layers(model: nn.Module, dtype: torch.dtype | None = None) -> Iterator[None]:
    """The context to train or evaluate a model in on a CPU: the same layers by faster kernels. `pretrain` uses it too.

        with fast_layers(model, torch.bfloat16):
            for images, labels in loader:
                with torch.autocast("cpu", torch.bfloat16):
                    loss = criterion(model(images), labels)
                loss.backward()
                ...

    Two things change, where they help:

    - Attention (what has timm's ``fused_attn``) runs in its parts where ``dtype`` is bfloat16: PyTorch's fused kernel
      is slower there (torch 2.14). The parts round the scores to bfloat16, the fused kernel does not.
    - Dense layers (exactly ``nn.Linear``, with no ``forward`` of their own) take oneDNN on AMD's CPUs with AVX-512, in
      float32 and bfloat16. The sums are float32 as before, in another order.

    So results differ from those outside by roundings of ``dtype``, and no parameter, buffer or name changes: a
    checkpoint written inside loads outside. Everything is as before when the context is left, by an error too. On other
    devices it does nothing. Layers added inside are left alone. What is copied, collapsed or pickled inside has plain
    dense layers, and attention as it is inside. Compile the model (``torch.compile``) without it: the compiler chooses
    kernels of its own.

    Args:
        model: a timm vision transformer, a `MaskedAutoencoder`, or any module that holds such layers.
        dtype: what they compute in: autocast's dtype where autocast is used. None: autocast's where it is on as the
            context is entered, else that of the model's parameters.

    Raises:
        TypeError: ``model`` is no module, or ``dtype`` no dtype (a device or precision's name, for example).
    """
    check_kind("model", model, nn.Module, "a torch.nn.Module")
    check_kind("dtype", dtype, torch.dtype | None, "a torch.dtype, such as torch.bfloat16, or None")
    parameter = next(model.parameters(), None)
    fused: list[nn.Module] = []
    dense: list[nn.Linear] = []
    if parameter is not None and parameter.device.type == "cpu":
        if (dtype or _computed_in(parameter)) == torch.bfloat16:
            fused = [layer for layer in model.modules() if getattr(layer, "fused_attn", False)]
        if faster_by_onednn(parameter.device):
            # One that has a forward of its own keeps it: what wraps layers sets such, and so does this context.
            dense = [m for m in model.modules() if type(m) is nn.Linear and "forward" not in vars(m)]
    for layer in fused:
        layer.fused_attn = False  # type: ignore[assignment]  # timm's flag
    for layer in dense:
        layer.forward = partial(_forward, layer)  # type: ignore[method-assign]  # hides its class's
        layer.__getstate__ = partial(_plain_state, layer)  # type: ignore[method-assign]  # copies and pickles ask it
    try:
        yield
    finally:
        for layer in fused:
            layer.fused_attn = True  # type: ignore[assignment]
        for layer in dense:
            del layer.forward, layer.__getstate__


def _computed_in(parameter: Tensor) -> torch.dtype:
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else parameter.dtype


def _plain_state(layer: nn.Linear) -> dict[str, Any]:
    return {name: value for name, value in vars(layer).items() if name not in ("forward", "__getstate__")}


def _forward(layer: nn.Linear, x: Tensor) -> Tensor:
    weight, bias = layer.weight, layer.bias
    autocast = torch.is_autocast_enabled(x.device.type)
    dtype = torch.get_autocast_dtype(x.device.type) if autocast else torch.float32
    known = x.ndim > 1 and x.device.type == "cpu" and dtype in ONEDNN_DTYPES
    fits = x.shape[-1] == weight.shape[1]  # PyTorch's error names the shapes, oneDNN's does not
    if known and fits and {x.dtype, weight.dtype} <= {torch.float32, dtype}:
        return linear(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
    return F.linear(x, weight, bias)
