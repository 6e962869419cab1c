"""The screen of a run that trains: what it shows fits the terminal, and is what the files hold."""

import io

import numpy as np
import pytest
from made_courses import apart, course, starving
from rich.console import Console

from dexcore.report.live import Standing, advise, screen
from dexcore.report.live.screen import sparkline


def shown(found, width):
    console = Console(file=io.StringIO(), width=width)
    console.print(screen(found, advise(found), width))
    return console.file.getvalue()


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_screen_fits_the_terminal_and_cuts_no_number(tmp_path, width):
    found = starving(tmp_path, checkpoint=(200, 0.0), folder=tmp_path.relative_to(tmp_path.parent))
    lines = shown(found, width).splitlines()
    assert max(map(len, lines)) <= width
    assert not any("…" in line for line in lines)
    text = "\n".join(lines)
    assert "step 400 of 500" in text
    assert "80 %, 50 s left" in text  # 100 steps of 8 images at 16 a second
    assert "checkpoint after step 200" in text
    assert "0.0 % (3)" in text
    assert "of a step's time: data 2 %" in text
    assert "--dex.lambda-balance" in text
    (curve,) = (line for line in lines if line.startswith("objective"))
    assert len(curve.split()[-1]) > width - 60


def test_a_model_without_experts_has_no_panel_of_them_and_a_short_run_no_curve(tmp_path):
    dense = shown(course(tmp_path, load=[], mlp="dense", similarity=None), 80)
    assert "objective" in dense
    assert "gates by expert" not in dense
    empty = shown(course(tmp_path, scalars={}, load=[], steps=0, standing=Standing.WAITING), 80)
    assert "has not done a step yet" in " ".join(empty.split())
    assert "objective" not in empty


def test_a_run_whose_length_is_not_told_shows_its_steps(tmp_path):
    assert "step 400, epoch 0" in shown(course(tmp_path, total_steps=0), 80)


def test_every_advice_is_on_the_screen(tmp_path):
    found = apart(tmp_path, 400, 0.69)
    (one,) = advise(found)
    text = " ".join(shown(found, 80).split())
    assert one.problem in text
    assert one.remedy in text


def test_a_sparkline_rises_with_its_numbers_and_leaves_gaps_where_there_is_none():
    assert sparkline(np.arange(8.0), 8) == "▁▂▃▄▅▆▇█"
    assert sparkline(np.arange(80.0), 8) == "▁▂▃▄▅▆▇█"
    assert sparkline(np.array([0, np.nan, 1]), 8) == "▁ █"
    assert sparkline(np.array([3.0, 3.0]), 8) == "▁▁"
    assert sparkline(np.array([0.0, 5.0]), 8, low=0, high=2) == "▁█"
    assert sparkline(np.array([]), 8) == ""
    assert sparkline(np.array([np.nan]), 8) == " "
