import json
import math

import numpy as np
import pytest
from made_runs import step_record

from dexcore.report.history import History


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_columns_come_out_as_they_were_written(tmp_path):
    path = write(tmp_path / "metrics.jsonl", [step_record(step, load=(4, 2)) for step in (0, 1, 2)])
    history = History.read(path)
    assert history.step.tolist() == [0, 1, 2]
    assert history.scalars["loss_self"].tolist() == [1, 1 / 2, 1 / 3]
    assert [load.shape for load in history.load] == [(3, 4), (3, 2)]
    assert (history.load[1] == 0.5).all()


@pytest.mark.parametrize("text", ["null", "NaN"])
def test_a_loss_that_is_no_number_is_nan(tmp_path, text):
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 0, "loss_self": {text}}}\n')
    history = History.read(tmp_path / "metrics.jsonl")
    assert math.isnan(history.scalars["loss_self"][0])
    assert np.isnan(history.scalars["momentum"]).all()
    assert history.load == ()


def test_a_last_line_cut_by_a_kill_is_left_out(tmp_path):
    path = write(tmp_path / "metrics.jsonl", [step_record(0), step_record(1)])
    path.write_bytes(path.read_bytes()[:-20])
    assert History.read(path).step.tolist() == [0]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"metrics\.jsonl: no such file"):
        History.read(tmp_path / "metrics.jsonl")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no step in it"),
        ("\n\n", "no step in it"),
        ('{"step": 0', "no step in it"),
        ('{"step"\n{"step": 1}\n', "line 1: expected a JSON object"),
        ("[1]\n", "line 1: expected a JSON object with an integer step"),
        ('{"loss": 1}\n', "line 1: expected a JSON object with an integer step"),
        ('{"step": 4}\n{"step": 4}\n', "line 2: step 4 after 4"),
        ('{"step": 0, "lr": "high"}\n', "lr is not a number in every step"),
        ('{"step": 0, "load": [[1]]}\n{"step": 1, "load": [[1], [1]]}\n', "not the same list of blocks"),
        ('{"step": 0, "load": [[1]]}\n{"step": 1, "load": [[0.5, 0.5]]}\n', "not the same list of blocks"),
        ('{"step": 0, "load": [1]}\n', "not a list of expert shares"),
    ],
)
def test_what_is_damaged_is_named(tmp_path, content, message):
    (tmp_path / "metrics.jsonl").write_text(content)
    with pytest.raises(ValueError, match=rf"metrics\.jsonl.*{message}"):
        History.read(tmp_path / "metrics.jsonl")
