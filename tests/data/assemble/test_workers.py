"""Tasks on real processes that crash, hang and are killed."""

import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from made_folders import write_picture

from dexcore.data.assemble import hand as hand_module
from dexcore.data.assemble.hand import Hand
from dexcore.data.assemble.workers import Workers, WorkersError

ROOT = Path(__file__).parents[3]


def work(task, hand: Hand):
    """A task of words, in a worker: some of them end it."""
    hand_module.HEADER_SECONDS, hand_module._FIRST_SECONDS = 1.0, 0.0
    done = []
    for index, word in enumerate(task):
        dead = hand.take(index, 0)
        if dead:
            done.append(dead)
            continue
        if word == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if word == "hang":
            re.match(r"(a+)+$", "a" * 60 + "b")  # for ages, and it holds the interpreter's lock
        if word == "raise":
            raise OSError("no space left")
        hand.drop()
        done.append(f"{word} done")
    return done


def crash_outside_of_files(task, hand: Hand):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_file_that_kills_its_worker_costs_itself_alone(tmp_path):
    tasks = [
        ("a", "b"),
        ("c", "crash", "d"),
        ("e",),
        ("hang", "f"),
        ("crash", "crash", "g"),
        *((str(n),) for n in range(6)),
    ]
    with Workers(2) as workers:
        done = dict(workers.run(work, tasks, tmp_path))
        again = dict(workers.run(work, [("h",)], tmp_path))  # the pool was made anew
    crashed, hung = "unreadable: its decoder crashed its process", "unreadable: its decoder hung for more than 1 s"
    assert done == {
        0: ["a done", "b done"],
        1: ["c done", crashed, "d done"],
        2: ["e done"],
        3: [hung, "f done"],
        4: [crashed, crashed, "g done"],
        **{5 + n: [f"{n} done"] for n in range(6)},
    }
    assert again == {0: ["h done"]}
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_work_itself_is_raised(tmp_path):
    with Workers(2) as workers, pytest.raises(OSError, match="no space left"):
        dict(workers.run(work, [("a",), ("raise",)], tmp_path))


def test_workers_that_die_without_a_file_in_hand_end_the_build_with_advice(tmp_path):
    with Workers(1) as workers, pytest.raises(WorkersError, match="with fewer --jobs: it goes on where it was"):
        dict(workers.run(crash_outside_of_files, [("a",)], tmp_path))


def test_threads_are_an_executor_too_and_are_never_ended(tmp_path):
    with ThreadPoolExecutor(2) as executor, Workers(2, executor) as workers:
        assert dict(workers.run(work, [("a",), ("b", "c")], tmp_path)) == {0: ["a done"], 1: ["b done", "c done"]}


def test_a_script_without_a_guard_for_its_main_module_builds(tmp_path):
    write_picture(tmp_path / "films" / "1.png")
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from dexcore.data import build_store\n"
        "print(build_store(sys.argv[1] + '/films', sys.argv[1] + '/store', modality='X-ray', jobs=1).images)\n"
    )
    environment = os.environ | {"XDG_CONFIG_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    told = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, env=environment, check=False
    )
    assert (told.returncode, told.stdout) == (0, "1\n"), told.stderr
