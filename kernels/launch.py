"""How kernels are launched, and how they are compiled without being launched."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import Context, copy_context
from typing import Any

import torch

# Not a context variable: autograd launches the backward's kernels from threads of its own.
_compiling: tuple[Callable[[Any], None], Context] | None = None


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **settings: Any) -> None:
    """``kernel[grid](*arguments, **settings)``; inside `compiling` it is compiled alone. An empty grid is nothing."""
    if 0 in grid:
        return
    with _current(arguments):
        if _compiling is None:
            kernel[grid](*arguments, **settings)
        else:
            report, context = _compiling
            report(context.copy().run(kernel.warmup, *arguments, grid=grid, **settings))


def _current(arguments: tuple[Any, ...]) -> AbstractContextManager[Any]:
    """Triton launches on the current GPU, which need not be the tensors'."""
    device = next(argument.device for argument in arguments if isinstance(argument, torch.Tensor))
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(device)


@contextmanager
def compiling(report: Callable[[Any], None]) -> Iterator[None]:
    """Within it nothing is launched: each kernel is compiled for its arguments, and the result given to ``report``.

    It holds for the whole process. Inside `triton.AsyncCompileMode` that mode holds for the launches of all threads.
    """
    global _compiling
    before, _compiling = _compiling, (report, copy_context())
    try:
        yield
    finally:
        _compiling = before


def is_compiling() -> bool:
    """Whether outputs hold nothing, since nothing is launched."""
    return _compiling is not None
