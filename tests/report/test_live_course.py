"""A run's folder that is followed: what is new is taken in once, and what the run does is told right."""

import json
import math
import os
import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np
import pytest

from dexcore.report.live import Follower, Standing

START = {
    "step": 0,
    "total_steps": 40,
    "batch_size": 8,
    "machine": {"device": "cpu", "processes": 1},
    "images": {"name": "scans", "training": {"CT": 3, "MR": 4}},
}


def line_of(step, **changes):
    line = {
        "step": step,
        "epoch": step // 4,
        "loss_self": 1 / (step + 1),
        "load": [[0.5, 0.25, 0.25]],
        "skipped": False,
    }
    return line | {"images_per_second": 16.0, "seconds_data": 0.125} | changes


def text_of(*lines):
    return "".join(json.dumps(line) + "\n" for line in lines)


@pytest.fixture
def run(tmp_path):
    (tmp_path / "starts.jsonl").write_text(text_of(START))
    return tmp_path


@contextmanager
def held(folder):
    """A process of its own that holds the folder's lock, as a trainer does."""
    code = (
        "import sys, pathlib, dexcore.engine.folder as f\n"
        "folder = pathlib.Path(sys.argv[1]); lock = open(folder / '.lock', 'a')\n"
        "with f.hold(lock, folder, '.lock'): print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    try:
        yield
    finally:
        process.kill()
        process.communicate()


def test_steps_are_taken_in_once_and_a_line_that_is_being_written_waits_for_its_end(run):
    follower = Follower(run)
    assert follower.read().steps == 0
    metrics = run / "metrics.jsonl"
    whole = text_of(*map(line_of, range(3)))
    metrics.write_text(whole[:-20])
    assert follower.read().steps == 2
    metrics.write_text(whole)
    course = follower.read()
    assert course.steps == 3
    assert list(course.scalars["loss_self"]) == [1, 0.5, 1 / 3]
    assert (course.total_steps, course.epoch, course.seconds_a_step) == (40, 0, 0.5)
    assert course.seconds_left == pytest.approx(37 * 0.5)
    assert course.shares() == {"seconds_data": pytest.approx(0.25)}
    np.testing.assert_allclose(course.mean_load()[0], [0.5, 0.25, 0.25])


def test_a_run_that_went_back_to_its_checkpoint_is_read_anew(run):
    metrics = run / "metrics.jsonl"
    metrics.write_text(text_of(*(line_of(step, loss_self=9.0) for step in range(10))))
    follower = Follower(run)
    assert follower.read().steps == 10
    # As a resumed run does: the lines of later steps go, by a file in the place of the old one; then it goes on.
    other = run / "other"
    other.write_text(text_of(*map(line_of, range(12))))
    os.replace(other, metrics)
    course = follower.read()
    assert course.steps == 12
    assert course.scalars["loss_self"][0] == 1


def test_numbers_that_a_step_lacks_are_nan_and_skipped_steps_are_counted(run):
    lines = [line_of(0), line_of(1, loss_self=None, skipped=True), {"step": 2, "loss": 0.5}]
    (run / "metrics.jsonl").write_text(text_of(*lines))
    course = Follower(run).read()
    assert (course.skipped, course.last_skipped) == (1, 1)
    assert math.isnan(course.scalars["loss_self"][1])
    assert len(course.scalars["loss_self"]) == 2  # nothing of the third is made up
    assert [*map(math.isnan, course.scalars["loss"])] == [True, True, False]
    assert course.recent("loss", 1).tolist() == [0.5]
    assert course.recent("nothing").size == 0


@pytest.mark.parametrize(
    ("line", "problem"),
    [("[1]", "a JSON object with a step"), ("{", "a JSON object with a step"), (json.dumps(line_of(5)), "step 5, exp")],
)
def test_a_damaged_line_is_an_error_with_its_file_and_its_number(run, line, problem):
    (run / "metrics.jsonl").write_text(text_of(line_of(0)) + line + "\n")
    with pytest.raises(ValueError, match=rf"metrics.jsonl, line 2: .*{problem}"):
        Follower(run).read()


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run, expected the folder that a run writes"):
        Follower(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        Follower(tmp_path / "nowhere")


def test_what_a_run_does_is_told_by_its_lock_and_by_what_it_wrote(run):
    metrics = run / "metrics.jsonl"
    with held(run):
        assert Follower(run).read().standing is Standing.WAITING
        metrics.write_text(text_of(line_of(0)))
        assert Follower(run).read().standing is Standing.TRAINING
        long_ago = time.time() - 100
        os.utime(metrics, (long_ago, long_ago))
        assert Follower(run).read().standing is Standing.QUIET
        metrics.write_text(text_of(*map(line_of, range(40))))
        assert Follower(run).read().standing is Standing.EVALUATING
    assert Follower(run).read().standing is Standing.ELSEWHERE  # no process here, and a step a moment ago
    os.utime(metrics, (long_ago, long_ago))
    assert Follower(run).read().standing is Standing.STOPPED
    (run / "summary.json").write_text("{}")
    assert Follower(run).read().standing is Standing.FINISHED
    longer = START | {"step": 40, "total_steps": 60}  # it went on for more, and was stopped
    with open(run / "starts.jsonl", "a") as starts:
        starts.write(text_of(longer))
    assert Follower(run).read().standing is Standing.STOPPED


def test_the_newest_checkpoint_is_told_and_what_is_being_written_or_damaged_is_none(run):
    assert Follower(run).read().checkpoint is None
    for name in ("step-00000200", "step-00001000", "damaged-step-00003000", ".step-00002000.tmp"):
        (run / "checkpoints" / name).mkdir(parents=True)
    assert Follower(run).read().checkpoint[0] == 1000
