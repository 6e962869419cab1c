"""How kernels are launched, and how they are compiled without being launched."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import Context, copy_context
from functools import cache
from typing import Any

import torch

# Not a context variable: autograd launches the backward's kernels from threads of its own.
_compiling: tuple[Callable[[Any], None], Context] | None = None


class _Launches(threading.local):
    """Of a thread's open fork."""

    stream: torch.cuda.Stream | None = None  # instead of the current one

    def __init__(self) -> None:
        self.held: list[tuple[Any, ...]] = []  # what was launched on it, so that its memory is nobody else's meanwhile


_launches = _Launches()


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **settings: Any) -> None:
    """``kernel[grid](*arguments, **settings)``; inside `compiling` it is compiled alone. An empty grid is nothing."""
    if 0 in grid:
        return
    with _current(arguments), _stream():
        if _launches.stream is not None:
            _launches.held.append(arguments)
        if _compiling is None:
            kernel[grid](*arguments, **settings)
        else:
            report, context = _compiling
            report(context.copy().run(kernel.warmup, *arguments, grid=grid, **settings))


@contextmanager
def forked(device: torch.device, needed: bool = True) -> Iterator[AbstractContextManager[None]]:
    """A second stream beside the current one, until the end of this context, where the current one waits for it.

    What is launched inside the context that it gives runs on the second stream, after all that was launched before
    `forked`. Memory belongs to the current stream alone: what the second one reads or writes is held until the end, and
    nothing that the current one uses inside may be let go before. CUDA graphs capture both. Where it is not ``needed``,
    since one of them has no work, there is the current stream alone.
    """
    if device.type != "cuda" or is_compiling() or not needed:
        yield nullcontext()
        return
    current, second = torch.cuda.current_stream(device), _second_stream(device)
    second.wait_stream(current)
    try:
        yield _launching_on(second)
    finally:
        current.wait_stream(second)
        _launches.held.clear()


@contextmanager
def _launching_on(stream: torch.cuda.Stream) -> Iterator[None]:
    before, _launches.stream = _launches.stream, stream
    try:
        yield
    finally:
        _launches.stream = before


def _stream() -> AbstractContextManager[Any]:
    return nullcontext() if _launches.stream is None else torch.cuda.stream(_launches.stream)


@cache
def _second_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def _current(arguments: tuple[Any, ...]) -> AbstractContextManager[Any]:
    """Triton launches on the current GPU, which need not be the tensors'."""
    tensors = (getattr(argument, "base", argument) for argument in arguments)  # a descriptor's
    device = next(tensor.device for tensor in tensors if isinstance(tensor, torch.Tensor))
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
