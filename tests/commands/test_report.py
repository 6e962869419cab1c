"""``dexcore report``: the page of a run again, in a process of its own and in this one."""

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "report"))

from made_runs import make_evaluation, write_run

from dexcore.cli import main


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "run", make_evaluation())


def test_report_makes_the_page_from_the_numbers_alone(run):
    code = (
        "import sys; from dexcore.cli import main; code = main(['report', sys.argv[1]]);"
        "print([m for m in sys.modules if m.startswith(('dexcore.data', 'dexcore.train', 'dexcore.kernels'))]);"
        "raise SystemExit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Share of masked-patch variance explained")
    assert str(run / "report.html") in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
    assert "<h1>DEX pre-training: run</h1>" in (run / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("broken", ["nowhere", "evaluation.npz", "metrics.jsonl", "config.yaml"])
def test_what_is_missing_is_an_error_in_one_line(tmp_path, capsys, broken):
    folder = write_run(tmp_path / "run", make_evaluation())
    if broken == "nowhere":
        folder = tmp_path / "nowhere"
    else:
        (folder / broken).unlink()
    assert main(["report", str(folder)]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("error: ")
    assert broken in told.err
    assert told.err.count("\n") == 1


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path, capsys):
    folder = write_run(tmp_path / "run", make_evaluation())
    (folder / "report").write_text("a file where the pictures go")
    assert main(["report", str(folder)]) == 2
    assert capsys.readouterr().err.startswith("error: ")
