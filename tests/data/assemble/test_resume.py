"""Builds that are killed, run out of disk, meet one another, or read what changes under them."""

import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from made_clusters import dask_cluster, running_workers
from made_folders import write_mask, write_picture, write_series, write_volume
from made_stores import in_a_process

from dexcore.data import build_store
from dexcore.data.assemble import plan
from dexcore.data.assemble.lock import locked
from dexcore.data.assemble.read import build_task
from dexcore.data.store import StoreError, check_store


@pytest.fixture(autouse=True)
def _own_key(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture
def folder(tmp_path):
    return made_folder(tmp_path / "scans", 6)


def made_folder(root: Path, pictures: int) -> Path:
    """Two sources with copies, masks and what is broken, so that all that a build does is done."""
    write_series(root / "ct", slices=3)
    for index in range(pictures):
        write_picture(root / "xray" / f"{index:03d}.png", seed=index)
    write_mask(root / "xray" / "000_mask.png")
    shutil.copy(root / "xray" / "001.png", root / "xray" / "copy.png")
    (root / "xray" / "broken.png").write_bytes((root / "xray" / "000.png").read_bytes()[:900])
    (root / "xray" / "dataset.yaml").write_text("modality: X-ray\n")
    return root


class Here(Executor):
    """Does everything at once, in the thread that asks: a process without other threads can be forked."""

    def submit(self, function, /, *arguments, **keywords):
        future = Future()
        try:
            future.set_result(function(*arguments, **keywords))
        except Exception as error:
            future.set_exception(error)
        return future


def build(folder: Path, out: Path, **options: object):
    # Here, in the process that forks; in those that it forks, as users' own executors are.
    with Here() if multiprocessing.parent_process() is None else ThreadPoolExecutor(1) as executor:
        return build_store(folder, out, executor=executor, shard_bytes=20_000, **options)


def files_of(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


def kill_at(moment: int) -> None:
    """End this process, as SIGKILL does, at its ``moment``-th rename: every step that counts is one."""
    count = 0

    def counting(rename: Callable[..., None]) -> Callable[..., None]:
        def counted(*arguments: object, **named: object) -> None:
            nonlocal count
            count += 1
            if count == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            rename(*arguments, **named)

        return counted

    os.replace, os.rename = counting(os.replace), counting(os.rename)


def test_a_build_killed_at_any_moment_ends_in_the_same_bytes(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "_FILES_A_TASK", 3)
    build(folder, tmp_path / "expected")
    expected = files_of(tmp_path / "expected")
    moments = 0
    for moment in range(1, 100, 2):
        out = tmp_path / f"store-{moment}"
        code, error = in_a_process(lambda moment=moment, out=out: (kill_at(moment), build(folder, out)))
        assert error == ""
        if code == 0:
            break
        assert code == -signal.SIGKILL
        build(folder, out)
        assert files_of(out) == expected, moment
        moments += 1
    assert moments > 6


def test_what_was_done_before_a_kill_is_not_done_again(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "_FILES_A_TASK", 1)
    source = folder / "xray"  # one alone: what was read of a source goes once the source is packed
    assert in_a_process(lambda: (kill_at(9), build(source, tmp_path / "store")))[0] == -signal.SIGKILL
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "store" / ".building-build").rglob("task-*.json")}
    assert len(done) >= 2
    assert in_a_process(lambda: (kill_at(5), build(source, tmp_path / "store")))[0] == -signal.SIGKILL
    again = {path: path.stat().st_mtime_ns for path in (tmp_path / "store" / ".building-build").rglob("task-*.json")}
    assert again.items() > done.items()


def test_a_killed_update_leaves_the_store_that_was_there(folder, tmp_path):
    first = build(folder, tmp_path / "store")
    write_picture(folder / "xray" / "more.png", seed=99)
    assert in_a_process(lambda: (kill_at(4), build(folder, tmp_path / "store")))[0] == -signal.SIGKILL
    assert check_store(tmp_path / "store") == []
    assert build(folder, tmp_path / "store").images == first.images + 1


def test_the_number_of_workers_does_not_change_the_store(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "_FILES_A_TASK", 2)
    build(folder, tmp_path / "threads")
    build_store(folder, tmp_path / "processes", jobs=3, shard_bytes=20_000)
    assert files_of(tmp_path / "processes") == files_of(tmp_path / "threads")


def test_of_two_builds_the_second_is_refused_and_told_of_the_first(folder, tmp_path):
    (tmp_path / "store").mkdir()
    refused = pytest.raises(StoreError, match=rf"store is being built by process {os.getpid()} on .*: wait for its end")
    with locked(tmp_path / "store" / ".building-build"), refused:
        build(folder, tmp_path / "store")
    build(folder, tmp_path / "store")
    assert check_store(tmp_path / "store") == []


@pytest.mark.parametrize("room", [3_000, 30_000])
def test_a_full_disk_is_named_and_the_build_goes_on_later(folder, tmp_path, room):
    write_picture(folder / "xray" / "large.png", (150, 300), seed=5)  # 45 KB in a row
    build(folder, tmp_path / "expected")

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))  # stands in for a disk with no space left
        build(folder, tmp_path / "store")

    code, error = in_a_process(work)
    assert code == 1
    assert error.startswith(f"StoreError: cannot write a store into {tmp_path / 'store'}")
    assert error.endswith("call it again: it goes on where it was")
    build(folder, tmp_path / "store")
    assert files_of(tmp_path / "store") == files_of(tmp_path / "expected")


