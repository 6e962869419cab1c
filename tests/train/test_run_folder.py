"""The run's folder: one run at a time, nothing overwritten, lines that a kill tore."""

import json
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from dexcore.train.config import PretrainConfig
from dexcore.train.run_folder import LineFile, RunFolderError, open_run_folder

_HOLD = """
import sys
from dexcore.train.config import PretrainConfig
from dexcore.train.run_folder import open_run_folder
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
    with pytest.raises(RunFolderError, match="another run is writing"):
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
    assert [entry.name for entry in tmp_path.iterdir() if entry.name != ".lock"] == ["thesis.tex"]


def test_a_run_that_never_came_to_a_step_can_be_begun_again(tmp_path):
    _open(tmp_path / "run")
    _open(tmp_path / "run")
    _open(tmp_path / "run", resume=True)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
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
        (folder / "metrics.jsonl").write_text("")
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
