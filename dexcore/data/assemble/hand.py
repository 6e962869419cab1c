"""Which file a worker has in hand, so that a file that kills its worker is known; and the end of those that hang."""

import faulthandler
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO

HEADER_SECONDS = 5.0  # for a small file
_SECONDS_PER_MIB = 4.0  # compressed: a MiB may hold a hundred of pixels
_DEATHS_TO_BLAME = 2  # the first may have been another's
_FIRST_SECONDS = 25.0  # a process's first file also waits for the imports of its libraries


class Hand:
    """Notes the file that a task has in hand, and ends the process when it takes too long.

    A task that is begun again with its old note knows what it died of, and leaves a file alone that killed it twice.

    Args:
        note: a file for the note; it stays when the process dies.
        driver: the process that gave the task out, which is never ended.
    """

    def __init__(self, note: Path | None, driver: int) -> None:
        self._note = note
        self._deaths = read_deaths(note) if note is not None else []
        self._ends = os.getpid() != driver
        self._dump: IO[str] | None = None
        self._first = True
        self._seconds = HEADER_SECONDS

    def take(self, index: int, size: int) -> str | None:
        """Begin a file; the reason if it is to be left alone."""
        here = [death.reason for death in self._deaths if death.index == index]
        if len(here) >= _DEATHS_TO_BLAME:
            return here[-1]
        self._seconds = seconds = time_limit(size)
        if self._note is not None:
            lines = [f"died {death.index} {death.reason}" for death in self._deaths]
            self._note.write_text("\n".join([*lines, f"hand {index} {seconds}"]), encoding="ascii")
        if self._ends:
            self._arm(seconds + self._first * _FIRST_SECONDS)
        self._first = False
        return None

    def again(self) -> None:
        """Go on with the file in hand, after `drop`."""
        if self._ends:
            self._arm(self._seconds)

    def close(self) -> None:
        """The task is done, well or not: nothing ends this process any more."""
        self.drop()
        if self._dump is not None:
            self._dump.close()
            if self._note is not None:
                _dump_of(self._note).unlink(missing_ok=True)
            self._dump = None

    def _arm(self, seconds: float) -> None:
        # From a thread of C: a decoder that hangs may hold the interpreter's lock. What it writes tells a hang from a
        # crash; the file stays open as long as it may be written to.
        if self._dump is None:
            self._dump = open(_dump_of(self._note) if self._note else os.devnull, "w")  # noqa: SIM115
        faulthandler.dump_traceback_later(seconds, exit=True, file=self._dump)

    def drop(self) -> None:
        """The decoder's work is done; what follows is ours, and takes what it takes."""
        if self._ends:
            faulthandler.cancel_dump_traceback_later()


def _dump_of(note: Path) -> Path:
    return note.with_name(f"{note.name}.hung")


@dataclass(frozen=True)
class Death:
    """What a note says of the process that died: the file's place in the task, and why."""

    index: int
    reason: str


def read_deaths(note: Path) -> list[Death]:
    """What a note says of the processes that died with it, the last one last; nothing if none had begun a file."""
    try:
        lines = note.read_text(encoding="ascii").splitlines()
        deaths = []
        for line in lines:
            word, index, rest = line.split(" ", 2)
            if word == "hand":
                hung = _dump_of(note).exists() and _dump_of(note).stat().st_size > 0
                problem = f"hung for more than {float(rest):.0f} s" if hung else "crashed its process"
                rest = f"unreadable: its decoder {problem}"
            deaths.append(Death(int(index), rest))
        return deaths
    except (OSError, ValueError):  # none, or it was being written
        return []


def time_limit(size: int) -> float:
    """Seconds for a file of so many bytes."""
    return HEADER_SECONDS + _SECONDS_PER_MIB * size / (1 << 20)