def test_a_read_only_place_is_named(folder, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o555)

    def work() -> None:
        if os.getuid() == 0:  # root writes anywhere
            os.setuid(65534)
        build(folder, tmp_path / "closed" / "store", key=tmp_path / "key")

    (tmp_path / "key").write_text("0123456789abcdef")
    for path in (tmp_path, *tmp_path.parents[:-1]):
        path.chmod(path.stat().st_mode | 0o055)
    code, error = in_a_process(work)
    assert code == 1
    assert error.startswith("StoreError: cannot write a store into")
    assert "closed" in error


class Meddling(ThreadPoolExecutor):
    """Changes a file between the time it was found and the time it is read."""

    def __init__(self, victim: Path) -> None:
        super().__init__(1)
        self._victim = victim

    def submit(self, run, function, *arguments):
        if function is build_task:
            self._victim.write_bytes(self._victim.read_bytes() + b"more")
        return super().submit(run, function, *arguments)


def test_a_file_that_changes_while_the_store_is_built_is_told_and_read_the_next_time(folder, tmp_path):
    with Meddling(folder / "xray" / "003.png") as executor:
        build_store(folder, tmp_path / "store", executor=executor)
    told = [json.loads(line) for line in (tmp_path / "store" / "rejects.jsonl").read_text().splitlines()]
    assert {line["path"]: line["reason"] for line in told}["xray/003.png"] == "changed since it was found"
    manifest = build(folder, tmp_path / "store")
    assert manifest.sources["xray"].images == 6


_COMMAND = """
import sys
from dexcore.data import build_store
from dexcore.data.assemble.cluster import cluster
if __name__ == "__main__":
    folder, out, key, *scheduler = sys.argv[1:]
    if scheduler:
        with cluster(*scheduler) as (executor, jobs):
            build_store(folder, out, executor=executor, jobs=jobs, key=key)
    else:
        build_store(folder, out, jobs=2, key=key)
"""


@pytest.fixture
def scheduler(where):
    """The arguments of `_COMMAND` that say where its workers are, and their process ids."""
    if where == "here":
        yield [], workers_of
        return
    with dask_cluster() as cluster:
        yield [cluster.scheduler_address], lambda driver: running_workers(cluster)


_SECONDS_UNTIL_STUCK = 120


def end_of(process: subprocess.Popen) -> int:
    """The exit code of a build; one that hangs shows where all its threads are."""
    try:
        return process.wait(_SECONDS_UNTIL_STUCK)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)  # Python's fault handler answers it
        process.wait()
        raise


@pytest.mark.slow
@pytest.mark.parametrize(("where", "most"), [("here", 30), ("dask", 30)])
def test_random_kills_of_60_files_end_in_the_same_store(tmp_path, scheduler, most):
    """Of the driver, and of its own workers with it; every third time of one worker alone, which the build survives."""
    arguments, workers = scheduler
    folder = made_folder(tmp_path / "scans", 50)
    write_volume(folder / "mr" / "v.nii.gz", (80, 90, 30))
    (folder / "mr" / "dataset.yaml").write_text("modality: MR\naxes: [axial, coronal, sagittal]\n")
    (tmp_path / "key").write_text("0123456789abcdef")
    (tmp_path / "build.py").write_text(_COMMAND)

    def start(out: Path, *where: str) -> subprocess.Popen:
        script = [sys.executable, "-X", "faulthandler", str(tmp_path / "build.py")]
        return subprocess.Popen([*script, str(folder), str(out), str(tmp_path / "key"), *where], start_new_session=True)

    assert end_of(start(tmp_path / "expected")) == 0
    expected = files_of(tmp_path / "expected")
    for out in (tmp_path / "first", tmp_path / "second"):  # a cluster's workers are slower at first
        began = time.monotonic()
        assert end_of(start(out, *arguments)) == 0
        seconds = time.monotonic() - began
        assert files_of(out) == expected
    rng = random.Random(0)
    kills = rounds = 0
    while kills < most:
        out = tmp_path / f"store-{rounds}"
        rounds += 1
        while True:
            process = start(out, *arguments)
            try:
                assert process.wait(rng.uniform(0.3, 1.2) * seconds) == 0
                break
            except subprocess.TimeoutExpired:
                kills += 1
                if kills % 3 == 0:
                    for worker in sorted(workers(process.pid))[-1:]:  # the youngest, most often
                        os.kill(worker, signal.SIGKILL)
                    assert end_of(process) == 0
                    break
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        assert files_of(out) == expected
        shutil.rmtree(out)


def workers_of(driver: int) -> list[int]:
    """The processes of the driver's session but itself and the server that forks them."""
    members = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[3]) == driver:  # the session
                members.append((int(fields[1]), int(entry.name)))
    parents = {parent for parent, _ in members}
    return [pid for parent, pid in members if pid not in parents and driver not in (parent, pid)]
