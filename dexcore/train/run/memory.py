"""What is told, and written, where a run's memory does not suffice."""

from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import torch

from dexcore.engine.config import check_field
from dexcore.engine.memory import NotEnoughMemoryError, is_lack_of_memory, memory_in_words
from dexcore.engine.ranks import Ranks
from dexcore.train.config import RunConfig
from dexcore.train.run.profile import PROFILE_FOLDER, write_snapshot

LESS_MEMORY = (
    "have fewer images computed at once (--data.accumulate), activations computed again (--model.grad-checkpointing "
    "selective or block), the model in shards (--parallel.kind fsdp, on several devices; with --parallel.offload in "
    "host memory), no copy for checkpoints in host memory (--run.no-checkpoint-async), or a smaller model"
)
_MOST_EVENTS = 100_000  # the newest are kept


class MemoryWatch:
    """A context to train in, whose error for lack of memory says which rank lacks it, when, and what takes less.

    With ``run.memory_snapshot`` it has PyTorch record what is allocated where, and writes that then.

    Args:
        run: whether it is recorded.
        folder: of the run: ``profile/memory-rank-N.pickle`` is written.
        ranks: who train.
        device: the run's.
        steps_done: how many are done now.

    Raises:
        ConfigError: memory is to be recorded elsewhere than on a GPU.
        NotEnoughMemoryError: it does not suffice, inside.
    """

    def __init__(
        self, run: RunConfig, folder: Path, ranks: Ranks, device: torch.device, steps_done: Callable[[], int]
    ) -> None:
        self._recorded, self._ranks, self._device, self._steps_done = run.memory_snapshot, ranks, device, steps_done
        self._path = folder / PROFILE_FOLDER / f"memory-rank-{ranks.rank}.pickle"
        on_gpu = device.type == "cuda" or not self._recorded
        check_field(on_gpu, "run.memory_snapshot", f"false on {device.type}: PyTorch records that of CUDA", True)

    def __enter__(self) -> "MemoryWatch":
        if self._recorded:
            torch.cuda.memory._record_memory_history(max_entries=_MOST_EVENTS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        told = self._told(error) if error is not None and is_lack_of_memory(error) else ""
        if self._recorded:
            torch.cuda.memory._record_memory_history(enabled=None)
        if told:
            raise NotEnoughMemoryError(told) from error

    def _told(self, error: BaseException) -> str:
        reason = str(error).strip().partition("\n")[0]
        written = write_snapshot(self._path) if self._recorded else ""
        return (
            f"rank {self._ranks.rank} has no memory left on {self._device} in step {self._steps_done()}: "
            f"{memory_in_words(self._device)} ({reason}); {LESS_MEMORY}{written and f'. {written}'}"
        )
