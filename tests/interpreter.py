"""Where Triton's interpreter cannot run, what needs it is skipped by name: Triton 3.6 with NumPy 2.4 or later."""

import os

import pytest


def obstacle() -> str:
    """Why the interpreter cannot run a loop, the first thing that a pair of versions breaks; empty where it can."""
    # Here, since conftest.py has yet to say whether Triton interprets when it imports this module.
    import numpy as np
    import torch
    import triton
    import triton.language as tl

    @triton.jit
    def _loop_kernel(out_ptr, count):
        for index in range(0, count):
            tl.store(out_ptr + index, index)

    try:
        _loop_kernel[(1,)](torch.zeros(2), 2)
    except Exception as error:  # the interpreter wraps what it meets
        return f"Triton {triton.__version__}'s interpreter does not run with NumPy {np.__version__} ({error})"
    return ""


@pytest.fixture(autouse=True, scope="session")
def _skip_what_cannot_be_interpreted():
    if os.environ.get("TRITON_INTERPRET") != "1" or not (reason := obstacle()):
        yield
        return
    from triton.runtime.interpreter import GridExecutor

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GridExecutor, "__call__", lambda *_, **__: pytest.skip(reason))
        yield
