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
    """The first kernel that ``call`` launches by ``module``'s `launch`, or its ``number``-th after; nothing runs."""

    def __init__(self, module: Any, call: Callable[[], Any], number: int = 0) -> None:
        with mock.patch.object(module, "launch") as launch:
            call()
        (self.kernel, _, *arguments), settings = launch.call_args_list[number]
        names = inspect.signature(self.kernel.fn).parameters
        settings = {name: value for name, value in settings.items() if name in names}
        self.arguments = inspect.getcallargs(self.kernel.fn, *arguments, **settings)

    def run(self, program: int, **replaced: Any) -> None:
        """One program, with some arguments replaced."""
        assert replaced.keys() <= self.arguments.keys()
        builder = interpreter.interpreter_builder

        def of_that_program(*_: int) -> None:
            builder.grid_idx = (program, 0, 0)

        with mock.patch.object(builder, "set_grid_idx", of_that_program):
            self.kernel[(1,)](**{**self.arguments, **replaced})
