"""AdamW with a running average of the weights (Polyak; timm's ``model_ema``)."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from dexcore.shards import own_share

_AVERAGE = "average"


class AveragedAdamW(torch.optim.AdamW):
    """`torch.optim.AdamW`, which keeps the average among its moments: checkpoints and shards treat it as one of them.

    average = d * average + (1 - d) * weight after step t (from 1), d = min(``decay``, (1 + t) / (10 + t)): the first
    weights, which are drawn, are forgotten early. A step that is not taken leaves it as it is.

    Args:
        groups: as `torch.optim.AdamW`'s ``params``; so are ``settings``.
        decay: d in the end, below 1; 0: no average, and no memory for one.
    """

    def __init__(self, groups: Iterable[Any], decay: float, **settings: Any) -> None:
        super().__init__(groups, **settings)
        self.decay = decay

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Change the weights, then their average."""
        loss = super().step(closure)
        if not self.decay:
            return loss
        for parameter, state in self.state.items():
            if _AVERAGE not in state:
                state[_AVERAGE] = parameter.detach().clone()
        pairs = self._pairs()
        if pairs:
            weights, averages = map(list, zip(*pairs, strict=True))
            steps = next(iter(self.state.values()))["step"]  # a tensor on the device: no word from it is waited for
            decay = ((1 + steps) / (10 + steps)).clamp(max=self.decay)
            torch._foreach_sub_(averages, weights)
            torch._foreach_mul_(averages, decay)
            torch._foreach_add_(averages, weights)
        return loss

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The parameters hold their averages inside, and what they held before afterwards."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for weight, average in self._pairs():
            weight_before = weight.clone()
            weight.copy_(average)
            average.copy_(weight_before)

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Every weight and its average; of shards this process's."""
        kept = [(parameter, state[_AVERAGE]) for parameter, state in self.state.items() if _AVERAGE in state]
        return [(own_share(parameter.detach()), own_share(average)) for parameter, average in kept]
