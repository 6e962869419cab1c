"""Leaving on request: a signal sets a flag, the loop finishes its step, saves and leaves."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

# What a process returns that was stopped by a signal, saved, and can be resumed (EX_TEMPFAIL of sysexits.h).
EXIT_STOPPED = 75

_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)]


class StopRequest:
    """While entered, SIGTERM, SIGINT (Ctrl-C) and SIGUSR1 only set `signal_name`; a second Ctrl-C interrupts.

    Outside the main thread, where Python allows no handlers, it never asks to stop.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None
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

    def ignore_further(self) -> None:
        """Give signals no effect from here to the process's end.

        For one of several ranks that have saved: as soon as one has left, torchrun terminates the rest.
        """
        self._before = dict.fromkeys(self._before, signal.SIG_IGN)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal_name == "SIGINT":
            raise KeyboardInterrupt
        self.signal_name = signal.Signals(number).name


def leave_signals_to_parent(worker: int) -> None:
    """For data workers: a signal to the whole process group is the training process's to answer."""
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
