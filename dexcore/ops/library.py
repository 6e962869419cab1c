"""How an op is made known to PyTorch: schema, implementation, what it returns on fake tensors, who traces it."""

from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

import torch

_LIBRARY = torch.library.Library("dexcore", "DEF")


def define_op(name: str, run: Callable[..., Any], fake: Callable[..., Any], mutates: tuple[str, ...] = ()) -> Any:
    """Define ``torch.ops.dexcore.NAME`` and return it.

    Not `torch.library.custom_op`, whose wrapper costs a small layer some percent of its time. The op has no gradient of
    its own and says so: an autograd.Function calls it, forward or backward. It runs with autocast off.
    """

    @wraps(run)
    def without_autocast(*arguments: Any) -> Any:
        device = next(_devices(arguments))
        if not torch.is_autocast_enabled(device):
            return run(*arguments)
        with torch.autocast(device, enabled=False):
            return run(*arguments)

    def refuse(ctx: Any, *grads: Any) -> None:
        raise NotImplementedError(f"dexcore::{name} is differentiable once only, through dexcore.ops")

    _LIBRARY.define(name + torch.library.infer_schema(run, mutates_args=mutates))
    _LIBRARY.impl(name, without_autocast, "CompositeExplicitAutograd")
    torch.library.register_fake(f"dexcore::{name}", fake, lib=_LIBRARY)
    if not mutates:
        torch.library.register_autograd(f"dexcore::{name}", refuse, lib=_LIBRARY)
    return getattr(torch.ops.dexcore, name).default


def is_exporting() -> bool:
    """Whether `torch.export` is tracing, and not `torch.compile`.

    Inside torch.compile PyTorch 2.10 and 2.11 say yes to `torch.compiler.is_exporting` always; the flag it returns
    elsewhere is right there too.
    """
    return getattr(torch.compiler, "_is_exporting_flag", torch.compiler.is_exporting())


def _devices(arguments: Iterable[Any]) -> Any:
    for argument in arguments:
        if isinstance(argument, torch.Tensor):
            yield argument.device.type
        elif isinstance(argument, list):
            yield from _devices(argument)
    yield "cpu"
