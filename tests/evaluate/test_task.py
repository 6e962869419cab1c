"""Tasks: what their files say, what is read of them, and who may see test labels."""

import ast
import hashlib
import os
from itertools import islice
from pathlib import Path

import nibabel
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_tasks import SEGMENTATION, labelled, masked, picture, save, write
from PIL import Image

import dexcore
from dexcore.data.assemble.slices import slices
from dexcore.data.normalize import limits, window
from dexcore.evaluate.tasks import Task, TaskError, TestLabelsError, pixels
from dexcore.evaluate.tasks.spec import DrawnSplit
from dexcore.evaluate.tasks.split import draw_split


def test_a_task_gives_its_rows_images_and_labels(tmp_path):
    task = Task.open(write(tmp_path, labelled(tmp_path), positive="ill"))
    assert (task.name, task.kind, task.classes, task.spec.metric) == (
        "made",
        "classification",
        ("sound", "ill"),
        "auroc",
    )
    assert [len(task.split(name)) for name in ("train", "val", "test")] == [8, 4, 12]
    row = task.split("train")[0]
    assert (row.image, row.case, row.modality, row.line) == ("sound-0-0.png", "sound-0", "X-ray", 2)
    np.testing.assert_array_equal(task.image(row), picture(0) / np.float32(255))
    assert task.label(row) == 0
    np.testing.assert_array_equal(task.labels(task.split("val")), [0, 0, 1, 1])


def test_a_table_in_parquet_is_the_same_task(tmp_path):
    rows = [row | {"weight": 2.0, "slice": None} for row in labelled(tmp_path)]
    one = Task.open(write(tmp_path, rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "made.parquet")
    two = Task.open(write(tmp_path, rows, table="made.parquet"))
    assert two.rows == one.rows
    assert two.rows[0].weight == 2.0
    assert two.fingerprint == one.fingerprint


def test_the_label_of_a_test_image_is_refused_but_to_the_reference(tmp_path):
    task = Task.open(write(tmp_path / "a", labelled(tmp_path / "a")))
    segmentation = Task.open(write(tmp_path / "b", masked(tmp_path / "b"), **SEGMENTATION))
    row = task.split("test")[0]
    with pytest.raises(TestLabelsError, match=r"sound-3-0\.png \(test\) was asked for"):
        task.label(row)
    with pytest.raises(TestLabelsError):
        task.labels(task.split("test"))
    for read in (segmentation.mask, segmentation.mask_paths):
        with pytest.raises(TestLabelsError):
            read(segmentation.split("test")[0])
    assert task.reference().label(row) == 0
    assert segmentation.reference().mask(segmentation.split("test")[0]).shape == (20, 24)


def test_only_scores_and_checks_ask_for_the_reference():
    package = Path(dexcore.__file__).parent
    asking = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "reference"
    }
    assert asking <= {
        "evaluate/tasks/task.py",  # the fingerprint
        "evaluate/tasks/check.py",
        "evaluate/scores/gather.py",
        "evaluate/probes/fewshot.py",  # the score of its episodes
        "evaluate/probes/retrieval.py",  # the score of what its queries find
        "evaluate/claims/of_tasks.py",  # the same across modalities
        "evaluate/page/cases.py",  # pictures of scored cases
    }


@pytest.mark.parametrize(("kind", "value"), [(np.uint8, 7), (np.uint16, 1000)])
def test_masks_keep_their_values_at_their_own_size(tmp_path, kind, value):
    """Trap 8: labels {0, 3, 7} stay so, and masks of 16 bits survive."""
    rows = masked(tmp_path, (0, 3, value), kind)
    task = Task.open(
        write(tmp_path, rows, kind="segmentation", classes=[f"class {number}" for number in range(value + 1)])
    )
    for row in task.rows:
        mask = task.reference().mask(row)
        stored = np.asarray(Image.open(tmp_path / row.image.replace(".png", "_mask.png")))
        np.testing.assert_array_equal(mask, stored)
        assert set(np.unique(mask)) == {0, 3, value}
        assert mask.dtype.kind == "u"


