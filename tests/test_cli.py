"""The command `dexcore`, in a process of its own and in this one."""

import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

import dexcore
from dexcore.cli import main
from dexcore.train import command as train_command

ROOT = Path(__file__).parents[1]


def test_the_entry_point_is_the_commands_main():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    module, name = scripts["dexcore"].split(":")
    assert getattr(importlib.import_module(module), name) is main


@pytest.mark.parametrize("line", [["dexcore"], ["dexcore.cli"]])
def test_the_version_is_that_of_all_that_computes(line):
    done = subprocess.run([sys.executable, "-m", *line, "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"dexcore {dexcore.__version__}, torch {torch.__version__}, ")
    assert "triton" in done.stdout
    assert done.stdout.count("\n") == 1


def test_a_reader_that_has_read_enough_is_no_error():
    command = [sys.executable, "-m", "dexcore", "eval", "tasks"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0


def _told(capsys, command, line):
    """Exit code, output and errors of a command line."""
    try:
        code = command(line)
    except SystemExit as left:
        code = left.code
    told = capsys.readouterr()
    return code, told.out, told.err


@pytest.mark.parametrize(
    ("line", "expected"),
    [(["--help"], 0), (["--print-config"], 0), (["--run.device", "abacus"], 2), (["--run.epocs", "3"], 2)],
)
def test_pretrain_says_and_returns_what_the_example_does(line, expected, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["dexcore pretrain"])  # else help would differ by the script's name alone
    example = _told(capsys, train_command.main, line)
    assert example == _told(capsys, main, ["pretrain", *line])
    assert example[0] == expected
    assert any(example[1:])


def test_pretrains_help_names_the_command(capsys):
    with pytest.raises(SystemExit):
        main(["pretrain", "--help"])
    assert capsys.readouterr().out.startswith("usage: dexcore pretrain ")


@pytest.mark.parametrize("line", [[], ["report"], ["reprt", "x"]])
def test_a_wrong_command_line_says_how_it_is_used(capsys, line):
    with pytest.raises(SystemExit) as exit_:
        main(line)
    assert exit_.value.code == 2
    assert "usage: dexcore" in capsys.readouterr().err
