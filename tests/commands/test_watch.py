"""``dexcore watch``: once where nobody sits before it, and in a real terminal until the run has ended."""

import json
import os
import pty
import select
import subprocess
import sys
import time

import pytest

from dexcore.cli import main

START = {"step": 0, "total_steps": 3, "batch_size": 8, "machine": {"device": "cpu"}, "images": {"name": "scans"}}


def line_of(step):
    return json.dumps({"step": step, "epoch": 0, "loss_self": 1 / (step + 1), "images_per_second": 16.0}) + "\n"


@pytest.fixture
def run(tmp_path):
    (tmp_path / "starts.jsonl").write_text(json.dumps(START) + "\n")
    (tmp_path / "metrics.jsonl").write_text(line_of(0))
    return tmp_path


def test_where_the_output_is_no_terminal_it_prints_once(run, capsys):
    assert main(["watch", str(run)]) == 0
    told = capsys.readouterr().out
    assert "step 1 of 3" in told
    assert "\x1b" not in told


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["nowhere"], "nowhere: no such folder, expected the folder that a run writes (its --out)"),
        (["RUN", "--interval", "0"], "expected seconds from 0.1 to 3600, got 0"),
    ],
)
def test_bad_input_is_told_in_a_line(run, capsys, arguments, problem):
    arguments = [str(run) if word == "RUN" else word for word in arguments]
    try:
        code = main(["watch", *arguments])
    except SystemExit as ended:  # argparse's
        code = ended.code
    assert code == 2
    assert problem in capsys.readouterr().err


def test_in_a_terminal_it_follows_the_run_and_ends_with_it(run):
    ours, its = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
    command = [sys.executable, "-m", "dexcore", "watch", str(run), "--interval", "0.1"]
    process = subprocess.Popen(command, stdin=its, stdout=its, stderr=its, env=environment)
    os.close(its)
    shown = b""

    def until(text):
        nonlocal shown
        end = time.monotonic() + 60
        while text not in shown:
            assert time.monotonic() < end, shown[-2000:]
            if select.select([ours], [], [], 0.1)[0]:
                shown += os.read(ours, 65536)

    until(b"step 1 of 3")
    with open(run / "metrics.jsonl", "a") as metrics:
        metrics.write(line_of(1))
    until(b"step 2 of 3")
    with open(run / "metrics.jsonl", "a") as metrics:
        metrics.write(line_of(2))
    (run / "summary.json").write_text("{}")
    until(b"is finished")
    until(b"\x1b[?1049l")  # the terminal is what it was before
    assert process.wait(60) == 0
    os.close(ours)
