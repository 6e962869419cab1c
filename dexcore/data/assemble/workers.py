"""Tasks on worker processes, whatever the files do to them: a file that kills its process costs itself alone."""

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import (
    ALL_COMPLETED,
    FIRST_COMPLETED,
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from dexcore.data.assemble.hand import Death, Hand, read_deaths

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

    A pool of our own is made anew when a process in it dies. What ran then is run again, task by task in a process of
    its own, and a file that is in hand when that dies too is blamed: its task runs once more without it. An executor
    that is given stays the caller's; where it breaks, the work goes on in a pool of our own.

    Args:
        jobs: processes of a pool of our own.
        executor: instead of one.
    """

    def __init__(self, jobs: int, executor: Executor | None = None) -> None:
        self.jobs = jobs
        self._given = executor
        self._pool: Executor | None = None

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

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
        waiting = deque(range(len(tasks)))
        running: dict[Future[R], int] = {}
        blamed: dict[int, dict[int, str]] = {}
        suspected: dict[int, Death | None] = {}
        deaths = 0  # of pools, one after the other, in which nothing was done

        def note(index: int) -> Path:
            return notes / f"in-hand-{index:06d}"

        try:
            while waiting or running:
                broken = False
                while waiting and len(running) < ahead * self.jobs and not broken:
                    index = waiting.popleft()
                    note(index).unlink(missing_ok=True)
                    try:
                        with main_hidden():
                            future = self._executor().submit(
                                _run, function, tasks[index], note(index), blamed.get(index, {}), os.getpid()
                            )
                        running[future] = index
                    except BrokenExecutor:  # a process died since the last look
                        waiting.appendleft(index)
                        broken = True
                # The futures of a broken pool all end with it.
                done = wait(running, return_when=ALL_COMPLETED if broken else FIRST_COMPLETED).done
                dead: list[int] = []
                for future in done:
                    index = running.pop(future)
                    try:
                        result = future.result()
                    except BrokenExecutor:
                        broken = True
                        dead.append(index)
                    except Exception as error:
                        if type(error).__name__ != "KilledWorker":  # dask's, which may not be installed
                            raise
                        self._suspect(index, note(index), suspected, blamed.setdefault(index, {}))
                        waiting.append(index)
                    else:
                        deaths = 0
                        note(index).unlink(missing_ok=True)
                        yield index, result
                if broken:
                    for future in wait(running).done:
                        index = running.pop(future)
                        if future.exception() is None:
                            note(index).unlink(missing_ok=True)
                            yield index, future.result()
                        else:
                            dead.append(index)
                    self._renew()
                    begun = [index for index in sorted(dead) if note(index).exists()]
                    deaths = 0 if begun else deaths + 1
                    if deaths == _MOST_DEATHS:
                        raise WorkersError(_NO_FILE)
                    waiting.extendleft(sorted(set(dead) - set(begun), reverse=True))
                    for index in begun:
                        yield index, self._alone(function, tasks[index], note(index), blamed.setdefault(index, {}))
        finally:
            for future in running:
                future.cancel()

    @staticmethod
    def _suspect(index: int, note: Path, suspected: dict[int, Death | None], blamed: dict[int, str]) -> None:
        """Of a task that killed workers of a cluster: blame the file in hand if it is the same a second time."""
        deaths, before = read_deaths(note), suspected.get(index)
        death = deaths[-1] if deaths else None
        if death is not None and before is not None and death.index == before.index:
            blamed[death.index] = death.reason
        elif index in suspected and death is None:
            raise WorkersError(_NO_FILE)
        suspected[index] = death

    def _executor(self) -> Executor:
        if self._given is not None:
            return self._given
        if self._pool is None:
            self._pool = worker_pool(self.jobs)
        return self._pool

    def _renew(self) -> None:
        self._given = None
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def _alone(self, function: Callable[[T, Hand], R], task: T, note: Path, blamed: dict[int, str]) -> R:
        """Run a task in a process of its own, again without each file that kills it."""
        deaths = 0
        while True:
            note.unlink(missing_ok=True)
            pool = worker_pool(1)
            try:
                with main_hidden():
                    future = pool.submit(_run, function, task, note, blamed, os.getpid())
                result = future.result()
                note.unlink(missing_ok=True)
                return result
            except BrokenExecutor as error:
                deaths_told = read_deaths(note)
                if deaths_told and deaths_told[-1].index not in blamed:
                    blamed[deaths_told[-1].index] = deaths_told[-1].reason
                    continue
                deaths += 1
                if deaths == _MOST_DEATHS:
                    raise WorkersError(_NO_FILE) from error
            finally:
                pool.shutdown(wait=True, cancel_futures=True)


def worker_pool(jobs: int) -> ProcessPoolExecutor:
    """Worker processes that hold what tasks need, and no more of this process."""
    # Never fork: this process may have threads and holds the store's lock. A server that has imported all forks fast.
    if "forkserver" in multiprocessing.get_all_start_methods():
        context: Any = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["dexcore.data.assemble.read"])
    else:
        context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin)


@contextmanager
def main_hidden() -> Iterator[None]:
    """Have processes that are started inside not run the user's main module, which may lack a guard: none needs it."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _begin() -> None:
    """What a worker process of our own does first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver ends it
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    # Decoders' own warnings would tear the line of progress, and some of them repeat headers.
    sys.stdout.flush()
    sys.stderr.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)
    with suppress(ImportError):
        import cv2

        cv2.setNumThreads(1)  # there is a process for every core


def _end_with(parent: Any) -> None:
    """A worker whose driver was killed would wait for work for ever."""
    parent.join()
    os._exit(1)


def _run(function: Callable[[T, Hand], R], task: T, note: Path, blamed: dict[int, str], driver: int) -> R:
    hand = Hand(note, blamed, driver)
    try:
        return function(task, hand)
    finally:
        hand.close()