def test_mask_values_map_numbers_ranges_palettes_and_colours(tmp_path):
    save(tmp_path / "x.png", picture(0, (2, 3)))
    row = {"image": "x.png", "mask": "m.png", "split": "train", "case": "p"}
    keys = {"kind": "segmentation", "classes": ["background", "nerve"], "ignore": 255}
    save(tmp_path / "m.png", np.array([[0, 1, 9], [128, 255, 5]], np.uint8))
    task = Task.open(write(tmp_path, [row], mask_values={0: 0, "1-128": "nerve", 255: "ignore"}, **keys))
    np.testing.assert_array_equal(task.mask(task.rows[0]), [[0, 1, 1], [1, 255, 1]])

    palette = Image.fromarray(np.array([[0, 1, 1], [0, 0, 1]], np.uint8))
    palette.putpalette([7, 7, 7, 200, 0, 0])
    palette.save(tmp_path / "m.png")
    task = Task.open(write(tmp_path, [row], **keys))
    np.testing.assert_array_equal(task.mask(task.rows[0]), [[0, 1, 1], [0, 0, 1]])

    by_colour = {"#070707": "background", "#c80000": "nerve"}
    task = Task.open(write(tmp_path, [row], mask_values=by_colour, **keys))
    np.testing.assert_array_equal(task.mask(task.rows[0]), [[0, 1, 1], [0, 0, 1]])

    colours = np.zeros((2, 3, 3), np.uint8)
    colours[0, 1] = 255, 0, 16
    save(tmp_path / "m.png", colours)
    task = Task.open(write(tmp_path, [row], mask_values={"#000000": 0, "#ff0010": "nerve"}, **keys))
    np.testing.assert_array_equal(task.mask(task.rows[0]), [[0, 1, 0], [0, 0, 0]])
    task = Task.open(write(tmp_path, [row], **keys))
    with pytest.raises(TaskError, match=r"made.csv, line 2: .*m.png: holds colours"):
        task.mask(task.rows[0])


def test_an_absent_channel_is_empty_and_channels_may_overlap(tmp_path):
    save(tmp_path / "x.png", picture(0, (2, 2)))
    save(tmp_path / "a.png", np.array([[255, 0], [255, 0]], np.uint8))
    rows = [{"image": "x.png", "mask_MA": "a.png", "mask_SE": "", "mask_EX": "a.png", "split": "train", "case": "p"}]
    task = Task.open(
        write(tmp_path, rows, kind="multilabel_segmentation", classes=["MA", "SE", "EX"], mask_values={0: 0, 255: 1})
    )
    mask = task.mask(task.rows[0])
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask.sum(axis=(1, 2)), [2, 0, 2])


def test_several_labels_stand_in_one_cell(tmp_path):
    rows = [row | {"label": "ill;sound" if number else ""} for number, row in enumerate(labelled(tmp_path)[:2])]
    task = Task.open(write(tmp_path, rows, kind="multilabel"))
    np.testing.assert_array_equal(task.labels(task.rows), [[False, False], [True, True]])


def test_names_that_are_numbers_are_names(tmp_path):
    """Trap 12: classes "2" and "10" are told by name, in the order of the YAML, whatever a split lacks."""
    rows = [row | {"label": {"sound": "2", "ill": "10"}[row["label"]]} for row in labelled(tmp_path)]
    task = Task.open(write(tmp_path, rows, classes=["10", "2"]))
    assert {(row.case[:3], task.reference().label(row)) for row in task.rows} == {("sou", 1), ("ill", 0)}
    rows[5]["label"] = "1"
    task = Task.open(write(tmp_path, rows, classes=["10", "2"]))
    with pytest.raises(TaskError, match="line 7: label is '1', expected one of 10, 2"):
        task.reference().labels(task.rows)


def test_one_picture_in_8_and_16_bits_and_floats_is_the_same_image(tmp_path):
    """Trap 17."""
    pixels = picture(0)
    save(tmp_path / "8.png", pixels)
    save(tmp_path / "16.png", pixels.astype(np.uint16) * 257)
    np.save(tmp_path / "float.npy", pixels / np.float32(255))
    rows = [{"image": name, "label": 0, "split": "train", "case": name} for name in ("8.png", "16.png", "float.npy")]
    task = Task.open(write(tmp_path, rows))
    np.testing.assert_allclose(task.image(task.rows[1]), task.image(task.rows[0]), atol=1e-7)
    with pytest.raises(
        TaskError, match=r"line 4: .*float.npy: holds float32 values, and nobody states which are black"
    ):
        task.image(task.rows[2])
    task = Task.open(write(tmp_path, rows, range=[0, 1]))
    np.testing.assert_allclose(task.image(task.rows[2]), pixels / np.float32(255), atol=1e-7)
    with pytest.raises(TaskError, match=r"line 2: .*8.png: holds 25\d, the task's range is 0 to 1"):
        task.image(task.rows[0])


