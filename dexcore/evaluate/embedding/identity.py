"""What a model is, as one hash: its tensors, its settings and the functions it calls."""

import functools
import hashlib
import json
import sys
from enum import Enum
from pathlib import PurePath
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import nn

from dexcore.evaluate.embedding.table import FeaturesError
from dexcore.nn.mlp import DEXMlp

_KNOWN = {"torch", "timm", "dexcore", *sys.stdlib_module_names}  # their versions tell their code
_OF_EVERY_MODULE = {*vars(nn.Module()), "_compiled_call_impl"}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
# What says how, and not what, is computed; and what a model tells of itself: its view is in the key by itself.
_NO_SETTINGS = {
    "grad_checkpointing",
    "_selective",
    "fused_attn",
    "pretrained_cfg",
    "default_cfg",
    "_model_args",
    "input_normalization",
    "input_slices",
}
# Of a DEX layer also what acts in training alone, and its mode, which is in the key by itself.
_OF_DEX = {"mode", "aux", "align", "keep", "backend", "record", "router_noise", "routes", "_noise_std", "_noisy"}


def model_hash(model: nn.Module, key: str | None = None) -> str:
    """SHA-256 of a model: names, types, shapes and bytes of its tensors, the kinds, settings and hooks of its parts.

    Args:
        model: of any module.
        key: its owner's word for code that is neither torch's, timm's nor dexcore's.

    Raises:
        FeaturesError: the model holds such code, and there is no ``key``.
    """
    model = getattr(model, "_orig_mod", model)  # a compiled one computes the same
    told = [key, _Description(key is not None).of_module(model)]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


class _Description:
    """Values in JSON's words; an object that was told is named by its place."""

    def __init__(self, has_key: bool) -> None:
        self.has_key, self._place = has_key, dict[int, str]()

    def of_module(self, model: nn.Module) -> list[Any]:
        parts = dict(model.named_modules())
        self._place |= {id(part): f"{len(self._place)} {name}" for name, part in parts.items()}
        tensors: dict[str, torch.Tensor] = dict(model.named_buffers(remove_duplicate=False))
        tensors.update(model.named_parameters(remove_duplicate=False))
        told = {name: self._part(name or type(model).__name__, part) for name, part in parts.items()}
        return [told, {name: _tensor(tensor) for name, tensor in tensors.items()}]

    def _part(self, where: str, part: nn.Module) -> list[Any]:
        left_out = _OF_EVERY_MODULE | _NO_SETTINGS | (_OF_DEX if isinstance(part, DEXMlp) else set())
        settings = {name: value for name, value in vars(part).items() if name not in left_out}
        hooks = [self.of(f"a forward hook of {where}", list(vars(part)[name].values())) for name in _HOOKS]
        told = {name: self.of(f"{where}.{name}", value) for name, value in settings.items()}
        return [self._code(where, type(part)), told, hooks]

    def of(self, where: str, value: Any) -> Any:
        """A setting, a function or an object."""
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, torch.Tensor):
            return _tensor(value)
        if isinstance(value, np.ndarray | np.generic):
            return [str(value.dtype), list(value.shape), hashlib.sha256(value.tobytes()).hexdigest()]
        if isinstance(value, torch.dtype | Enum | PurePath):
            return str(value)
        if isinstance(value, torch.device):
            return "device"
        if id(value) in self._place:
            return ["as", self._place[id(value)]]
        if isinstance(value, dict):
            return sorted([str(name), self.of(f"{where}[{name!r}]", each)] for name, each in value.items())
        if isinstance(value, tuple | list):
            return [self.of(f"{where}[{place}]", each) for place, each in enumerate(value)]
        if isinstance(value, set | frozenset):
            return sorted(json.dumps(self.of(where, each), sort_keys=True) for each in value)
        if isinstance(value, nn.Module):
            return self.of_module(value)
        self._place[id(value)] = str(len(self._place))
        return self._function(where, value)

    def _function(self, where: str, value: Any) -> Any:
        if isinstance(value, functools.partial):
            return ["partial", *(self.of(where, part) for part in (value.func, value.args, value.keywords))]
        if isinstance(value, MethodType):
            return [self.of(where, value.__func__), self.of(where, value.__self__)]
        if isinstance(value, FunctionType):
            cells = [cell.cell_contents for cell in value.__closure__ or ()]
            return [self._code(where, value), self.of(where, [cells, value.__defaults__, value.__kwdefaults__])]
        if isinstance(value, type | BuiltinFunctionType):
            return self._code(where, value)
        plain = {name: each for name, each in getattr(value, "__dict__", {}).items() if _is_plain(each)}
        return [self._code(where, type(value)), self.of(where, plain)]

    def _code(self, where: str, code: Any) -> str:
        """The name of a class or a function whose code does not change unless a version does."""
        module = code.__module__ or getattr(getattr(code, "__self__", None), "__module__", "") or ""
        name = f"{module}.{code.__qualname__}"
        if module.partition(".")[0] not in _KNOWN and not self.has_key:
            raise FeaturesError(
                f"{where} is {name}, whose code is neither torch's, timm's nor dexcore's, and may change unseen: "
                "expected key=..., a word for the code, changed with it; the weights are hashed as ever"
            )
        return name


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_plain(each) for each in value)
    return value is None or isinstance(value, bool | int | float | str)


def _tensor(tensor: torch.Tensor) -> list[Any]:
    held = tensor.detach().cpu().contiguous()
    data = held.flatten().view(torch.uint8).numpy().data if held.numel() else b""
    return [str(held.dtype), list(held.shape), hashlib.sha256(data).hexdigest()]
