"""Processes that are forked from a warm one behave as fresh ones do."""

import os
import signal
import subprocess
import sys
import time

import pytest
from warm import WarmProcess

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def start(code: str, *arguments: str, group: int = 0, **environment: str) -> WarmProcess:
    return WarmProcess(["-c", code, *arguments], {**ENVIRONMENT, **environment}, group)


def test_it_has_arguments_environment_pipes_and_an_exit_code_of_its_own():
    code = "import os, sys; print(sys.argv, os.environ['OWN'], os.getpid()); print('x' * 200_000, file=sys.stderr)\n"
    one, other = (start(f"{code}sys.exit({code_of})", "a", OWN=str(code_of)) for code_of in (3, 0))
    for process, number in ((one, 3), (other, 0)):
        out, err = process.communicate(60)
        assert out == f"['-c', 'a'] {number} {process.pid}\n"
        assert err == "x" * 200_000 + "\n"
        assert process.returncode == number


def test_a_program_sees_no_names_but_its_own():
    _, said = start("print(json)").communicate(60)
    assert said.strip().endswith("NameError: name 'json' is not defined")
    _, fresh = subprocess.Popen([sys.executable, "-c", "print(json)"], stderr=subprocess.PIPE, text=True).communicate()
    assert said.splitlines()[-1].split(".")[0] == fresh.splitlines()[-1].split(".")[0]


def test_a_signal_ends_it_and_a_group_is_signalled_together():
    first = start("import time; time.sleep(60)")
    second = start("import time; time.sleep(60)", group=first.pid)
    assert os.getpgid(second.pid) == first.pid != os.getpgid(0)
    os.killpg(first.pid, signal.SIGTERM)
    assert [process.wait(60) for process in (first, second)] == [-signal.SIGTERM] * 2
    first.kill()  # of what has ended: nothing


def test_one_that_dies_at_once_does_not_harm_those_that_come_after():
    first = start("this is no Python")
    assert first.wait(60) == 1
    second = start("print('there')", group=first.pid)
    assert second.communicate(60) == ("there\n", "")


def test_what_was_said_by_one_that_does_not_end_is_told():
    process = start("import time; print('begun', flush=True); time.sleep(60)")
    time.sleep(0.5)
    with pytest.raises(subprocess.TimeoutExpired) as expired:
        process.communicate(0.5)
    assert expired.value.output == b"begun\n"
    process.kill()
    assert process.wait(60) == -signal.SIGKILL
