"""Processes that share work: each does its part, all know of a failure, and they leave together."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import numpy as np
import torch.distributed as dist

from dexcore.evaluate.embedding.table import FeaturesError
from dexcore.nn.processes import process_group

_PATIENCE = timedelta(hours=24)  # processes have unequal images


class Together:
    """The processes that share the work: each does its part, and none goes on where one failed."""

    def __enter__(self) -> "Together":
        shared = process_group(None) if dist.is_available() else None
        self._group: Any = None if shared is None else dist.new_group(backend="gloo", timeout=_PATIENCE)
        self.rank, self.count = (0, 1) if shared is None else (dist.get_rank(), dist.get_world_size())
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._group is not None:
            if kind is None:
                dist.barrier(self._group)  # gloo may abort a process that another one leaves
            dist.destroy_process_group(self._group)

    @property
    def main(self) -> bool:
        return self.rank == 0

    def share(self, numbers: list[int]) -> list[int]:
        """This process's part: each number is in one part, neighbors in the same, since slices share a file."""
        return [int(number) for number in np.array_split(np.array(numbers, np.int64), self.count)[self.rank]]

    def told(self, do: Callable[[], Any]) -> Any:
        """What ``do`` gives on the main process, on all."""
        return self._all(do if self.main else lambda: None)[0]

    def same(self, what: str, do: Callable[[], Any]) -> Any:
        """What ``do`` gives, which must be the same on every process."""
        made = self._all(do)
        if (other := next((rank for rank, one in enumerate(made) if one != made[0]), 0)) != 0:
            raise FeaturesError(
                f"processes 0 and {other} were given different {what}, but share one cache: expected one"
            )
        return made[0]

    def done(self, do: Callable[[], Any]) -> None:
        """Have every process ``do`` something, and wait for all."""
        self._all(do)

    def _all(self, do: Callable[[], Any]) -> list[Any]:
        if self._group is None:
            return [do()]
        answer: tuple[str, Any] = ("", None)
        own: Exception | None = None
        try:
            answer = ("", do())
        except Exception as error:
            own, answer = error, (f"{type(error).__name__}: {error}", None)
        answers: list[Any] = [None] * self.count
        dist.all_gather_object(answers, answer, group=self._group)
        if any(failure for failure, _ in answers):
            dist.barrier(self._group)  # as in `__exit__`: all of them leave now
        if own is not None:
            raise own
        for rank, (failure, _) in enumerate(answers):
            if failure:
                raise FeaturesError(f"process {rank} failed: {failure}")
        return [result for _, result in answers]
