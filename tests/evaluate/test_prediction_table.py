"""The table of predictions: what is appended, what is written anew, what a kill may leave."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
from made_tasks import picture, save

from dexcore.evaluate.prediction import written
from dexcore.evaluate.prediction.files import AskedFile
from dexcore.evaluate.prediction.written import TABLE, Table, holds_predictions
from dexcore.models import TaskDescription

LABELS = TaskDescription("made", "classification", ("sound", "ill"), ("X-ray",), normalization="div255")
MASKS = TaskDescription("made", "segmentation", ("background", "lesion"), ("X-ray",), crop="whole")


def row(image, name=None, label="ill"):
    return {
        "image": str(image),
        "label": label,
        "probability of sound": "0.250000",
        "probability of ill": "0.750000",
        "picture": f"{name}_picture.png" if name else "",
    }


def mask_row(image, mask):
    return {
        "image": str(image),
        "mask": mask,
        "share of background": "0.250000",
        "share of lesion": "0.750000",
        "picture": "",
    }


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def rewrites(monkeypatch):
    """How many times a table was written as a whole."""
    calls = []

    def counted(path, content):
        calls.append(path)
        write_whole(path, content)

    write_whole = written.write_whole
    monkeypatch.setattr(written, "write_whole", counted)
    return calls


def test_rows_are_appended_and_the_file_is_as_if_it_were_written_as_a_whole(tmp_path, rewrites):
    path = tmp_path / TABLE
    table = Table(path, LABELS)
    rows = [row(f'case {number}/a, "b".png', f"a{number}") for number in range(6)]
    for one in rows[:3]:
        table.add([one])
    assert len(rewrites) == 1  # of the new file
    Table(path, LABELS).add(rows[3:5])
    table = Table(path, LABELS)
    table.add(rows[5:])
    assert len(rewrites) == 1
    assert rows_of(path) == rows
    Table(tmp_path / "whole.csv", LABELS).add(rows)
    assert path.read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_it_is_written_anew_where_an_earlier_row_goes(tmp_path, rewrites):
    path = tmp_path / TABLE
    table = Table(path, LABELS)
    table.add([row("a.png"), row("b.png")])
    table.add([row("a.png", label="sound")])
    assert len(rewrites) == 2
    assert [(one["image"], one["label"]) for one in rows_of(path)] == [("b.png", "ill"), ("a.png", "sound")]
    table.add([row("c.png")])
    assert len(rewrites) == 2
    masks = Table(tmp_path / "masks.csv", MASKS)
    masks.add([mask_row("s.nii#axial=0", "s_mask.nii.gz")])
    masks.add([mask_row("s.nii#coronal=0", "s_mask.nii.gz")])  # its mask was written over
    masks.add([mask_row("t.nii#coronal=0", "t_mask.nii.gz")])
    assert [one["image"] for one in rows_of(tmp_path / "masks.csv")] == ["s.nii#coronal=0", "t.nii#coronal=0"]


def test_a_name_that_a_row_gave_up_is_free_again(tmp_path):
    images = [str(save(tmp_path / case / "a.png", picture(0))) for case in "xy"]
    first, second = (AskedFile(image, LABELS) for image in images)
    table = Table(tmp_path / TABLE, LABELS)
    assert table.name_of(second) == "a"
    table.add([row(images[0], "A")])  # names are told apart without regard to their case
    assert table.name_of(first) == "a"
    assert table.name_of(second) == "a.png"
    assert Table(tmp_path / TABLE, LABELS).name_of(second) == "a.png"
    table.add([row(images[0])])
    assert table.name_of(second) == "a"


def test_a_table_that_is_cut_anywhere_in_its_last_line_is_opened_without_it(tmp_path):
    path = tmp_path / TABLE
    table = Table(path, LABELS)
    kept = [row("a.png", "a"), row("b.png")]
    table.add(kept)
    before = path.stat().st_size
    new = row('line\nand "quote", ä.png', "ä")
    table.add([new])
    content = path.read_bytes()
    for end in range(before, len(content) - 1):
        path.write_bytes(content[:end])
        Table(path, LABELS).add([row("d.png", "d")])
        images = [one["image"] for one in rows_of(path)]
        if content[:end].endswith(b","):  # all columns are there; the last is empty as without a picture
            assert images in (["a.png", "b.png", "d.png"], ["a.png", "b.png", new["image"], "d.png"])
        else:
            assert images == ["a.png", "b.png", "d.png"], end
        assert rows_of(path)[:2] == kept
        assert None not in rows_of(path)[-1].values()


def test_a_last_line_that_an_editor_left_without_an_end_stays(tmp_path):
    path = tmp_path / TABLE
    Table(path, LABELS).add([row("a.png"), row("b.png", "b")])
    for ending in (b"\n", b"\r\n"):
        path.write_bytes(path.read_bytes().rstrip(b"\r\n").replace(b"\n", ending))
        Table(path, LABELS).add([row("c.png")])
        assert [one["image"] for one in rows_of(path)] == ["a.png", "b.png", "c.png"]
        assert b"\r" not in path.read_bytes()
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


def test_a_table_that_is_gone_or_grew_meanwhile_is_written_with_all_rows(tmp_path):
    path = tmp_path / TABLE
    table = Table(path, LABELS)
    table.add([row("a.png")])
    path.unlink()
    table.add([row("b.png")])
    assert [one["image"] for one in rows_of(path)] == ["a.png", "b.png"]
    with open(path, "a") as file:
        file.write("another,")
    table.add([row("c.png")])
    assert [one["image"] for one in rows_of(path)] == ["a.png", "b.png", "c.png"]


def test_a_full_disk_leaves_the_table_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / TABLE
    table = Table(path, LABELS)
    table.add([row("a.png")])
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=TABLE):
            table.add([row("b.png")])
    assert path.read_bytes() == before
    table.add([row("c.png")])
    assert [one["image"] for one in rows_of(path)] == ["a.png", "b.png", "c.png"]


_ENDLESS = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_prediction_table import LABELS, row
from dexcore.evaluate.prediction.written import Table
table = Table(Path(sys.argv[1]), LABELS)
print("begun", flush=True)
for number in range(10**9):
    table.add([row(f"{'long' * 500}/{number}#{inside}", number) for inside in range(20)])
    if number == 3:
        print("some", flush=True)
"""


def test_a_killed_process_leaves_a_table_that_is_opened_and_goes_on(tmp_path):
    path = tmp_path / TABLE
    arguments = [sys.executable, "-c", _ENDLESS, str(path), str(Path(__file__).parent)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        while process.stdout.readline() != "some\n":
            assert process.poll() is None
        process.kill()
    Table(path, LABELS).add([row("end.png", "end")])
    rows = rows_of(path)
    assert rows[-1] == row("end.png", "end")
    assert len(rows) > 60
    assert all(None not in one.values() and None not in one for one in rows)


def test_a_table_of_predictions_is_known_by_its_columns(tmp_path):
    assert not holds_predictions(tmp_path)
    path = tmp_path / TABLE
    for task, one in ((LABELS, row("a.png")), (MASKS, mask_row("a.png", "a_mask.png"))):
        Table(path, task).add([one])
        assert holds_predictions(tmp_path)
        path.unlink()
    for foreign in (
        b"",
        b"image,label\n",
        b"image,label,age,picture\n",
        b"\xff\xfe\0",
        b"image,mask,probability of a,b\n",
    ):
        path.write_bytes(foreign)
        assert not holds_predictions(tmp_path)
    path.unlink()
    path.mkdir()
    assert not holds_predictions(tmp_path)
