"""Leaving on request: a signal lets the step in hand end and be saved; where there is no step, it ends the run at once.

Slurm, Docker, Kubernetes and ``timeout`` may send it to the whole process group: to the ranks, their data workers and
torchrun. Data workers leave it to the process that trains, which still needs their batches.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

# What a process returns that was stopped by a signal and can be gone on with (EX_TEMPFAIL of sysexits.h), before the
# first step too: whoever goes on then begins.
EXIT_STOPPED = 75

_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)]


class Stopped(BaseException):
    """Raised by a signal where no step is under way; no library's ``except Exception`` holds it up."""


class StopRequest:
    """While entered, SIGTERM, SIGINT (Ctrl-C) and SIGUSR1 only set `signal_name`; a second Ctrl-C interrupts.

    Outside the main thread, where Python allows no handlers, it never asks to stop.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self._raises = False
        self._before: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return self.signal_name is not None

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def at_once(self, here: bool = True) -> Iterator[None]:
        """A part of the run with no step to end: a signal, in it or before it, raises `Stopped`.

        Args:
            here: False leaves it at the flag, for ranks that wait for the main one.
        """
        if here and self:
            raise Stopped
        self._raises = here
        try:
            yield
        finally:
            self._raises = False

    def ignore_further(self) -> None:
        """Give signals no effect from here to the process's end.

        For one of several ranks that have saved: as soon as one has left, torchrun terminates the rest.
        """
        self._before = dict.fromkeys(self._before, signal.SIG_IGN)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal_name == "SIGINT":
            raise KeyboardInterrupt
        self.signal_name = signal.Signals(number).name
        if self._raises:
            self._raises = False  # what cleans up is not stopped again
            raise Stopped


@contextmanager
def signals_held_back() -> Iterator[None]:
    """Have stop signals wait: data workers that are started inside begin with them held back, whenever they come."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_signals_to_parent(worker: int) -> None:
    """For data workers: a signal to the whole process group is the training process's to answer.

    SIGTERM from that process still ends the worker, which is how PyTorch gets rid of one that hangs, and so does any
    SIGTERM once that process is gone. (A worker of a process that was killed notices by itself in some seconds.)
    """
    for number in _SIGNALS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
        return
    # macOS tells nobody who sent a signal. The second one counts: PyTorch's, or multiprocessing's at the exit.
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])


def _end_with_parent(parent: int) -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent and os.getppid() == parent:
        pass
    os._exit(0)
