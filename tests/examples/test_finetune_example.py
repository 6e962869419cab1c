"""The fine-tuning example, from the command line, in quick form."""

import runpy
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dexcore.commands.finetune import parse
from dexcore.evaluate.finetuning import PRESETS

EXAMPLE = Path(__file__).parents[2] / "examples" / "finetune.py"


def run(*arguments):
    return subprocess.run(
        [sys.executable, EXAMPLE, *map(str, arguments)], capture_output=True, text=True, timeout=900, check=False
    )


def test_the_command_that_it_prints_is_the_same_fine_tuning():
    example = runpy.run_path(str(EXAMPLE))
    config = replace(PRESETS["laptop"], task="a b.yaml", model="runs/mine", name="small", mode="director", steps=12)
    config = replace(config, img_size=96, validations=3, out="results of mine")
    program, command, *flags = shlex.split(example["command"](config))
    assert (program, command) == ("dexcore", "finetune")
    assert parse(flags) == config


@pytest.mark.slow
def test_it_pretrains_tunes_in_three_ways_and_shows_pictures_and_a_table(tmp_path):
    done = run("--quick", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "quick"
    (head,) = [line for line in done.stdout.splitlines() if line.startswith("| task ")]
    assert [cell.strip() for cell in head.strip("|").split("|")][3:] == [
        f"small finetune-{mode}" for mode in ("director", "experts", "scratch")
    ]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("| lesions ")]
    assert line.count("[") == 3  # each number has its interval
    for mode in ("experts", "director", "scratch"):
        assert (out / f"lesions_{mode}.png").read_bytes().startswith(b"\x89PNG")
    again = run("--quick", "--out", tmp_path)
    assert again.returncode == 0
    assert again.stderr.count("is done, and not run again") == 3
