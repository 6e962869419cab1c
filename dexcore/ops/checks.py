"""Argument checks shared by the ops: errors that name the argument and say what was expected."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad


def check_floating(name: str, tensor: Tensor) -> None:
    """Raise TypeError unless ``tensor`` is a floating-point tensor."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if not tensor.dtype.is_floating_point:
        raise TypeError(f"{name} must be floating point, got {tensor.dtype}")


def check_integer(name: str, tensor: Tensor) -> None:
    """Raise TypeError unless ``tensor`` holds int64 or int32."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name} must be int64 or int32, got {tensor.dtype}")


def check_shape(name: str, tensor: Tensor, expected: Sequence[int | str]) -> None:
    """Raise ValueError unless the shape is ``expected``; a string stands for any size and says what it is."""
    fits = tensor.ndim == len(expected) and all(
        isinstance(want, str) or size == want for size, want in zip(tensor.shape, expected, strict=True)
    )
    if not fits:
        wanted = ", ".join(str(want) for want in expected)
        raise ValueError(f"{name} must have shape [{wanted}], got {list(tensor.shape)}")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_same_device(**tensors: Tensor | None) -> None:
    """Raise ValueError unless all tensors lie on the first one's device."""
    (first_name, first), *others = ((name, tensor) for name, tensor in tensors.items() if tensor is not None)
    for name, tensor in others:
        if tensor.device != first.device:
            raise ValueError(f"{name} is on {tensor.device}, expected {first.device} like {first_name}")


def refuse_transforms(op: str, *tensors: Tensor | None) -> None:
    """Raise where a derivative would be lost in silence: forward mode, and torch.func's transforms but for vmap
    without gradients. And where TorchScript's tracer meets what it cannot write down: gradients, ONNX.
    """
    if torch.compiler.is_compiling():
        return
    given = [tensor for tensor in tensors if tensor is not None]
    if torch.jit.is_tracing():
        _refuse_trace(op, given)
    functorch = torch._C._functorch
    batched = [functorch.is_batchedtensor(tensor) for tensor in given]
    if any(batched) and torch.is_grad_enabled():
        plain = [functorch.get_unwrapped(t) if wrapped else t for t, wrapped in zip(given, batched, strict=True)]
        batched = [wrapped and not any(t.requires_grad for t in plain) for wrapped in batched]
    for tensor, allowed in zip(given, batched, strict=True):
        wrapped = functorch.is_functorch_wrapped_tensor(tensor) and not allowed
        if wrapped or forward_ad.unpack_dual(tensor).tangent is not None:
            raise NotImplementedError(
                f"dexcore.ops.{op} supports neither forward-mode differentiation nor torch.func transforms; "
                "use torch.autograd (reverse mode, once)"
            )


def _refuse_trace(op: str, tensors: list[Tensor]) -> None:
    # torch's own errors print the whole graph.
    if torch.onnx.is_in_onnx_export():
        raise NotImplementedError(
            f"torch.onnx.export with dynamo=False cannot export dexcore.ops.{op}; use dynamo=True, or export the model "
            "that collapse returns"
        )
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        raise NotImplementedError(
            f"torch.jit.trace cannot trace dexcore.ops.{op} with gradients; trace under torch.no_grad(), use "
            "torch.export or torch.compile, or trace the model that collapse returns"
        )
