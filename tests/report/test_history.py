import json
import math

import numpy as np
import pytest
from made_runs import similarity_record, step_record

from dexcore.report.history import History, SimilarityCourse


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
    assert history.skipped.tolist() == [False]  # not said: by no version of the trainer


def test_skipped_steps_are_those_that_the_file_says_were(tmp_path):
    """A gradient may be lost where the loss is not."""
    records = [step_record(0), step_record(1, lost=True), {**step_record(2), "grad_norm": None, "skipped": True}]
    assert History.read(write(tmp_path / "metrics.jsonl", records)).skipped.tolist() == [False, True, True]


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
        ('{"step": 0}\n{"step": 0}\n', "line 2: step 0, expected step 1: every step once"),
        ('{"step": 0}\n{"step": 1}\n{"step": 3}\n', "line 3: step 3, expected step 2: every step once"),
        ('{"step": 1}\n{"step": 2}\n', "line 1: step 1, expected step 0: every step once"),
        ('{"step": 0}\n{"step": 1, "lo\n{"step": 2}\n', "line 2: expected a JSON object"),
        ('{"step": 0, "skipped": "no"}\n', "skipped is neither true nor false in every step"),
        ('{"step": 0, "lr": "high"}\n', "lr is not a number in every step"),
        ('{"step": 0, "load": [[1]]}\n{"step": 1, "load": [[1], [1]]}\n', "not the same list of blocks"),
        ('{"step": 0, "load": [[1]]}\n{"step": 1, "load": [[0.5, 0.5]]}\n', "not the same list of blocks"),
        ('{"step": 0, "load": [1]}\n', "not a list of numbers in 1 axes an entry a block"),
    ],
)
def test_what_is_damaged_is_named(tmp_path, content, message):
    (tmp_path / "metrics.jsonl").write_text(content)
    with pytest.raises(ValueError, match=rf"metrics\.jsonl.*{message}"):
        History.read(tmp_path / "metrics.jsonl")


def test_the_experts_course_comes_out_as_it_was_written(tmp_path):
    path = write(tmp_path / "similarity.jsonl", [similarity_record(step, (4, 1)) for step in (0, 3)])
    path.write_bytes(path.read_bytes().replace(b"0.625", b"null", 1) + b'{"step": 6, "bl')  # cut by a kill
    course = SimilarityCourse.read(path)
    assert course.step.tolist() == [0, 3]
    assert [block.shape for block in course.blocks] == [(2, 5, 5), (2, 2, 2)]
    assert course.blocks[0][1, 0, 1] == 0.25
    assert np.isnan(course.blocks[0]).sum() == 1


def test_a_folder_without_the_experts_course_has_no_moment(tmp_path):
    course = SimilarityCourse.read(tmp_path / "similarity.jsonl")
    assert (len(course.step), course.blocks) == (0, ())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"step"\n{"step": 1}\n', "line 1: expected a JSON object"),
        ('{"step": 4, "blocks": []}\n{"step": 4, "blocks": []}\n', "line 2: step 4 after 4"),
        ('{"step": 0, "blocks": [[[1, 0], [0, "a"]]]}\n', "not the same list of blocks"),
        ('{"step": 0, "blocks": [[1, 0]]}\n', "not a list of numbers in 2 axes"),
        ('{"step": 0, "blocks": [[[1, 0, 1], [0, 1, 1]]]}\n', "something else than matrices"),
        ('{"step": 0, "blocks": [[[1]]]}\n', "something else than matrices"),
    ],
)
def test_what_is_damaged_in_the_experts_course_is_named(tmp_path, content, message):
    (tmp_path / "similarity.jsonl").write_text(content)
    with pytest.raises(ValueError, match=rf"similarity\.jsonl.*{message}"):
        SimilarityCourse.read(tmp_path / "similarity.jsonl")


def test_the_alignment_above_its_floor_is_read_and_a_moment_without_it_is_nan(tmp_path):
    records = [similarity_record(step, [4, 2]) for step in (0, 1, 3)]
    records[1].pop("align")
    records[2]["align"]["loss"][1] = None
    course = SimilarityCourse.read(write(tmp_path / "similarity.jsonl", records))
    np.testing.assert_allclose(course.align, [[1, 1], [np.nan, np.nan], [0.25, np.nan]])
    assert course.align_kind == "kd"
    older = SimilarityCourse.read(
        write(tmp_path / "older.jsonl", [{k: r[k] for k in ("step", "blocks")} for r in records])
    )
    assert (older.align_kind, np.isnan(older.align).all()) == ("", True)


def test_an_alignment_of_other_blocks_is_named(tmp_path):
    record = similarity_record(0, [4, 2])
    record["align"]["floor"] = [5.0, 5.0, 5.0]
    with pytest.raises(ValueError, match=r"similarity\.jsonl: align is not a loss and a floor for each of 2 blocks"):
        SimilarityCourse.read(write(tmp_path / "similarity.jsonl", [record]))
