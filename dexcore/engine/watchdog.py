"""The end of a run that hangs: after a stated time without a step every process writes its stacks, and all leave."""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from dexcore.engine.ranks import Ranks

STUCK_FOLDER = "stuck"
EXIT_STUCK = 1
_TICK_SECONDS = 0.5
_TOGETHER_SECONDS = 5.0  # the other ranks, which waited as long, write theirs meanwhile


class Watchdog:
    """A context in which `beat` must be called again and again; else this process ends.

    Time in which the process was suspended does not count. Where a library hangs that holds the interpreter's lock,
    no thread of Python runs, and the other ranks end the run.

    Args:
        seconds: the longest time between two beats; 0: any.
        folder: of the run: ``stuck/rank-N.txt`` gets the stacks of all threads of rank N.
        ranks: who train; each has a watchdog of its own.
        field: what users know the seconds as.
    """

    def __init__(self, seconds: float, folder: Path, ranks: Ranks, field: str) -> None:
        self._seconds, self._ranks, self._field = seconds, ranks, field
        self._path = folder / STUCK_FOLDER / f"rank-{ranks.rank}.txt"
        self._steps, self._waited, self._pauses = 0, 0.0, 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        if self._seconds:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()  # no thread is left to the interpreter's end

    def beat(self, steps_done: int) -> None:
        """So many steps are done."""
        self._steps, self._waited = steps_done, 0.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What may take hours is done inside."""
        self._pauses += 1
        try:
            yield
        finally:
            self._waited = 0.0
            self._pauses -= 1

    def _watch(self) -> None:
        before = time.monotonic()
        while not self._ended.wait(_TICK_SECONDS):
            before, passed = time.monotonic(), time.monotonic() - before
            if not self._pauses:
                self._waited += min(passed, 2 * _TICK_SECONDS)  # more: the process was suspended
            if self._waited >= self._seconds:
                self._end()

    def _end(self) -> None:
        told = (
            f"rank {self._ranks.rank}: no step within {self._seconds:g} s ({self._field}) after step {self._steps}: "
            f"this run hangs and ends. Where each thread is: {self._path}. Of several ranks the one that waits for no "
            "other is to blame; the run can go on from its newest checkpoint"
        )
        try:
            self._path.parent.mkdir(exist_ok=True)
            with open(self._path, "w", encoding="utf-8") as file:
                file.write(f"{told}\n\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError as error:
            told += f" ({self._path} cannot be written: {error})"
            faulthandler.dump_traceback(all_threads=True)
        print(told, file=sys.stderr, flush=True)
        if self._ranks.count > 1:
            time.sleep(_TOGETHER_SECONDS)
        os._exit(EXIT_STUCK)