def test_a_declared_range_scales_12_bits_and_refuses_more(tmp_path):
    save(tmp_path / "a.png", np.array([[0, 4095]], np.uint16))
    save(tmp_path / "b.png", np.array([[0, 4096]], np.uint16))
    rows = [{"image": name, "label": 0, "split": "train", "case": name} for name in ("a.png", "b.png")]
    task = Task.open(write(tmp_path, rows, range=[0, 4095]))
    np.testing.assert_array_equal(task.image(task.rows[0]), [[0, 1]])
    with pytest.raises(TaskError, match=r"line 3: .*b.png: holds 4096, the task's range is 0 to 4095"):
        task.image(task.rows[1])


def test_a_split_is_drawn_once_and_written_into_the_table(tmp_path):
    rows = [{key: row[key] for key in ("image", "label", "case")} for row in labelled(tmp_path)]
    drawn = {"by": "case", "stratify": "label", "fractions": [0.5, 0.2, 0.3], "seed": 3}
    path = write(tmp_path, rows, split=drawn)
    first = Task.open(path)
    table = (tmp_path / "made.csv").read_text()
    assert table.splitlines()[0] == "image,label,case,split"
    path.write_text(path.read_text().replace("seed: 3", "seed: 4"))
    again = Task.open(path)
    assert again.fingerprint == first.fingerprint
    assert (tmp_path / "made.csv").read_text() == table
    splits_of = {}
    for row in first.rows:
        splits_of.setdefault(row.case, set()).add(row.split)
    assert all(len(splits) == 1 for splits in splits_of.values())
    for name in ("sound", "ill"):
        assert {row.split for row in first.rows if row.case.startswith(name)} == {"train", "val", "test"}
    with open(tmp_path / "made.csv", "a") as file:
        file.write("sound-0-0.png,sound,new,\n")
    with pytest.raises(TaskError, match="line 26: split is empty"):
        Task.open(path)


