"""How kernels are launched, and how they are compiled without being launched."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_compiled: ContextVar[Callable[[Any], None] | None] = ContextVar("compiled", default=None)


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **settings: Any) -> None:
    """``kernel[grid](*arguments, **settings)``; inside `compiling` it is compiled alone. An empty grid is nothing."""
    if 0 in grid:
        return
    report = _compiled.get()
    if report is None:
        kernel[grid](*arguments, **settings)
    else:
        report(kernel.warmup(*arguments, grid=grid, **settings))


@contextmanager
def compiling(report: Callable[[Any], None]) -> Iterator[None]:
    """Within it nothing is launched: each kernel is compiled for its arguments, and the result given to ``report``."""
    token = _compiled.set(report)
    try:
        yield
    finally:
        _compiled.reset(token)
