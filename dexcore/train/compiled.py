"""How a run's layers run in training: as they are by the kernels that are fast there, or compiled block by block."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch

from dexcore.engine.config import ConfigError
from dexcore.models.objective import Objective
from dexcore.models.precision import compute_dtype
from dexcore.nn import fast_layers
from dexcore.train.config import RunConfig


@contextmanager
def training_layers(
    run: RunConfig, model: Objective, device: torch.device, say: Callable[[str], None]
) -> Iterator[Callable[[], AbstractContextManager[Any]]]:
    """The context to train a run's model in; it gives the one to measure the model in meanwhile, which is not compiled.

    Args:
        run: whether they are compiled.
        model: as its processes hold it; names and numbers stay as they are.
        device: the run's.
        say: takes a message for people.
    """
    if not run.compile:
        # It looks at where parameters are, which may be elsewhere than where they are computed with.
        on_cpu = device.type == "cpu"
        with fast_layers(model, compute_dtype(device, run.precision)) if on_cpu else nullcontext():
            yield nullcontext
        return
    say("the first step compiles the blocks, which takes minutes")
    blocks = model.blocks()
    limit = max(torch._dynamo.config.recompile_limit, 2 * len(blocks))  # all blocks are one function, of many shapes
    for block in blocks:
        block.compile()
    try:
        with torch._dynamo.config.patch(recompile_limit=limit):
            yield partial(torch.compiler.set_stance, "force_eager")
    finally:
        for block in blocks:
            del block._compiled_call_impl


def check_compiler(run: RunConfig, device: torch.device) -> None:
    """Where blocks are to be compiled, compile something small, to miss what is missing before the first step.

    Raises:
        ConfigError: it fails (no C++ compiler, no Triton).
    """
    if not run.compile:
        return
    try:
        torch.compile(torch.sin)(torch.ones(8, device=device))
    except Exception as error:  # of many kinds, most of them private to PyTorch
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(f"run.compile: torch.compile does not work here on {device.type}: {reason}") from error
