"""Real processes that start at once: forked from one that has imported what a run needs.

A fresh interpreter spends several times as long on imports as a small run takes. What is forked differs from it in
nothing that a run looks at: it has a process id, a group, an environment, pipes and a command line of its own, is ended
by any signal, and ends by itself as any interpreter does.

As a script this is the one process; it is told by a socket what to start.
"""

import atexit
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import time
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
_server: list[socket.socket] = []  # one, made when it is asked for
_ended: dict[int, int] = {}  # exit code by process id


class WarmProcess:
    """``python arguments``, with the part of `subprocess.Popen`'s interface that tests use.

    Args:
        arguments: a script and its arguments.
        environment: all of it.
        group: of processes, to join; 0: a new one.
    """

    def __init__(self, arguments: list[str], environment: dict[str, str], group: int) -> None:
        (out, out_end), (err, err_end) = os.pipe(), os.pipe()
        connection = _connection()
        told = {"arguments": arguments, "environment": environment, "group": group, "cwd": os.getcwd()}
        socket.send_fds(connection, [json.dumps(told).encode()], [out_end, err_end])
        for end in (out_end, err_end):
            os.close(end)
        self.stdout: IO[str] = open(out, encoding="utf-8")  # noqa: SIM115
        self.stderr: IO[str] = open(err, encoding="utf-8")  # noqa: SIM115
        self.returncode: int | None = None
        self.pid: int = _hear("started", wait=True)

    def poll(self) -> int | None:
        """The exit code, None while it runs."""
        if self.returncode is None:
            _hear("", wait=False)
            self.returncode = _ended.pop(self.pid, None)
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
        """What it says until it ends."""
        until = time.monotonic() + timeout
        said: dict[Any, list[bytes]] = {self.stdout: [], self.stderr: []}
        with selectors.DefaultSelector() as open_pipes:
            for pipe in said:
                open_pipes.register(pipe, selectors.EVENT_READ)
            while open_pipes.get_map():
                ready = open_pipes.select(max(0.0, until - time.monotonic()))
                if not ready:
                    raise subprocess.TimeoutExpired(str(self.pid), timeout)
                for key, _ in ready:
                    chunk = os.read(key.fd, 1 << 16)
                    said[key.fileobj].append(chunk)
                    if not chunk:
                        open_pipes.unregister(key.fileobj)
        self.wait(max(0.0, until - time.monotonic()))
        for pipe in said:
            pipe.close()
        return b"".join(said[self.stdout]).decode(), b"".join(said[self.stderr]).decode()

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


def _connection() -> socket.socket:
    if not _server:
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with there:
            subprocess.Popen([sys.executable, __file__, str(there.fileno())], pass_fds=[there.fileno()])
        _server.append(here)
        atexit.register(here.close)  # at which it ends
    return _server[0]


def _hear(wanted: str, wait: bool) -> int:
    """Take what the server has told; the number of the first message that is ``wanted``, or 0."""
    while True:
        try:
            message = json.loads(_server[0].recv(1 << 16, 0 if wait else socket.MSG_DONTWAIT))
        except BlockingIOError:
            return 0
        if "code" in message:
            _ended[message["pid"]] = message["code"]
        if wanted in message and "code" not in message:
            return int(message[wanted])


def _serve(connection: socket.socket) -> dict[str, Any]:
    """Fork what is asked for; returns in the new process, with what it is to run."""
    wake, alarm = socket.socketpair()
    for end in (wake, alarm):
        end.setblocking(False)
    before = signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(alarm.fileno())
    with selectors.DefaultSelector() as events:
        events.register(connection, selectors.EVENT_READ)
        events.register(wake, selectors.EVENT_READ)
        while True:
            for key, _ in events.select():
                if key.fileobj is wake:
                    wake.recv(1 << 10)
                    _tell_of_the_dead(connection)
                    continue
                asked, ends, _, _ = socket.recv_fds(connection, 1 << 20, 2)
                if not asked:
                    os._exit(0)
                pid = os.fork()
                if pid == 0:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, before)
                    for stream, end in zip((1, 2), ends, strict=True):
                        os.dup2(end, stream)
                for end in ends:
                    os.close(end)
                task: dict[str, Any] = json.loads(asked)
                if pid == 0:
                    for unused in (connection, wake, alarm):
                        unused.close()
                    return task
                os.setpgid(pid, task["group"])
                connection.send(json.dumps({"started": pid}).encode())


def _tell_of_the_dead(connection: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        connection.send(json.dumps({"pid": pid, "code": os.waitstatus_to_exitcode(status)}).encode())


def _run(task: dict[str, Any]) -> None:
    """Be ``python arguments``."""
    os.chdir(task["cwd"])
    os.environ.clear()
    os.environ.update(task["environment"])
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))  # the library has read it before
    first, *rest = task["arguments"]
    sys.orig_argv = [sys.executable, first, *rest]
    if first == "-c":
        sys.argv, sys.path[0] = ["-c", *rest[1:]], ""
        exec(compile(rest[0], "<string>", "exec"), vars(sys.modules["__main__"]))
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
