"""The run's folder: one run at a time, nothing overwritten, lines that a kill tore."""

import json
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from dexcore.engine.folder import LineFile, RunFolderError, hold
from dexcore.train.config import PretrainConfig
from dexcore.train.run.folder import open_run_folder, write_config

_HOLD = """
import sys
from dexcore.train.config import PretrainConfig
from dexcore.train.run.folder import open_run_folder
with open_run_folder(PretrainConfig(out=sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def _open(out: Path, resume: bool = False) -> None:
    with open_run_folder(PretrainConfig(out=str(out), resume=resume)):
        pass


def test_two_runs_on_one_folder_are_refused_and_a_killed_one_holds_nothing(tmp_path):
    arguments = [sys.executable, "-c", _HOLD, str(tmp_path / "run")]
    process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    named = rf"another run is writing into \S+ \(process {process.pid} on \S+, since 20.*\); wait for it"
    with pytest.raises(RunFolderError, match=named):
        _open(tmp_path / "run")
    process.kill()
    process.communicate()
    _open(tmp_path / "run")


def test_a_folder_with_content_is_not_overwritten(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunFolderError, match=r"is not empty \(it holds thesis.tex\); go on with its run by --resume"):
        _open(tmp_path)
    with pytest.raises(RunFolderError, match=r"holds thesis.tex but no config.yaml: it is no run to resume"):
        _open(tmp_path, resume=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_run_that_was_killed_before_its_first_step_can_be_begun_again(tmp_path):
    names = ["config.yaml", "metrics.jsonl", "similarity.jsonl", "skipped.jsonl", "starts.jsonl"]
    for name in names:
        (tmp_path / name).write_text("" if name == "metrics.jsonl" else '{"step": 0}\n')
    _open(tmp_path)
    _open(tmp_path, resume=True)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".lock", *names]
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n')
    with pytest.raises(RunFolderError, match="is not empty"):
        _open(tmp_path)


def _fail(out: Path, lines: int) -> None:
    """As a run does that has written so many lines of metrics."""
    config = PretrainConfig(out=str(out))
    with open_run_folder(config) as folder:
        write_config(folder, config)
        with closing(LineFile(folder / "metrics.jsonl", first_step=0)) as metrics:
            for step in range(lines):
                metrics.write({"step": step})
        raise ZeroDivisionError


def test_what_fails_before_the_first_step_leaves_nothing_of_its_own(tmp_path):
    for out in (tmp_path / "new" / "and" / "deep", tmp_path / "new"):
        with pytest.raises(ZeroDivisionError):
            _fail(out, lines=0)
        assert list(tmp_path.iterdir()) == []


def test_what_fails_after_the_first_step_leaves_all(tmp_path):
    with pytest.raises(ZeroDivisionError):
        _fail(tmp_path / "run", lines=1)
    assert sorted(entry.name for entry in (tmp_path / "run").iterdir()) == [".lock", "config.yaml", "metrics.jsonl"]


def test_what_fails_keeps_the_files_that_were_there(tmp_path):
    (tmp_path / "config.yaml").write_text("mine: 1\n")
    (tmp_path / ".notes").write_text("hidden")
    with pytest.raises(ZeroDivisionError):
        _fail(tmp_path, lines=0)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".notes", "config.yaml"]


def test_a_lock_that_was_removed_between_its_opening_and_the_hold_holds_nothing(tmp_path):
    with open(tmp_path / ".lock", "a") as lock:
        (tmp_path / ".lock").unlink()
        with pytest.raises(RunFolderError, match="another run is writing"):
            hold(lock, tmp_path, ".lock").__enter__()
        (tmp_path / ".lock").touch()  # a third run's
        with pytest.raises(RunFolderError, match="another run is writing"):
            hold(lock, tmp_path, ".lock").__enter__()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    too_long = tmp_path / "new" / ("x" * 300)
    with pytest.raises(RunFolderError, match=f"out: cannot write into {too_long}"):
        _open(too_long)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(RunFolderError, match=f"out: cannot write into {out}"):
            _open(out)


def test_a_read_only_folder_is_named():
    out = Path("/proc/run")  # for root, too
    with pytest.raises(RunFolderError, match="out: cannot write into /proc/run"):
        _open(out)


def test_a_resume_with_another_configuration_shows_the_difference(tmp_path):
    config = PretrainConfig(out=str(tmp_path / "run"))
    with open_run_folder(config) as folder:
        write_config(folder, config)
        (folder / "metrics.jsonl").write_text('{"step": 0}\n')
    changed = replace(config, resume=True, run=replace(config.run, seed=5, keep_checkpoints=9))
    expected = pytest.raises(RunFolderError, match=r"another configuration(?s:.*)run\.seed: 0 -> 5$")
    with expected, open_run_folder(changed):
        pass


def test_lines_from_a_step_on_and_torn_ones_are_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(6)) + '{"step": 1')
    file = LineFile(path, first_step=4)
    file.write({"step": 4, "loss": float("nan"), "load": [[0.5, float("inf")]]})
    file.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]
    assert lines[-1] == {"step": 4, "loss": None, "load": [[0.5, None]]}


def test_a_full_disk_is_a_clear_error():
    expected = pytest.raises(RunFolderError, match=r"/dev/full: cannot be written: No space left on device")
    with expected, closing(LineFile(Path("/dev/full"), first_step=0)) as file:  # the close flushes once more
        file.write({"step": 0})


def test_a_file_that_cannot_be_opened_or_synced_is_a_clear_error(tmp_path):
    with closing(LineFile(Path("/dev/null"), first_step=0)) as file, pytest.raises(RunFolderError, match="/dev/null"):
        file.sync()
    with pytest.raises(RunFolderError, match=r"nowhere/metrics\.jsonl: cannot be written: No such file"):
        LineFile(tmp_path / "nowhere" / "metrics.jsonl", first_step=0)
