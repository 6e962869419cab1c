"""Real processes that start at once: forked from one that has imported what a run needs.

A fresh interpreter spends several times as long on imports as a small run takes. What is forked has a process id, a
group, an environment, pipes and a command line of its own, is ended by any signal, and ends by itself as an interpreter
does. It does not show what a fresh one would of imports and of the environment that is read by them, and all that are
forked share the seed of ``hash(str)``: test_torchrun.py and `test_ranks.test_two_ranks_are_one_run` start fresh ones.

As a script this is the process that is forked; a socket tells it what to start.
"""

import atexit
import contextlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import IO, Any

_PRELOADED = (
    "dexcore.train.pretraining",
    "dexcore.train.command",
    "dexcore.evaluate.modules.run",
    "dexcore.evaluate.finetuning",
    "torch.distributed.checkpoint.state_dict_loader",
    "matplotlib.figure",
)
_ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}  # of before any test changes it
_servers: list["_Server"] = []  # one, made when it is asked for


class WarmProcess:
    """``python arguments``, with the part of `subprocess.Popen`'s interface that tests use.

    Args:
        arguments: a script, ``-m`` and a module, or ``-c`` and a program; and their arguments.
        environment: all of it.
        group: of processes, to join; 0: a new one, as where that one has ended.
    """

    def __init__(self, arguments: list[str], environment: dict[str, str], group: int) -> None:
        if not _servers:
            _servers.append(_Server())
        self._server = _servers[0]
        (out, out_end), (err, err_end) = os.pipe(), os.pipe()
        told = {"arguments": arguments, "environment": environment, "group": group, "cwd": os.getcwd()}
        self.pid = self._server.start(told, [out_end, err_end])
        for end in (out_end, err_end):
            os.close(end)
        self.stdout: IO[str] = open(out, encoding="utf-8")  # noqa: SIM115
        self.stderr: IO[str] = open(err, encoding="utf-8")  # noqa: SIM115
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit code, None while it runs."""
        if self.returncode is None:
            self.returncode = self._server.code(self.pid)
        return self.returncode

    def wait(self, timeout: float = 600.0) -> int:
        """The exit code, waited for."""
        until = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.005)
        assert self.returncode is not None
        return self.returncode

    def communicate(self, timeout: float = 600.0) -> tuple[str, str]:
        """What it says until it ends; TimeoutExpired holds what it has said."""
        until = time.monotonic() + timeout
        said: dict[Any, list[bytes]] = {self.stdout: [], self.stderr: []}
        with selectors.DefaultSelector() as open_pipes:
            for pipe in said:
                open_pipes.register(pipe, selectors.EVENT_READ)
            while open_pipes.get_map():
                ready = open_pipes.select(max(0.0, until - time.monotonic()))
                if not ready:
                    told = [b"".join(said[pipe]) for pipe in (self.stdout, self.stderr)]
                    raise subprocess.TimeoutExpired(str(self.pid), timeout, *told)
                for key, _ in ready:
                    chunk = os.read(key.fd, 1 << 16)
                    said[key.fileobj].append(chunk)
                    if not chunk:
                        open_pipes.unregister(key.fileobj)
        self.wait(max(1.0, until - time.monotonic()))
        for pipe in said:
            pipe.close()
        return b"".join(said[self.stdout]).decode(), b"".join(said[self.stderr]).decode()

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


class _Server:
    """The process that is forked, as its client sees it."""

    def __init__(self) -> None:
        self._socket, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._codes: dict[int, int] = {}  # of processes that have ended
        with there:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(there.fileno())],
                pass_fds=[there.fileno()],
                env=_ENVIRONMENT,
                start_new_session=True,  # Ctrl-C is the test's, which ends what it has started
            )
        atexit.register(self.close)

    def close(self) -> None:
        """End it, and what it has started and is still there."""
        self._socket.close()
        self._process.wait()

    def start(self, told: dict[str, Any], ends: list[int]) -> int:
        """Have a process started; its id."""
        socket.send_fds(self._socket, [json.dumps(told).encode()], ends)
        while True:
            message = self._hear(wait=True)
            if "started" in message:
                self._codes.pop(message["started"], None)
                return int(message["started"])

    def code(self, pid: int) -> int | None:
        """The exit code of a process that has ended."""
        while pid not in self._codes:
            try:
                self._hear(wait=False)
            except BlockingIOError:
                return None
        return self._codes[pid]

    def _hear(self, wait: bool) -> dict[str, int]:
        heard = self._socket.recv(1 << 16, 0 if wait else socket.MSG_DONTWAIT)
        if not heard:
            _servers.remove(self)
            raise RuntimeError(f"the process that tests fork from has ended with code {self._process.wait()}")
        message: dict[str, int] = json.loads(heard)
        if "code" in message:
            self._codes[message["pid"]] = message["code"]
        return message


def _serve(connection: socket.socket) -> dict[str, Any]:
    """Fork what is asked for; returns in the new process, with what it is to run."""
    wake, alarm = socket.socketpair()
    for end in (wake, alarm):
        end.setblocking(False)
    before = signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(alarm.fileno())
    alive: set[int] = set()
    with selectors.DefaultSelector() as events:
        events.register(connection, selectors.EVENT_READ)
        events.register(wake, selectors.EVENT_READ)
        while True:
            for key, _ in events.select():
                if key.fileobj is wake:
                    wake.recv(1 << 10)
                    _tell_of_the_dead(connection, alive)
                    continue
                try:
                    asked, ends, _, _ = socket.recv_fds(connection, 1 << 20, 2)
                except ConnectionError:
                    asked = b""
                if not asked:
                    for left in alive:
                        os.kill(left, signal.SIGKILL)
                    os._exit(0)
                task: dict[str, Any] = json.loads(asked)
                pid = os.fork()
                if pid == 0:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, before)
                    for stream, end in zip((1, 2), ends, strict=True):
                        os.dup2(end, stream)
                for end in ends:
                    os.close(end)
                if pid == 0:
                    for unused in (connection, wake, alarm):
                        unused.close()
                    return task
                try:
                    os.setpgid(pid, task["group"])
                except OSError:  # all of that group have ended
                    os.setpgid(pid, 0)
                alive.add(pid)
                connection.send(json.dumps({"started": pid}).encode())


def _tell_of_the_dead(connection: socket.socket, alive: set[int]) -> None:
    while alive:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        alive.remove(pid)
        with contextlib.suppress(ConnectionError):
            connection.send(json.dumps({"pid": pid, "code": os.waitstatus_to_exitcode(status)}).encode())


def _run(task: dict[str, Any]) -> None:
    """Be ``python arguments``."""
    os.chdir(task["cwd"])
    os.environ.clear()
    os.environ.update(task["environment"])
    import numpy as np
    import torch

    np.random.seed()  # noqa: NPY002  # else all that are forked would draw the same
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))  # the library has read it before
    first, *rest = task["arguments"]
    sys.orig_argv = [sys.executable, first, *rest]
    if first == "-c":
        sys.argv, sys.path[0] = ["-c", *rest[1:]], ""
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), vars(main))
    elif first == "-m":
        sys.argv, sys.path[0] = rest, task["cwd"]
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = [first, *rest], str(Path(first).parent)
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    for name in _PRELOADED:
        __import__(name)
    _run(_serve(socket.socket(fileno=int(sys.argv[1]))))
