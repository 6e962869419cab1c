"""Checkpoints that are written while training goes on."""

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from dexcore.engine.checkpoint import Progress, State, state_of, write_checkpoint
from dexcore.engine.ranks import ALONE, Ranks
from dexcore.host import free_memory
from dexcore.shards import own_share

_PATIENCE = timedelta(hours=2)  # with the slowest disk; who is lost without a word is missed then
_SHARE = 0.5  # of the free memory: where data workers are killed for the rest, the run ends


class CheckpointWriter:
    """A context in which a thread writes one checkpoint at a time, from a copy in the host's memory.

    At its end the one in flight is waited for. All ranks enter together.

    Args:
        folder: of the run's checkpoints.
        keep: how many of the newest stay, at least 1.
        ranks: who train.
        together: every rank writes its shards; else the main one writes all.
        background: False: training waits for every checkpoint.
    """

    def __init__(self, folder: Path, keep: int, ranks: Ranks, together: bool, background: bool) -> None:
        self._folder, self._keep, self._ranks = folder, keep, ranks
        self._together, self._background = together, background
        self._writes = together or ranks.main
        self._writing: Future[Any] | None = None
        self._told = False

    def __enter__(self) -> "CheckpointWriter":
        with ExitStack() as opened:
            # A group of the thread's own: two threads in one would take each other's messages.
            self._ranks = opened.enter_context(self._ranks.patient(_PATIENCE))
            self._thread = opened.enter_context(ThreadPoolExecutor(1, "checkpoint"))
            self._opened = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()

    @property
    def failed(self) -> bool:
        """Whether the checkpoint in flight could not be written; `save` and `wait` raise why."""
        return self._writing is not None and self._writing.done() and self._writing.exception() is not None

    def save(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, progress: Progress, last: bool = False
    ) -> None:
        """Have a checkpoint written after the one before; all ranks call it.

        Args:
            model: its parameters and buffers are stored, as they are now.
            optimizer: its tensors are stored.
            progress: names the checkpoint.
            last: training has nothing to do meanwhile: no copy is made, and the checkpoint is there when this returns.

        Raises:
            CheckpointError: this one, or the one before, cannot be written. The older ones are untouched.
            MainRankError: so it was on the main rank.
        """
        self.wait()
        state = state_of(model, optimizer) if self._writes else {}
        behind = self._background and not last and self._has_room(state)
        if behind:
            state = _copy(state)
        self._writing = self._thread.submit(self._write, state, progress)
        if not behind:
            self.wait()

    def wait(self) -> None:
        """Until the checkpoint in flight, if there is one, is on the disk; all ranks call it. Raises as `save` does."""
        writing, self._writing = self._writing, None
        if writing is None:
            return
        if self._together:
            writing.result()  # `write_checkpoint` fails on all ranks or on none
        else:
            self._ranks.on_main(writing.result)

    def _write(self, state: State, progress: Progress) -> None:
        if self._writes:
            ranks = self._ranks if self._together else ALONE
            write_checkpoint(self._folder, state, progress, self._keep, ranks)

    def _has_room(self, state: State) -> bool:
        """Whether on every machine there is memory for the copies of its ranks."""
        needed = sum(own_share(tensor).nbytes for tensors in state.values() for tensor in tensors.values())
        free = free_memory() // (self._ranks.local_count if self._together else 1)
        room = all(self._ranks.merge({str(self._ranks.rank): needed <= _SHARE * free}).values())
        if not room and not self._told:
            self._told = True
            self._ranks.say(
                f"training waits while a checkpoint is written: a copy of it ({needed / 1e6:,.1f} MB a process) would "
                f"take more than half of the memory that is free ({free / 1e6:,.1f} MB a process)"
            )
        return room


def _copy(state: State) -> State:
    return {
        part: {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
        for part, tensors in state.items()
    }
