"""Tasks on worker processes, whatever the files do to them: a file that kills its process costs itself alone."""

import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from pathlib import Path
from typing import Any, TypeVar

from dexcore.data.assemble.hand import Hand, read_deaths
from dexcore.data.assemble.processes import WorkerProcesses

T = TypeVar("T")
R = TypeVar("R")

_MOST_DEATHS = 3  # of a task whose process died with no file in hand
_NO_FILE = (
    "worker processes die though they have no file in hand; is there too little memory? Call it again, with fewer "
    "--jobs: it goes on where it was"
)


class WorkersError(RuntimeError):
    """Worker processes die of something that is no file."""


class Workers:
    """Worker processes of our own, or any `concurrent.futures.Executor`.

    A task whose process dies is run again, with the note of what it had in hand: `Hand` leaves a file alone that was in
    hand at two deaths. An executor that is given stays the caller's; where it breaks, the work goes on in processes of
    our own.

    Args:
        jobs: processes of our own.
        executor: instead of them.
    """

    def __init__(self, jobs: int, executor: Executor | None = None) -> None:
        self.jobs = jobs
        self._given = executor
        self._own: WorkerProcesses | None = None

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        if self._own is not None:
            self._own.kill()  # what a task writes is whole or not there
            self._own = None

    def run(
        self, function: Callable[[T, Hand], R], tasks: Sequence[T], notes: Path, ahead: int = 4
    ) -> Iterator[tuple[int, R]]:
        """Run ``function(task, hand)`` for all tasks.

        Args:
            function: of a module; it must not raise for what files do.
            tasks: they and the results are pickled.
            notes: a folder for the notes of `Hand`, on a disk that all workers share.
            ahead: tasks that are given out for each process.

        Yields:
            A task's place and its result, as they end.

        Raises:
            WorkersError: processes die again and again, and no file is to blame.
            Exception: what ``function`` raised.
        """
        new, again = iter(range(len(tasks))), deque[int]()
        running: dict[Future[R], int] = {}
        told: Counter[int] = Counter()  # deaths in a task's note
        without_file: Counter[int] = Counter()  # deaths of which its note knows nothing

        def note(index: int) -> Path:
            return notes / f"in-hand-{index:06d}"

        def give(index: int) -> None:
            running[self._submit(_run, function, tasks[index], note(index), os.getpid())] = index

        try:
            while True:
                while again and len(running) < ahead * self.jobs:
                    give(again.popleft())
                while len(running) < ahead * self.jobs and (index := next(new, None)) is not None:
                    note(index).unlink(missing_ok=True)
                    give(index)
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    index = running.pop(future)
                    try:
                        result = future.result()
                    except Exception as error:
                        if not _tells_of_a_death(error):
                            raise
                        if isinstance(error, BrokenExecutor):
                            self._given = None
                        before, told[index] = told[index], len(read_deaths(note(index)))
                        if told[index] == before:
                            without_file[index] += 1
                            if without_file[index] == _MOST_DEATHS:
                                raise WorkersError(_NO_FILE) from error
                        again.append(index)
                    else:
                        note(index).unlink(missing_ok=True)
                        yield index, result
        finally:
            for future in running:
                future.cancel()

    def _submit(self, *call: Any) -> Future[Any]:
        if self._given is not None:
            try:
                return self._given.submit(*call)
            except BrokenExecutor:
                self._given = None
        if self._own is None:
            self._own = WorkerProcesses(self.jobs)
        return self._own.submit(*call)


def _tells_of_a_death(error: Exception) -> bool:
    # The last is Dask's, which may not be installed: a task's workers died several times.
    return isinstance(error, BrokenExecutor) or type(error).__name__ == "KilledWorker"


def _run(function: Callable[[T, Hand], R], task: T, note: Path, driver: int) -> R:
    hand = Hand(note, driver)
    try:
        return function(task, hand)
    finally:
        hand.close()
