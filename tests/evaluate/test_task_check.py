"""``dexcore eval check``: what would make a number worthless is refused, and named."""

import re
import shutil

import cv2
import nibabel
import numpy as np
import pytest
from made_tasks import SEGMENTATION, labelled, masked, save, write

from dexcore.cli import main
from dexcore.data.record import ImageRecord
from dexcore.data.store import write_store
from dexcore.data.synthetic import SyntheticMVU
from dexcore.evaluate.tasks import Task
from dexcore.evaluate.tasks.check import check_task
from dexcore.measures.neighbors import nearest


def check(capsys, *line):
    code = main(["eval", "check", *map(str, line)])
    told = capsys.readouterr()
    return code, told.out, told.err


def draw_xray(index):
    return np.round(SyntheticMVU(["X-ray"], size=96).sample(index).image * 255).astype(np.uint8)


def as_record(name, pixels):
    image = pixels / np.float32(255)
    return ImageRecord(image, "X-ray", "films", "chest", "div255", group=name, path=name)


def problems(path):
    return check_task(Task.open(path)).problems


def test_a_sound_task_passes_with_its_counts_and_notes(tmp_path, capsys):
    path = write(tmp_path, labelled(tmp_path))
    code, out, err = check(capsys, path)
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "task made: few cases: 6 in test, intervals of fewer than 50 are not to be trusted",
        "task made: train 8 images of 4 cases, val 4 images of 2 cases, test 12 images of 6 cases; "
        f"fingerprint {Task.open(path).fingerprint}",
    ]


def test_a_patient_in_two_splits_is_named(tmp_path, capsys):
    """Trap 1."""
    rows = labelled(tmp_path)
    rows[7]["case"] = "sound-0"
    code, out, err = check(capsys, write(tmp_path, rows))
    assert (code, out) == (2, "task made: few cases: 7 in test, intervals of fewer than 50 are not to be trusted\n")
    assert err == (
        "task made: case sound-0 is in train (line 2) and test (line 9): what is learned of it in one is scored in "
        "the other\n"
    )


def test_a_patients_watermark_scores_1_where_images_are_split_and_chance_where_cases_are(tmp_path):
    """Trap 1: labels are drawn by patient and are in no image; whoever splits images finds them all the same."""
    rng = np.random.default_rng(0)
    rows = []
    for patient in range(60):
        watermark, label = rng.integers(0, 200, (12, 12)), ("sound", "ill")[rng.integers(2)]
        for number in range(6):
            name = f"{patient}-{number}.png"
            save(tmp_path / name, (watermark + rng.integers(0, 55, (12, 12))).astype(np.uint8))
            rows.append({"image": name, "label": label, "case": f"p{patient}"})
    shares = {}
    for by in ("image", "case"):
        task = Task.open(write(tmp_path, rows, by, split={"by": by, "fractions": [0.6, 0.0, 0.4], "seed": 0}))
        train, test = (np.stack([task.image(row).ravel() for row in task.split(name)]) for name in ("train", "test"))
        found = nearest(test, train, 1, center_d=train.mean(0)).index_qk[:, 0]
        answers = task.reference().labels(task.split("test"))
        shares[by] = (task.labels(task.split("train"))[found] == answers).mean()
        torn = [problem for problem in check_task(task).problems if "is in train" in problem]
        assert bool(torn) == (by == "image")
    assert shares["image"] == 1
    assert 0.25 < shares["case"] < 0.75


def test_a_volume_in_two_splits_is_named_though_its_cases_differ(tmp_path):
    rows = [row | {"volume": f"v{number}"} for number, row in enumerate(labelled(tmp_path))]
    rows[0]["volume"] = "v7"
    [told] = problems(write(tmp_path, rows))
    assert told.startswith("task made: volume v7 is in train (line 2) and test (line 9)")
    rows = [{key: row[key] for key in row if key != "case"} for row in rows]
    assert problems(write(tmp_path, rows, cases="unknown")) == [told]


