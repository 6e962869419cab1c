"""How an op is made known to PyTorch: schema, implementation, what it returns on fake tensors, who traces it."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar, get_type_hints

import torch

_LIBRARY = torch.library.Library("dexcore", "DEF")

Call = TypeVar("Call", bound=tuple[Any, ...])


class ArgumentList(Generic[Call]):
    """A NamedTuple class as flat arguments, which ops and autograd.Functions take: a field that is itself a NamedTuple
    stands for its own fields, which are nested no further.

    Example: Call(x: Tensor, settings: Settings), Settings(keep: str, backend: str) has the names x, keep, backend.

    Attributes:
        types: of every flat argument, by its name, in order.
    """

    def __init__(self, kind: type[Call]) -> None:
        self._kind = kind
        self._parts: list[tuple[Any, int, int]] = []  # a nested NamedTuple's class, where it starts and ends
        self.types: dict[str, Any] = {}
        for field, hint in get_type_hints(kind).items():
            first = len(self.types)
            inner = get_type_hints(hint) if hasattr(hint, "_fields") else {field: hint}
            if self.types.keys() & inner:
                raise TypeError(f"{kind.__name__} has two arguments of one name: {sorted(self.types.keys() & inner)}")
            self.types.update(inner)
            self._parts.append((hint if hasattr(hint, "_fields") else None, first, len(self.types)))

    def nest(self, flat: Sequence[Any]) -> Call:
        """The NamedTuple of these flat arguments, or of what stands in their places."""
        return self._kind(
            *[flat[first] if inner is None else inner(*flat[first:end]) for inner, first, end in self._parts]
        )

    def place(self, values: Mapping[str, Any]) -> tuple[Any, ...]:
        """The values at their names' places among the flat arguments, None at the others."""
        return tuple([values.get(name) for name in self.types])


def flatten(call: tuple[Any, ...]) -> list[Any]:
    """A NamedTuple's flat arguments; see `ArgumentList`."""
    flat: list[Any] = []
    for value in call:
        if isinstance(value, tuple):
            flat.extend(value)
        else:
            flat.append(value)
    return flat


def define_op(
    name: str, kind: type[Call], run: Callable[[Call], Any], fake: Callable[[Call], Any], mutates: tuple[str, ...] = ()
) -> Any:
    """Define ``torch.ops.dexcore.NAME`` and return it.

    ``kind`` is the op's argument list (`ArgumentList`), an instance of which ``run`` and ``fake`` get. What ``run`` is
    annotated to return is what the op does; of a NamedTuple, its fields.

    Not `torch.library.custom_op`, whose wrapper costs a small layer some percent of its time. The op has no gradient of
    its own and says so: an autograd.Function calls it, forward or backward. It runs with autocast off.
    """
    arguments = ArgumentList(kind)

    def without_autocast(*flat: Any) -> Any:
        device = next(_devices(flat))
        if not torch.is_autocast_enabled(device):
            return run(arguments.nest(flat))
        with torch.autocast(device, enabled=False):
            return run(arguments.nest(flat))

    def refuse(ctx: Any, *grads: Any) -> None:
        raise NotImplementedError(f"dexcore::{name} is differentiable once only, through dexcore.ops")

    _LIBRARY.define(name + _schema(arguments, run, mutates))
    _LIBRARY.impl(name, without_autocast, "CompositeExplicitAutograd")
    torch.library.register_fake(f"dexcore::{name}", lambda *flat: fake(arguments.nest(flat)), lib=_LIBRARY)
    if not mutates:
        torch.library.register_autograd(f"dexcore::{name}", refuse, lib=_LIBRARY)
    return getattr(torch.ops.dexcore, name).default


def is_exporting() -> bool:
    """Whether `torch.export` is tracing, and not `torch.compile`.

    Inside torch.compile PyTorch 2.10 and 2.11 say yes to `torch.compiler.is_exporting` always; the flag it returns
    elsewhere is right there too.
    """
    return getattr(torch.compiler, "_is_exporting_flag", torch.compiler.is_exporting())


def _schema(arguments: ArgumentList[Any], run: Callable[..., Any], mutates: tuple[str, ...]) -> str:
    returned = inspect.signature(run).return_annotation
    if hasattr(returned, "_fields"):
        returned = tuple[tuple(get_type_hints(returned).values())]  # type: ignore[misc]

    def prototype() -> None: ...

    parameters = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=hint)
        for name, hint in arguments.types.items()
    ]
    prototype.__signature__ = inspect.Signature(parameters, return_annotation=returned)  # type: ignore[attr-defined]
    return torch.library.infer_schema(prototype, mutates_args=mutates)


def _devices(arguments: Iterable[Any]) -> Any:
    for argument in arguments:
        if isinstance(argument, torch.Tensor):
            yield argument.device.type
        elif isinstance(argument, list):
            yield from _devices(argument)
    yield "cpu"
