"""A trace of some steps of a run, for chrome://tracing or Perfetto."""

from pathlib import Path
from typing import Any

import torch

from dexcore.engine.config import ConfigError
from dexcore.engine.ranks import Ranks
from dexcore.train.config import PretrainConfig

PROFILE_FOLDER = "profile"


def write_snapshot(path: Path) -> str:
    """Write what PyTorch recorded of a GPU's memory, for pytorch.org/memory_viz; a sentence about it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.cuda.memory._dump_snapshot(str(path))
    except (OSError, RuntimeError) as error:  # a full disk ends no run
        return f"run.memory_snapshot: {path} cannot be written: {error}"
    return f"What was allocated where: {path}"


class ProfileWindow:
    """The steps of ``run.profile``, traced on every rank; none where it is empty.

    Args:
        config: the run.
        total_steps: of the run.
        folder: of the run: ``profile/steps-FIRST-LAST-rank-N.json`` is written, and with ``run.memory_snapshot`` a
            ``.pickle`` of a GPU's memory.
        ranks: who train.

    Raises:
        ConfigError: the window ends after the run.
    """

    def __init__(self, config: PretrainConfig, total_steps: int, folder: Path, ranks: Ranks) -> None:
        self._first, self._end = config.run.profile_steps
        if self._end > total_steps:
            raise ConfigError(
                f"run.profile: expected steps of this run, 0:{total_steps} at most, got {config.run.profile}"
            )
        self._path = folder / PROFILE_FOLDER / f"steps-{self._first}-{self._end}-rank-{ranks.rank}.json"
        self._ranks, self._recorded = ranks, config.run.memory_snapshot
        self._profiler: Any = None

    def begin(self, step: int) -> None:
        """Trace from here on, where ``step``, which comes next, is the window's first."""
        if step == self._first and step < self._end:
            activities = [torch.profiler.ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            self._profiler = torch.profiler.profile(activities=activities, record_shapes=True)
            self._profiler.start()

    def end(self, steps_done: int, stopping: bool = False) -> None:
        """Write the trace, where the window's last step is done or the run stops within."""
        if self._profiler is None or (steps_done < self._end and not stopping):
            return
        self._profiler.stop()
        try:
            self._path.parent.mkdir(exist_ok=True)
            self._profiler.export_chrome_trace(str(self._path))
            self._ranks.say(f"the trace of steps {self._first} to {steps_done - 1}: {self._path.parent}")
        except (OSError, RuntimeError) as error:  # a full disk ends no run
            self._ranks.say(f"run.profile: {self._path} cannot be written: {error}")
        if self._recorded:
            self._ranks.say(write_snapshot(self._path.with_suffix(".pickle")))
        self._profiler = None
