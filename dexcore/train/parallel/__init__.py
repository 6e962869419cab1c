"""How the processes of a run hold its model: each a copy of it (DDP), or shards (FSDP2). The loop calls one object."""

from collections.abc import Callable

import torch

from dexcore.engine.config import check_field
from dexcore.engine.ranks import Ranks
from dexcore.models.objective import Objective
from dexcore.train.config import PretrainConfig
from dexcore.train.parallel.replicated import Replicated
from dexcore.train.parallel.sharded import Sharded

Parallel = Replicated | Sharded


def parallel_of(
    config: PretrainConfig, build: Callable[[bool], Objective], device: torch.device, ranks: Ranks
) -> Parallel:
    """The way that ``config.parallel.kind`` names.

    Args:
        config: of the run.
        build: makes the run's model; given False without the weights of ``model.init``.
        device: where it trains.
        ranks: the processes that share it.

    Raises:
        ConfigError: it does not fit the model or the number of processes.
    """
    alone = ranks.group is None
    check_field(not (alone and config.parallel.offload), "parallel.offload", "false of a process alone", True)
    if config.parallel.kind == "ddp" or alone:  # a process alone holds everything
        return Replicated(build(True).to(device), ranks)
    return Sharded(config.parallel, build, device, ranks)