def test_a_drawn_split_keeps_shares_whatever_the_order_of_rows():
    groups = [f"p{number // 3}" for number in range(600)]
    strata = [str(number // 3 % 2) for number in range(600)]
    drawn = DrawnSplit("case", "label", (0.7, 0.1, 0.2), 0)
    splits = draw_split(groups, strata, drawn)
    assert {name: splits.count(name) for name in ("train", "val", "test")} == {"train": 420, "val": 60, "test": 120}
    assert draw_split(groups[::-1], strata[::-1], drawn) == splits[::-1]
    assert draw_split(groups, strata, DrawnSplit("case", "label", (0.7, 0.1, 0.2), 1)) != splits
    small = draw_split(["a", "b", "c"], [""] * 3, drawn)
    assert sorted(small) == ["test", "train", "val"]


def test_labels_of_several_classes_are_split_by_the_rarest():
    """Nearly every case has a combination of its own."""
    rng = np.random.default_rng(0)
    rates = rng.uniform(0.05, 0.4, 14)
    rates[0] = 0.02
    labels = rng.random((600, 14)) < rates
    strata = [";".join(f"c{index}" for index in np.flatnonzero(row)) for row in labels]
    splits = np.array(draw_split([f"p{n}" for n in range(600)], strata, DrawnSplit("case", "label", (0.7, 0.1, 0.2))))
    for name, share in (("train", 0.7), ("val", 0.1), ("test", 0.2)):
        assert abs((splits == name).mean() - share) < 0.03
        assert labels[splits == name, 0].sum() == pytest.approx(share * labels[:, 0].sum(), abs=1)


def test_a_task_of_several_labels_may_have_images_of_no_class_when_its_split_is_drawn(tmp_path):
    rows = [{"image": row["image"], "label": "", "case": row["case"]} for row in labelled(tmp_path)]
    for row in rows[:12]:
        row["label"] = "sound;ill"
    drawn = {"by": "case", "stratify": "label", "fractions": [0.4, 0.2, 0.4]}
    task = Task.open(write(tmp_path, rows, kind="multilabel", split=drawn))
    for name in ("train", "val", "test"):
        assert {bool(task.reference().label(row).any()) for row in task.split(name)} == {False, True}


def test_many_small_classes_do_not_bend_the_shares():
    groups, strata = [f"p{number}" for number in range(90)], [f"c{number // 3}" for number in range(90)]
    splits = draw_split(groups, strata, DrawnSplit("case", "label", (0.7, 0.1, 0.2)))
    assert [splits.count(name) for name in ("train", "val", "test")] == [63, 9, 18]


def test_a_split_that_misses_its_shares_is_told():
    groups = ["large"] * 500 + [f"p{number}" for number in range(99)]
    with pytest.warns(UserWarning, match="has .*% of the images in train, asked were 50%; .* in test"):
        draw_split(groups, [""] * 599, DrawnSplit("case", None, (0.5, 0.0, 0.5)))


def test_a_split_and_marks_leave_the_other_columns_of_a_parquet_table_as_they_are(tmp_path):
    rows = [row | {"age": number, "split": None} for number, row in enumerate(labelled(tmp_path, 1))]
    write(tmp_path, rows)
    made = pa.Table.from_pylist(rows).replace_schema_metadata({"who": "me"})
    pq.write_table(made, tmp_path / "made.parquet")
    path = write(tmp_path, rows, table="made.parquet", split={"by": "case"})
    first, second = (row.image for row in Task.open(path).rows[:2])
    Task.open(path).mark_seen({first: "near"})
    Task.open(path).mark_seen({first: "exact", second: "near"})
    task = Task.open(path).mark_seen({first: "near"})  # another store: what is marked stays, the stronger mark
    assert [row.seen for row in task.rows[:3]] == ["exact", "near", ""]
    assert Task.open(path).rows == task.rows
    written = pq.read_table(tmp_path / "made.parquet")
    assert written.drop(["split", "seen"]).equals(made.drop(["split"]), check_metadata=True)


@given(st.lists(st.tuples(st.integers(0, 15), st.integers(0, 2)), min_size=1, max_size=60), st.integers(0, 5))
def test_a_drawn_split_tears_no_group_and_leaves_no_stratum_out(rows, seed):
    groups = [f"p{group}" for group, _ in rows]
    strata = [str(stratum) for _, stratum in rows]
    splits = draw_split(groups, strata, DrawnSplit("case", "label", (0.6, 0.2, 0.2), seed))
    of_group = {}
    for group, split in zip(groups, splits, strict=True):
        assert of_group.setdefault(group, split) == split
    if len(set(strata)) == 1 and len(of_group) >= 3:
        assert set(of_group.values()) == {"train", "val", "test"}
    alone = draw_split(groups, strata, DrawnSplit("case", "label", (0.6, 0.0, 0.4), seed))
    assert "val" not in alone


def test_the_codes_of_a_volume_stay_codes(tmp_path):
    """At half of the memory; the pixels are those of the values."""
    voxels = np.random.default_rng(0).integers(0, 4000, (12, 11, 5)).astype(np.int16)
    volume = nibabel.Nifti1Image(voxels, np.diag([1.0, 1.0, 3.0, 1.0]))
    volume.header.set_slope_inter(0.5, -1024)
    nibabel.save(volume, tmp_path / "a.nii.gz")
    rows = [
        {"image": f"a.nii.gz#axial={index}", "label": "ill", "split": "train", "case": "a", "modality": modality}
        for index, modality in enumerate(("CT", "MR", "X-ray"))
    ]
    task = Task.open(write(tmp_path, rows, modality="column", units="HU", range=[-1024, 2048]))
    found = [task.image(row) for row in task.rows]
    opened = pixels.read_plane(str(tmp_path / rows[0]["image"])).opened
    assert opened.scan.held._tables  # not widened
    for row, image in zip(task.rows, found, strict=True):
        plane = next(islice(slices(opened.scan.pixels, 2), row.slice, None))
        levels = {"CT": (-200, 400), "MR": limits(opened.scan.pixels, "percentile_minmax"), "X-ray": (-1024, 2048)}
        np.testing.assert_array_equal(image, window(np.ascontiguousarray(plane), levels[row.modality]))


def test_the_fingerprint_hangs_on_what_decides_a_number(tmp_path):
    rows = masked(tmp_path, (0, 255))
    keys = SEGMENTATION | {"mask_values": {0: 0, 255: 1}}
    known = Task.open(write(tmp_path, rows, **keys)).fingerprint
    same = [
        (rows[::-1], keys),
        (rows, keys | {"name": "other", "about": "notes"}),
        (rows, keys | {"root": str(tmp_path)}),
    ]
    for table, said in same:
        assert Task.open(write(tmp_path, table, **said)).fingerprint == known
    moved = [rows[0] | {"split": "val"}, *rows[1:]]
    masks = [rows[0] | {"mask": "1_mask.png"}, *rows[1:]]
    changed = [
        (rows[1:], keys),
        (moved, keys),
        (masks, keys),
        (rows, keys | {"mask_values": {0: 1, 255: 0}}),
        (rows, keys | {"classes": ["background", "nerve"]}),
        (rows, keys | {"metric": "dice_kaggle"}),
        (rows, keys | {"ignore": 255}),
        (rows, keys | {"range": [0, 255]}),
    ]
    found = {Task.open(write(tmp_path, table, **said)).fingerprint for table, said in changed}
    assert len(found - {known}) == len(changed)
    kaggle = [keys | said for said in ({"empty": "kaggle"}, {"empty": "kaggle", "metric": "dice"}, changed[5][1])]
    assert len({Task.open(write(tmp_path, rows, **said)).fingerprint for said in kaggle}) == 1
    labels = labelled(tmp_path / "labels")
    by_name = Task.open(write(tmp_path / "labels", labels)).fingerprint
    by_index = [row | {"label": ["sound", "ill"].index(row["label"])} for row in labels]
    assert Task.open(write(tmp_path / "labels", by_index)).fingerprint == by_name


@pytest.mark.parametrize("name", ["0_mask.png", "0_mask.nii.gz", "0_mask.mha"])
def test_a_mask_that_is_rewritten_in_its_place_makes_another_fingerprint(tmp_path, name):
    def put(mask):
        if name.endswith("png"):
            save(tmp_path / name, mask)
        elif name.endswith("mha"):
            pytest.importorskip("SimpleITK").WriteImage(
                pytest.importorskip("SimpleITK").GetImageFromArray(mask), str(tmp_path / name)
            )
        else:
            nibabel.save(nibabel.Nifti1Image(mask[..., None], np.eye(4)), tmp_path / name)

    rows = masked(tmp_path)
    rows[0]["mask"] = name
    mask = np.random.default_rng(100).integers(0, 2, (20, 24)).astype(np.uint8)
    put(mask)
    path = write(tmp_path, rows, **SEGMENTATION)
    before = Task.open(path).fingerprint
    assert Task.open(path).fingerprint == before
    mask[3, 4] ^= 1
    put(mask)
    assert Task.open(path).fingerprint != before
    mask[3, 4] ^= 1
    put(mask)
    assert name.endswith("gz") or Task.open(path).fingerprint == before  # gzip writes the time
    (tmp_path / name).unlink()
    with pytest.raises(TaskError, match=rf"made.csv, line 2: .*{name}"):
        assert Task.open(path).fingerprint


def test_a_file_that_did_not_change_is_hashed_once(tmp_path, monkeypatch):
    task = Task.open(write(tmp_path, masked(tmp_path), **SEGMENTATION))
    for path in tmp_path.glob("*.png"):
        os.utime(path, (10**9, 10**9))  # not just written
    known, read = task.fingerprint, []
    monkeypatch.setattr(hashlib, "file_digest", lambda *given: read.append(given))
    assert Task.open(task.spec.path).fingerprint == known
    assert not read


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"clases": ["a"]}, "made.yaml, line 6: clases is no key: expected one of name, .*did you mean classes?"),
        ({"kind": "segment"}, "line 2: kind is 'segment', expected one of classification, .*segmentation"),
        ({"modality": "Xray"}, "line 1: modality is 'Xray', expected one of CT, .*column"),
        ({"classes": {0: "a", 2: "b"}}, "line 3: classes has the keys 0, 2, expected 0 to 1"),
        ({"classes": ["a", "a"]}, "classes holds 'a', which stands there twice"),
        ({"classes": ["a"]}, "classes holds 1, expected at least two"),
        ({"classes": [False, True]}, "classes is False, expected a text"),
        ({"metric": "dice"}, "metric is 'dice', expected of classification one of auroc"),
        ({"positive": "bad"}, "positive is 'bad', expected one of sound, ill"),
        ({"ignore": 255}, "ignore is about masks, the task's kind is classification"),
        ({"empty": "kaggle"}, "empty is about masks, the task's kind is classification"),
        (SEGMENTATION | {"empty": "kaggle", "metric": "iou"}, "empty is kaggle, a rule of dice; the metric is iou"),
        (SEGMENTATION | {"empty": "nnunet", "metric": "dice_kaggle"}, "the metric is dice_kaggle: expected one"),
        ({"split": {"fractions": [0.5, 0.1, 0.1]}}, "split.fractions sums to 0.7, expected 1"),
        ({"split": "drawn"}, "split is 'drawn', expected one of column"),
        ({"range": [5, 1]}, "range is .5, 1., expected the values of black and white"),
        ({"normalization": "div256"}, "normalization is 'div256', expected one of .*div255"),
        (SEGMENTATION | {"ignore": 1}, "ignore is 1, expected a value that is no class: 2 or more"),
        (SEGMENTATION | {"mask_values": {0: 0, 255: 2}}, "mask_values.255 is 2, expected a class: 0 to 1"),
        (SEGMENTATION | {"mask_values": {"0-9": 0, 5: 1}}, "mask_values.5 lies in 0-9"),
        (SEGMENTATION | {"mask_values": {"red": 0}}, "mask_values.red is no value of a mask"),
        (SEGMENTATION | {"mask_values": {0: 0, 255: "ignore"}}, "mask_values.255 is ignore, expected a key ignore"),
        ({"table": "none.csv"}, "none.csv: No such file"),
    ],
)
def test_a_yaml_that_is_none_is_told_with_line_key_and_what_was_expected(tmp_path, keys, told):
    path = write(tmp_path, labelled(tmp_path, 1), **keys)
    with pytest.raises(TaskError, match=told):
        Task.open(path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"split": "testing"}, "task made: .*made.csv, line 3: split is 'testing', expected one of train, val, test"),
        ({"image": "sound-0-0.png"}, "line 3: sound-0-0.png stands in line 2 too"),
        ({"image": ""}, "line 3: image is empty"),
        ({"case": ""}, "line 3: case is empty"),
        ({"spacing_y": "x"}, "line 3: spacing_y is 'x', expected a number above 0"),
        ({"slice": "1.5"}, "line 3: slice is '1.5', expected a whole number from 0"),
        ({"weight": "-1"}, "line 3: weight is '-1', expected a number above 0"),
        ({"seen": "yes"}, "line 3: seen is 'yes', expected exact, near or nothing"),
    ],
)
def test_a_row_that_is_none_is_told_with_its_line(tmp_path, change, told):
    columns = {"spacing_y": "", "slice": "", "weight": "", "seen": ""}
    rows = [row | columns for row in labelled(tmp_path, 1)]
    rows[1] |= change
    with pytest.raises(TaskError, match=told):
        Task.open(write(tmp_path, rows))


def test_a_table_without_cases_needs_a_word_about_it(tmp_path):
    rows = [{key: row[key] for key in ("image", "label", "split")} for row in labelled(tmp_path, 1)]
    with pytest.raises(TaskError, match=r"has no column case, .*the YAML says `cases: unknown`"):
        Task.open(write(tmp_path, rows))
    assert Task.open(write(tmp_path, rows, cases="unknown")).rows[0].case == "sound-0-0.png"


@pytest.mark.parametrize("text", ["", "image,split\n", "image,image\na,b\n", "image,split\na\n", 'image\n"a'])
def test_a_table_that_is_none_is_refused(tmp_path, text):
    path = write(tmp_path, labelled(tmp_path, 1))
    (tmp_path / "made.csv").write_text(text)
    with pytest.raises(TaskError, match=r"made\.csv"):
        Task.open(path)
