"""What a run tells while it goes on: a line a step in files, and the display. The main rank's alone."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from dexcore.engine.folder import LineFile
from dexcore.engine.progress import ProgressDisplay
from dexcore.engine.ranks import Ranks
from dexcore.evaluate.similarity import Alignment
from dexcore.report.files import METRICS_FILE, SIMILARITY_FILE, SKIPPED_FILE
from dexcore.train.config import PretrainConfig
from dexcore.train.run.sinks import Sinks


class Journal:
    """A context to write steps in; on other ranks than the main one it does nothing.

    Args:
        folder: of the run.
        first_step: steps done; lines of later ones, of a run that was killed, are cut off, and so is what was measured
            after this step or later ones.
        total_steps: of the run.
        ranks: who train.
        beside: names of the files of what is measured meanwhile.
        config: the run, for its sinks.
    """

    def __init__(
        self,
        folder: Path,
        first_step: int,
        total_steps: int,
        ranks: Ranks,
        config: PretrainConfig,
        beside: Sequence[str] = (),
    ) -> None:
        self._writes = ranks.main
        self.skipped_path = folder / SKIPPED_FILE
        if not self._writes:
            return
        with ExitStack() as opened:
            self._metrics = opened.enter_context(closing(LineFile(folder / METRICS_FILE, first_step)))
            self._beside = {
                name: opened.enter_context(closing(LineFile(folder / name, first_step)))
                for name in (SIMILARITY_FILE, *beside)
            }
            self._skipped = opened.enter_context(closing(LineFile(self.skipped_path, first_step)))
            self._display = opened.enter_context(closing(ProgressDisplay(first_step, total_steps)))
            self._sinks = opened.enter_context(closing(Sinks(config, folder, first_step, self._display.say)))
            self._opened = opened.pop_all()

    def write(self, line: Mapping[str, Any], skipped_ids: list[int] | None) -> None:
        """Write and show a step.

        Args:
            line: the step's, in metrics.jsonl.
            skipped_ids: the sample ids of a step that was skipped, of all ranks; else None.
        """
        if not self._writes:
            return
        self._metrics.write(line)
        self._sinks.write(line["step"], line)
        if skipped_ids is not None:
            self._skipped.write({"step": line["step"], "sample_ids": skipped_ids})
            self._display.say(f"step {line['step']} skipped: loss or gradient is not finite ({self.skipped_path})")
        self._display.update(line["step"] + 1, line["loss"], line["images_per_second"])

    def write_similarity(self, steps_done: int, blocks: Sequence[np.ndarray], aligned: Alignment) -> None:
        """Write how alike the experts of each block are, and how far from the director, after so many steps."""
        if self._writes:
            alike = [np.round(block, 6).tolist() for block in blocks]
            self.write_beside(SIMILARITY_FILE, {"step": steps_done, "blocks": alike, "align": asdict(aligned)})

    def write_beside(self, name: str, line: Mapping[str, Any]) -> None:
        """Write what was measured into one of the files beside."""
        if self._writes:
            self._beside[name].write(line)
            self._sinks.write(line["step"], line, f"{name.removesuffix('.jsonl')}/")

    def sync(self) -> None:
        """Have what was written survive a power cut."""
        if self._writes:
            for file in (self._metrics, self._skipped, *self._beside.values()):
                file.sync()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writes:
            self._opened.close()
