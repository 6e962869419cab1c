"""Kernels that are launched for one program, with arguments beyond 2^31 elements: files of holes."""

import inspect
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from triton.runtime import interpreter

BEFORE = 2**31  # elements, mapped too: an offset that lost its upper bits is wrong there, and no fault


def far(path: Any, *shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    """A tensor of zeros, of which what is not written takes no memory."""
    elements = torch.Size(shape).numel()
    return torch.from_file(str(path), shared=True, size=BEFORE + elements, dtype=dtype)[BEFORE:].view(shape)


class Launch:
    """The kernel that ``call`` launches by ``module``'s `launch`, and its arguments by name; nothing runs."""

    def __init__(self, module: Any, call: Callable[[], Any]) -> None:
        self.kernel: Any = None
        with mock.patch.object(module, "launch", self._note):
            call()
        assert self.kernel is not None

    def _note(self, kernel: Any, grid: tuple[int, ...], *arguments: Any, **settings: Any) -> None:
        assert self.kernel is None, "two launches"
        self.kernel = kernel
        names = inspect.signature(kernel.fn).parameters
        settings = {name: value for name, value in settings.items() if name in names}
        self.arguments = inspect.getcallargs(kernel.fn, *arguments, **settings)

    def run(self, program: int, **replaced: Any) -> None:
        """One program, with some arguments replaced."""
        assert replaced.keys() <= self.arguments.keys()
        builder = interpreter.interpreter_builder

        def of_that_program(*_: int) -> None:
            builder.grid_idx = (program, 0, 0)

        with mock.patch.object(builder, "set_grid_idx", of_that_program):
            self.kernel[(1,)](**{**self.arguments, **replaced})
