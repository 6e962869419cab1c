"""A run that hangs ends with every rank's stacks; one that is slow, paused or suspended does not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

CODE = """
import sys, time, pathlib
from dexcore.engine.ranks import Ranks
from dexcore.engine.watchdog import Watchdog
folder, how = pathlib.Path(sys.argv[1]), sys.argv[2]
def waits_for_data_that_never_comes():
    time.sleep(60)
with Watchdog(0 if how == "any" else 3, folder, Ranks(), "run.stuck_after") as watchdog:
    print("begun", flush=True)
    for step in range(1, 4):
        time.sleep(0.6)
        watchdog.beat(step)
    if how == "hangs":
        waits_for_data_that_never_comes()
    if how == "paused":
        with watchdog.paused():
            time.sleep(5)
    if how == "any":
        time.sleep(5)
print("ended", flush=True)
"""


def start(folder: Path, how: str) -> subprocess.Popen[str]:
    folder.mkdir()
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", CODE, str(folder), how], stdout=pipe, stderr=pipe, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process


def test_what_hangs_ends_and_says_where_and_what_does_not_hang_goes_on(tmp_path):
    sound = ("slow", "paused", "any", "suspended")
    processes = {how: start(tmp_path / how, how) for how in ("hangs", *sound)}
    os.kill(processes["suspended"].pid, signal.SIGSTOP)
    time.sleep(6)
    os.kill(processes["suspended"].pid, signal.SIGCONT)
    told = {how: process.communicate(timeout=60) for how, process in processes.items()}
    for how in sound:
        assert (processes[how].returncode, told[how]) == (0, ("ended\n", "")), how
        assert not (tmp_path / how / "stuck").exists()
    out, error = told["hangs"]
    assert (processes["hangs"].returncode, out) == (1, "")
    assert error.startswith("rank 0: no step within 3 s (run.stuck_after) after step 3: this run hangs and ends")
    stacks = (tmp_path / "hangs" / "stuck" / "rank-0.txt").read_text()
    assert "waits_for_data_that_never_comes" in stacks
    assert "no step within 3 s" in stacks
