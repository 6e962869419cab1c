"""Which file a worker has in hand, so that a file that kills its worker is known; and the end of those that hang."""

import faulthandler
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

HEADER_SECONDS = 5.0  # for a small file
_SECONDS_PER_MIB = 4.0  # compressed: a MiB may hold a hundred of pixels
_FIRST_SECONDS = 25.0  # a process's first file also waits for the imports of its libraries


class Hand:
    """Notes the file that a task has in hand, and ends the process when it takes too long.

    Args:
        note: a file for the note; it stays when the process dies.
        blamed: files that killed their process before, by their places in the task, with the reason.
        driver: the process that gave the task out, which is never ended.
    """

    def __init__(self, note: Path | None, blamed: Mapping[int, str], driver: int) -> None:
        self._note = note
        self._blamed = blamed
        self._ends = os.getpid() != driver
        self._first = True
        self._seconds = HEADER_SECONDS

    def take(self, index: int, size: int) -> str | None:
        """Begin a file; the reason if it is to be left alone."""
        if index in self._blamed:
            return self._blamed[index]
        self._seconds = seconds = time_limit(size)
        if self._note is not None:
            self._note.write_text(f"{index} {seconds} {time.time()}", encoding="ascii")
        if self._ends:
            self._arm(seconds + self._first * _FIRST_SECONDS)
        self._first = False
        return None

    def again(self) -> None:
        """Go on with the file in hand, after `drop`."""
        if self._ends:
            self._arm(self._seconds)

    @staticmethod
    def _arm(seconds: float) -> None:
        # From a thread of C: a decoder that hangs may hold the interpreter's lock.
        faulthandler.dump_traceback_later(seconds, exit=True, file=_nowhere())

    def drop(self) -> None:
        """The decoder's work is done; what follows is ours, and takes what it takes."""
        if self._ends:
            faulthandler.cancel_dump_traceback_later()


@cache
def _nowhere() -> IO[str]:
    return open(os.devnull, "w")


@dataclass(frozen=True)
class Death:
    """What a note says of the process that died: the file's place in the task, and why."""

    index: int
    reason: str


def read_note(note: Path) -> Death | None:
    """Read what a process that died had in hand; None if it had begun no file."""
    try:
        index, seconds, began = note.read_text(encoding="ascii").split()
        hung = time.time() - float(began) >= float(seconds)
    except (OSError, ValueError):
        return None
    problem = f"its decoder hung for more than {float(seconds):.0f} s" if hung else "its decoder crashed its process"
    return Death(int(index), f"unreadable: {problem}")


def time_limit(size: int) -> float:
    """Seconds for a file of so many bytes."""
    return HEADER_SECONDS + _SECONDS_PER_MIB * size / (1 << 20)