def test_the_same_pixels_in_two_splits_are_named(tmp_path):
    rows = labelled(tmp_path)
    shutil.copy(tmp_path / "sound-0-0.png", tmp_path / "sound-3-1.png")
    assert problems(write(tmp_path, rows)) == [
        "task made: sound-0-0.png (line 2, train) and sound-3-1.png (line 9, test) have the same pixels"
    ]


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (lambda rows, folder: (folder / rows[1]["image"]).unlink(), r"line 3: .*sound-0-1.png: No such file"),
        (lambda rows, folder: (folder / rows[1]["image"]).write_bytes(b"GIF"), r"line 3: .*sound-0-1.png: of no known"),
        (lambda rows, _: rows[8].update(label="unsure"), "line 10: label is 'unsure', expected one of sound, ill"),
        (lambda rows, _: rows[8].update(label=""), "line 10: label is empty"),
        (lambda rows, _: [row.update(split="val") for row in rows if row["split"] == "test"], "no row of split test"),
        (
            lambda rows, _: [row.update(label="sound") for row in rows if row["split"] == "test"],
            "test has no case of class ill: no score of it can be computed",
        ),
        (
            lambda rows, _: [row.update(label="ill") for row in rows if row["split"] == "train"],
            "train has no case of class sound: no score of it can be computed",
        ),
        (
            lambda rows, _: [row.update(split="val") for row in rows if row["case"] in ("ill-4", "ill-5")],
            "test has one case of class ill, ill-3: a score of it says nothing",
        ),
    ],
)
def test_what_is_wrong_with_labels_is_named(tmp_path, fault, told):
    rows = labelled(tmp_path)
    fault(rows, tmp_path)
    found = problems(write(tmp_path, rows))
    assert len(found) == 1
    assert found[0].startswith("task made: ")
    assert re.search(told, found[0])


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (lambda folder: (folder / "4_mask.png").unlink(), "line 6: .*4_mask.png: No such file"),
        (
            lambda folder: save(folder / "4_mask.png", np.full((20, 24), 9, np.uint8)),
            "line 6: .*4_mask.png: holds the value 9, which stands for no class: expected 0 to 1",
        ),
        (
            lambda folder: save(folder / "4_mask.png", np.ones((20, 23), np.uint8)),
            r"line 6: .*4_mask.png: has shape \(20, 23\), the image 4.png has \(20, 24\)",
        ),
        (
            lambda folder: [save(folder / f"{number}_mask.png", np.zeros((20, 24), np.uint8)) for number in (3, 4, 5)],
            "test has no case of class lesion",
        ),
        (
            lambda folder: [save(folder / f"{number}_mask.png", np.zeros((20, 24), np.uint8)) for number in (3, 5)],
            "test has one case of class lesion, p4",
        ),
    ],
)
def test_masks_that_do_not_fit_are_named(tmp_path, fault, told):
    rows = masked(tmp_path)
    fault(tmp_path)
    [found] = problems(write(tmp_path, rows, **SEGMENTATION))
    assert re.search(told, found)


def test_a_mask_of_another_affine_is_named(tmp_path):
    rows = []
    for number, split in enumerate(("train", "test", "test")):
        voxels = np.random.default_rng(number).integers(0, 1000, (6, 5, 3)).astype(np.int16)
        affine = np.diag([1, 1, 3, 1.0])
        nibabel.save(nibabel.Nifti1Image(voxels, affine), tmp_path / f"{number}.nii.gz")
        if number == 1:
            affine = affine.copy()
            affine[0, 3] = 2.5
        nibabel.save(nibabel.Nifti1Image((voxels > 500).astype(np.uint8), affine), tmp_path / f"{number}_seg.nii.gz")
        rows += [
            {
                "image": f"{number}.nii.gz#axial={index}",
                "mask": f"{number}_seg.nii.gz#axial={index}",
                "split": split,
                "case": number,
            }
            for index in range(3)
        ]
    path = write(tmp_path, rows, **SEGMENTATION | {"modality": "MR"})
    task = Task.open(path)
    assert (task.rows[4].volume, task.rows[4].slice) == ("1.nii.gz", 1)
    assert task.spacing(task.rows[4]) == (1.0, 1.0)
    np.testing.assert_array_equal(task.mask(task.rows[0]), task.image(task.rows[0]) > 0.5)
    [told] = problems(path)
    assert "line 5: " in told
    assert "1_seg.nii.gz: its affine is not that of " in told
    assert told.endswith("they differ by up to 2.5")


def test_exactly_the_test_images_of_a_store_are_flagged_also_in_the_table(tmp_path, capsys):
    """Trap 2: three test images, one of them rescaled, lie in the pre-training store."""
    pictures = [draw_xray(index) for index in range(20)]
    rows = []
    for number in range(18):
        save(tmp_path / f"{number}.png", pictures[number])
        split = ("train", "test", "test")[number % 3]
        rows.append({"image": f"{number}.png", "label": number // 3 % 2, "split": split, "case": number})
    path = write(tmp_path, rows)
    stored = {f"{number}.png": pictures[number] for number in (1, 3, 5, 18, 19)}  # 3 is of train
    stored["rescaled.png"] = cv2.resize(pictures[8], (144, 144), interpolation=cv2.INTER_LINEAR)
    write_store(map(as_record, stored, stored.values()), tmp_path / "store", name="films")

    before = Task.open(path).fingerprint
    code, _, err = check(capsys, path, "--store", tmp_path / "store", "--mark")
    assert code == 2
    told = err.splitlines()
    assert len(told) == 3
    assert told[0].startswith("task made: test image 1.png (line 3) is an exact copy of 1.png (films) in ")
    assert told[2].startswith("task made: test image 8.png (line 10) is a near-copy of rescaled.png (films) in ")
    task = Task.open(path)
    assert {row.image: row.seen for row in task.rows if row.seen} == {
        "1.png": "exact",
        "5.png": "exact",
        "8.png": "near",
    }
    assert task.fingerprint == before
    assert "seen in pre-training: 2 test images exactly, 1 nearly" in check(capsys, path)[1]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (["none.yaml"], "error: none.yaml: No such file or directory"),
        (
            ["made.yaml", "--store", "nowhere"],
            "error: nowhere: no such folder, expected a store (a folder with manifest.json)",
        ),
        (["made.yaml", "--mark"], "error: --mark writes what --store found: expected --store STORE beside it"),
    ],
)
def test_what_cannot_be_checked_is_told_in_a_line(tmp_path, monkeypatch, capsys, line, told):
    write(tmp_path, labelled(tmp_path, 1))
    monkeypatch.chdir(tmp_path)
    code, _, err = check(capsys, *line)
    assert (code, err) == (2, f"{told}\n")
