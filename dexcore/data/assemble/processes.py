"""Worker processes as an `Executor`, each by a pipe of its own: one that dies costs the task it ran, and nothing else.

Those of `concurrent.futures.ProcessPoolExecutor` share two queues and their locks: one that is killed breaks the pool,
and while another begins or the pool ends may leave it waiting for ever.
"""

import multiprocessing
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import ModuleType
from typing import Any, TypeVar

R = TypeVar("R")

_SECONDS_TO_END = 5.0  # of a process that has no task


class WorkerDied(BrokenExecutor):
    """The process of a task died; the executor goes on with a new one."""


class WorkerProcesses(Executor):
    """Processes that hold what tasks need, and no more of this process.

    A thread of this process serves each. They begin when there is work for them.

    Args:
        most: processes at one time.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._tasks: queue.SimpleQueue[tuple[Future[Any], Any] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._workers: set[BaseProcess] = set()
        self._unfinished = 0  # tasks
        self._lock = threading.Lock()
        self._closed = self._killed = False

    def submit(self, function: Callable[..., R], /, *arguments: Any, **keywords: Any) -> Future[R]:
        """Have a function called in one of the processes; all that it takes and gives is pickled.

        Returns:
            Its result to be; `WorkerDied` where its process dies.
        """
        with self._lock:
            if self._closed:
                raise RuntimeError("cannot submit: the worker processes were ended")
            future: Future[R] = Future()
            self._tasks.put((future, (function, arguments, keywords)))
            self._unfinished += 1
            if len(self._threads) < min(self._unfinished, self._most):
                self._threads.append(threading.Thread(target=self._serve, daemon=True))
                self._threads[-1].start()
            return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the processes when their tasks are done."""
        with self._lock:
            self._closed = True
            if cancel_futures:
                self._cancel()
            for _ in self._threads:
                self._tasks.put(None)
        if wait:
            for thread in self._threads:
                thread.join()

    def kill(self) -> None:
        """End the processes at once, whatever they do."""
        with self._lock:
            self._killed = True
            for worker in self._workers:
                worker.kill()
        self.shutdown(cancel_futures=True)

    def _cancel(self) -> None:
        with suppress(queue.Empty):
            while True:
                task = self._tasks.get_nowait()
                if task is not None:
                    task[0].cancel()
                    self._unfinished -= 1

    def _serve(self) -> None:
        """Give tasks to one process, and to the next when it dies."""
        worker: BaseProcess | None = None
        connection: Connection | None = None
        while (task := self._tasks.get()) is not None:
            future, call = task
            asked = future.set_running_or_notify_cancel()
            done, result = False, None
            if asked:
                try:
                    if connection is None or connection.poll():  # one that waits has nothing to say but its end
                        self._forget(worker, connection)
                        worker, connection = self._start()
                    connection.send(call)
                    done, result = connection.recv()
                except (EOFError, OSError):
                    self._forget(worker, connection)
                    worker = connection = None
                    result = WorkerDied("the process of a task died")
                except BaseException as error:  # what cannot be pickled
                    result = error
            with self._lock:
                self._unfinished -= 1  # before its caller knows, who may have the next task
            if asked:
                future.set_result(result) if done else future.set_exception(result)
            del task, future, call, result
        self._forget(worker, connection)

    def _start(self) -> tuple[BaseProcess, Connection]:
        context = _context()
        ours, theirs = context.Pipe()
        worker = context.Process(target=_work, args=(theirs,), daemon=True)
        with self._lock:
            if self._killed:
                raise EOFError
            with main_hidden():
                worker.start()
            self._workers.add(worker)
        theirs.close()  # so that ours ends with the process
        return worker, ours

    def _forget(self, worker: BaseProcess | None, connection: Connection | None) -> None:
        """See a process to its end, which comes when its connection is closed."""
        if connection is not None:
            connection.close()
        if worker is not None:
            worker.join(_SECONDS_TO_END)
            worker.kill()
            worker.join()
            with self._lock:
                self._workers.discard(worker)


def _context() -> Any:
    # Never fork: this process may have threads and holds the store's lock. A server that has imported all forks fast.
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dexcore.data.assemble.read"])
    return context


_MAIN = threading.Lock()


@contextmanager
def main_hidden() -> Iterator[None]:
    """Have a process that starts inside not run the user's main module, which may lack a guard: none needs it."""
    with _MAIN:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


def _work(connection: Connection) -> None:
    """What a worker process does until its connection is closed."""
    _begin()
    while True:
        try:
            function, arguments, keywords = connection.recv()
        except EOFError:
            return
        except Exception as error:
            connection.send((False, error))
            continue
        try:
            answer = True, function(*arguments, **keywords)
        except BaseException as error:
            error.add_note(f"In a worker process:\n{traceback.format_exc()}")
            answer = False, error
        try:
            connection.send(answer)
        except OSError:  # nobody is there
            return
        except Exception as error:
            connection.send((False, RuntimeError(f"cannot give back the result of {function}: {error}")))
        del function, arguments, keywords, answer


def _begin() -> None:
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
    """A worker whose driver was killed would finish its task, beside those of the next build."""
    parent.join()
    os._exit(1)
