"""A copy of the model in every process: DDP, or a process alone."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from dexcore.engine.checkpoint import Progress, load_checkpoint
from dexcore.engine.ranks import Ranks
from dexcore.models.objective import Objective


class Replicated:
    """Holds the whole model.

    Args:
        model: on its device.
        ranks: the processes that share every batch.

    Attributes:
        model: the same.
        wrapped: to call in training: its backward adds up the ranks' gradients.
        in_shards: whether a process holds a part of the model alone.
    """

    in_shards = False

    def __init__(self, model: Objective, ranks: Ranks) -> None:
        self.model, self.ranks = model, ranks
        self.wrapped: torch.nn.Module = model
        if ranks.group is not None:
            # Every trained parameter has a gradient in every step (experts without images: zeros), and directors
            # need none: no unused parameter to search for. Buffers change alike on all ranks: none to broadcast.
            self.wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True)
            self.wrapped.broadcast_buffers = False  # as an argument it is deprecated, its successor is too young

    def backward_of(self, last: bool) -> AbstractContextManager[None]:
        """The context of a part's forward and backward: gradients are added up over ranks in the ``last`` part's."""
        if last or not isinstance(self.wrapped, DistributedDataParallel):
            return nullcontext()
        return self.wrapped.no_sync()

    def norm(self, own: Tensor, squares: Tensor) -> Tensor:
        """The norm of the whole gradient, 0-dim, of this process's own and of the sum over all of their squares."""
        return own

    def whole(self, main_only: bool = True) -> Objective:
        """The whole model, to be measured or saved; all ranks call it."""
        return self.model

    def load(
        self, folder: Path, optimizer: torch.optim.Optimizer, wanted: Callable[[Progress], bool] = lambda _: True
    ) -> Progress | None:
        """`load_checkpoint` into model and optimizer."""
        return load_checkpoint(folder, self.model, optimizer, self.ranks.say, self.ranks, wanted)
