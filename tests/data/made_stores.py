"""What tests of stores share: looking into their folders, damaging them, working in a process that may die."""

import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

_fork = get_context("fork")


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("shard-*.arrow"))


def overwrite(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert data.count(old) == 1
    assert len(old) == len(new)
    path.write_bytes(data.replace(old, new))


def in_a_process(work: Callable[[], None]) -> tuple[int, str]:
    """Do the work in a forked process; give its exit code (negative for a signal) and its error."""
    receiver, sender = _fork.Pipe(duplex=False)

    def run() -> None:
        try:
            work()
        except BaseException as error:
            sender.send(f"{type(error).__name__}: {error}")
            os._exit(1)
        os._exit(0)

    time.sleep(0.05)  # threads that end hold OpenCV's lock for a moment: a fork would copy it locked
    process = _fork.Process(target=run)
    process.start()
    sender.close()
    process.join(60)
    assert process.exitcode is not None, "the process hangs"
    return process.exitcode, receiver.recv() if receiver.poll() and process.exitcode == 1 else ""


_FILE_OPERATIONS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.listdir", "os.scandir"}


def die_before_operation(moment: int) -> None:
    """Have this process kill itself before its ``moment``-th file operation from now."""
    left = moment

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in _FILE_OPERATIONS:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
