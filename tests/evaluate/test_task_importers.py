"""Importers: what others call a labelled data set becomes one table, and nothing else."""

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from made_tasks import picture, save

from dexcore.cli import main
from dexcore.data.synthetic import SyntheticMVU
from dexcore.evaluate.tasks import Task, TaskError
from dexcore.evaluate.tasks.check import check_task
from dexcore.evaluate.tasks.importers.synthetic import synthetic_tasks


def run(capsys, *line):
    code = main(["eval", "import", *map(str, line)])
    told = capsys.readouterr()
    return code, told.out, told.err


def opened(capsys, tmp_path, *line, name="src"):
    code, _, err = run(capsys, *line, "--out", tmp_path / "task")
    assert code == 0, err
    return Task.open(tmp_path / "task" / f"{name}.yaml")


def class_folders(root, names, splits=("train", "test"), cases=4):
    for split in splits:
        for number, name in enumerate(names):
            for case in range(cases):
                seed = hash_of(split, number, case)
                save(root / split / name / f"{split}{name}p{case}_1.png", picture(seed))


def hash_of(split, number, case):
    return {"train": 0, "val": 100, "test": 200}.get(split, 300) + 10 * number + case


def test_class_folders_have_one_mapping_for_all_splits(tmp_path, capsys):
    """Trap 12: folders "2" and "10", and a test split that lacks the class between."""
    src = tmp_path / "src"
    class_folders(src, ["2", "10", "3"], ["train"])
    class_folders(src, ["2", "3"], ["test"])
    task = opened(capsys, tmp_path, "folder", src, "--modality", "Photo", "--case", r"(\w+p\d+)_")
    assert task.classes == ("10", "2", "3")
    reference = task.reference()
    assert all(task.classes[reference.label(row)] == row.image.split("/")[1] for row in task.rows)
    assert {reference.label(row) for row in task.split("test")} == {1, 2}
    assert check_task(task).problems == ["task src: test has no case of class 10: no score of it can be computed"]
    assert "task: src" not in (tmp_path / "task" / "src.csv").read_text()
    assert not [path for path in (tmp_path / "task").iterdir() if path.suffix not in (".csv", ".yaml")]


def test_class_folders_without_splits_are_split_by_case_once(tmp_path, capsys):
    for case in range(10):
        for image in range(2):
            save(tmp_path / "src" / ("a" if case % 2 else "b") / f"p{case}_{image}.png", picture(10 * case + image))
    (tmp_path / "src" / "a" / "notes.txt").write_text("none")
    code, out, err = run(
        capsys,
        *("folder", tmp_path / "src", "--modality", "Photo", "--case", r"(p\d+)_"),
        *("--fractions", "0.5,0.1,0.4", "--out", tmp_path / "task"),
    )
    assert (code, err) == (0, "left out: a/notes.txt: no kind of image that dexcore reads\n")
    assert out.splitlines()[1] == f"check it: dexcore eval check {tmp_path / 'task' / 'src.yaml'}"
    task = Task.open(tmp_path / "task" / "src.yaml")
    assert len({row.case for row in task.rows}) == 10
    assert check_task(task).problems == []
    unknown = opened(capsys, tmp_path, "folder", tmp_path / "src", "--modality", "Photo", "--name", "two", name="two")
    assert check_task(unknown).notes[0].startswith("images taken as independent")


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda src: save(src / ".ipynb_checkpoints" / "x.png", picture(0)), ".ipynb_checkpoints: is a hidden folder"),
        (lambda src: save(src / "train" / "__MACOSX" / "x.png", picture(0)), "__MACOSX: is a hidden folder"),
        (
            lambda src: save(src / "test" / "c" / "x.png", picture(0)),
            "test/c: is no class of train, expected one of a, b",
        ),
        (lambda src: save(src / "more" / "x.png", picture(0)), "more: stands beside folders of splits"),
    ],
)
def test_folders_that_are_no_classes_are_refused(tmp_path, capsys, make, told):
    class_folders(tmp_path / "src", ["a", "b"])
    make(tmp_path / "src")
    code, _, err = run(capsys, "folder", tmp_path / "src", "--modality", "Photo", "--out", tmp_path / "task")
    assert code == 2
    assert told in err
    assert not (tmp_path / "task").exists()


def test_a_table_with_columns_of_its_own(tmp_path, capsys):
    lines = ["file,dx,fold,patient"]
    for number in range(12):
        save(tmp_path / "pictures" / f"{number}.png", picture(number))
        fold = ("training", "valid", "testing", "testing")[number % 4]
        lines.append(f"{number}.png,{'nevus' if number // 4 % 2 else 'melanoma'},{fold},p{number}")
    (tmp_path / "src.csv").write_text("\n".join(lines))
    columns = ["image=file", "label=dx", "split=fold", "case=patient"]
    flags = [word for column in columns for word in ("--column", column)]
    root = ["--root", tmp_path / "pictures", "--modality", "Photo"]
    task = opened(capsys, tmp_path, "csv", tmp_path / "src.csv", *flags, *root)
    assert task.classes == ("melanoma", "nevus")
    assert [len(task.split(split)) for split in ("train", "val", "test")] == [3, 3, 6]
    assert task.image(task.rows[0]).shape == (20, 24)
    code, _, err = run(
        capsys, "csv", tmp_path / "src.csv", *flags, "--column", "case=who", *root, "--out", tmp_path / "again"
    )
    assert (code, err) == (
        2,
        f"error: {tmp_path / 'src.csv'}: has no column who (--column case=who), it has file, dx, fold, patient\n",
    )


def test_an_import_leaves_the_users_table_and_nothing_of_what_is_no_task(tmp_path, capsys):
    table = tmp_path / "src.csv"
    table.write_text("image,label,split\na.png,x,train\nb.png,y,\n")
    code, _, err = run(capsys, "csv", table, "--modality", "CT", "--out", tmp_path)
    assert (code, "src.csv: is there already, and would be lost" in err) == (2, True)
    assert table.read_text().startswith("image,label,split\na.png")
    code, _, err = run(capsys, "csv", table, "--modality", "CT", "--out", tmp_path / "task")
    assert (code, "line 3: split is empty" in err) == (2, True)
    assert list((tmp_path / "task").iterdir()) == []


def medmnist(path, labels=1, classes=3, **more):
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 6), ("val", 3), ("test", 6)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, 28, 28, 3)).astype(np.uint8)
        values = np.arange(count)[:, None] % classes if labels == 1 else rng.integers(0, 2, (count, labels))
        arrays[f"{split}_labels"] = values.astype(np.uint8)
    np.savez(path, **arrays | more)
    return arrays


def test_medmnist_gives_its_arrays_and_says_that_it_has_no_ids(tmp_path, capsys):
    arrays = medmnist(tmp_path / "src.npz")
    task = opened(capsys, tmp_path, "medmnist", tmp_path / "src.npz", "--modality", "Pathology", "--classes", "a,b,c")
    assert (task.kind, task.classes) == ("classification", ("a", "b", "c"))
    for number, row in enumerate(task.split("test")):
        np.testing.assert_allclose(task.image(row) * 255, arrays["test_images"][number], atol=1e-4)
        assert task.reference().label(row) == arrays["test_labels"][number, 0]
    found = check_task(task)
    assert found.problems == []
    assert found.notes[0].startswith("images taken as independent")
    assert "28 x 28 pixels" in task.spec.about
    medmnist(tmp_path / "many.npz", labels=4)
    task = opened(capsys, tmp_path, "medmnist", tmp_path / "many.npz", "--modality", "X-ray", name="many")
    assert task.kind == "multilabel"
    assert task.labels(task.split("train")).shape == (6, 4)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"test_labels": np.array([{}] * 6)}, "src.npz: is no MedMNIST file: Object arrays cannot be loaded"),
        ({"val_images": np.zeros((3, 28, 28, 28), np.uint8)}, "val_images is uint8 (3, 28, 28, 28), expected uint8 im"),
        ({"val_images": np.zeros((3, 28, 28), np.float32)}, "val_images is float32"),
        ({"test_labels": np.zeros((5, 1), np.uint8)}, "test_labels is uint8 (5, 1), expected whole numbers, a row an"),
    ],
)
def test_an_archive_that_is_no_medmnist_is_refused(tmp_path, capsys, change, told):
    medmnist(tmp_path / "src.npz", **change)
    code, _, err = run(capsys, "medmnist", tmp_path / "src.npz", "--modality", "OCT", "--out", tmp_path / "task")
    assert code == 2
    assert told in err


def write_volume(path, voxels, spacing=(1.0, 1.0, 3.0)):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([*spacing, 1.0])), path)


def nnunet(root, cases=3, labels=None, tests=0, spacing=(1.0, 1.0, 3.0)):
    for part, count in (("Tr", cases), ("Ts", tests)):
        for case in range(count):
            rng = np.random.default_rng(case + 50 * (part == "Ts"))
            name = f"case{part}_{case}"
            write_volume(root / f"images{part}" / f"{name}_0000.nii.gz", rng.normal(size=(7, 6, 4)).astype(np.float32))
            mask = rng.integers(0, 4, (7, 6, 4)).astype(np.uint8)
            write_volume(root / f"labels{part}" / f"{name}.nii.gz", mask, spacing)
    said = {
        "channel_names": {"0": "T2"},
        "labels": labels or {"background": 0, "edema": 1, "core": 2, "ignore": 3},
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(said))


def test_nnunet_slices_keep_volume_index_and_spacing(tmp_path, capsys):
    nnunet(tmp_path / "src", tests=3)
    task = opened(capsys, tmp_path, "nnunet", tmp_path / "src", "--modality", "MR")
    assert task.classes == ("background", "edema", "core")
    assert task.spec.ignore == 3
    assert [len(task.split(split)) for split in ("train", "val", "test")] == [12, 0, 12]
    row = task.rows[2]
    assert (row.case, row.volume, row.slice) == ("caseTr_0", "imagesTr/caseTr_0_0000.nii.gz", 2)
    assert row.spacing == (1.0, 1.0)
    voxels = np.asarray(nibabel.load(tmp_path / "src" / "labelsTr" / "caseTr_0.nii.gz").dataobj)
    np.testing.assert_array_equal(task.mask(row), voxels[:, :, 2].T[::-1, ::-1])
    assert check_task(task).problems == []


def test_a_decathlon_has_no_numbers_of_channels(tmp_path, capsys):
    nnunet(tmp_path / "src", 4)
    for path in (tmp_path / "src" / "imagesTr").iterdir():
        path.rename(path.with_name(path.name.replace("_0000", "")))
    task = opened(capsys, tmp_path, "nnunet", tmp_path / "src", "--modality", "MR")
    assert len(task.rows) == 16
    assert task.rows[0].volume == "imagesTr/caseTr_0.nii.gz"


def test_an_import_does_not_draw_a_split_again(tmp_path, capsys):
    nnunet(tmp_path / "src", 4)
    known = opened(capsys, tmp_path, "nnunet", tmp_path / "src", "--modality", "MR").fingerprint
    code, _, err = run(capsys, "nnunet", tmp_path / "src", "--modality", "MR", "--seed", 5, "--out", tmp_path / "task")
    assert code == 2
    assert "src.yaml: is there already, and would be lost: remove it" in err
    assert Task.open(tmp_path / "task" / "src.yaml").fingerprint == known


def test_nnunets_regions_overlap(tmp_path, capsys):
    nnunet(tmp_path / "src", 4, {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "edge": 3})
    flags = ["--modality", "MR", "--fractions", "0.5,0,0.5"]
    task = opened(capsys, tmp_path, "nnunet", tmp_path / "src", *flags)
    assert (task.kind, task.classes) == ("multilabel_segmentation", ("whole", "core", "edge"))
    row = task.split("train")[0]
    whole, core, edge = task.mask(row)
    assert (edge <= core).all()
    assert (core <= whole).all()
    assert whole.sum() > core.sum() > edge.sum() > 0
    assert {row.split for row in task.rows} == {"train", "test"}
    assert check_task(task).problems == []


@pytest.mark.parametrize(
    ("break_it", "told"),
    [
        (lambda src: (src / "dataset.json").unlink(), "dataset.json: No such file or directory, expected nnU-Net's"),
        (lambda src: (src / "imagesTr" / "caseTr_1_0000.nii.gz").unlink(), "caseTr_1_0000.nii.gz: is missing, "),
        (lambda src: nnunet(src, spacing=(1, 1, 2.0)), "caseTr_0.nii.gz: its affine is not that of "),
        (lambda src: nnunet(src, labels={"background": 0, "a": 2}), "labels are {'background': 0, 'a': 2}, expected"),
    ],
)
def test_nnunet_data_that_do_not_fit_are_refused(tmp_path, capsys, break_it, told):
    nnunet(tmp_path / "src")
    break_it(tmp_path / "src")
    code, _, err = run(capsys, "nnunet", tmp_path / "src", "--modality", "MR", "--out", tmp_path / "task")
    assert code == 2
    assert told in err


def test_pairs_of_volumes_become_a_task(tmp_path, capsys):
    for patient in range(4):
        for visit in range(2):
            rng = np.random.default_rng(2 * patient + visit)
            folder = tmp_path / "src" / f"p{patient}"
            write_volume(folder / f"v{visit}_T2w.nii.gz", rng.integers(0, 900, (6, 5, 3)).astype(np.int16))
            write_volume(folder / f"v{visit}_seg.nii.gz", (rng.random((6, 5, 3)) > 0.5).astype(np.uint8) * 4)
    pairs = ["--images", "*_T2w.nii.gz", "--mask", "_T2w.nii.gz=_seg.nii.gz", "--classes", "background,lesion"]
    flags = [*pairs, "--mask-value", "0=0", "--mask-value", "4=lesion", "--case", r"(p\d)/", "--fractions", "0.5,0,0.5"]
    task = opened(capsys, tmp_path, "nifti", tmp_path / "src", "--modality", "MR", *flags)
    assert len(task.rows) == 24
    assert {row.case for row in task.rows} == {f"p{patient}" for patient in range(4)}
    assert check_task(task).problems == []
    wanted = task.mask(task.split("train")[0])
    shutil.move(tmp_path / "src", tmp_path / "two" / "images")
    for path in sorted((tmp_path / "two").rglob("*_seg.nii.gz")):
        target = Path(str(path).replace("/images/", "/labels/").replace("_seg", "_T2w"))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    folders = ["--images", "images/**/*_T2w.nii.gz", "--mask", "images/=labels/", *flags[4:]]
    again = opened(capsys, tmp_path, "nifti", tmp_path / "two", "--modality", "MR", *folders, name="two")
    np.testing.assert_array_equal(again.mask(again.split("train")[0]), wanted)
    shutil.move(tmp_path / "two" / "images", tmp_path / "src")
    (tmp_path / "src" / "p2" / "v1_seg.nii.gz").unlink()
    code, _, err = run(capsys, *("nifti", tmp_path / "src", "--modality", "MR", "--out", tmp_path / "again"), *flags)
    assert (code, err) == (2, "error: task src: p2/v1_T2w.nii.gz: its mask p2/v1_seg.nii.gz is missing\n")


def coco(root, split, crowd=0, name="nucleus"):
    images, annotations = [], []
    for number in range(3):
        save(root / split / f"{number}.png", picture(number + 10 * len(split)))
        images.append({"id": number, "file_name": f"{number}.png", "height": 20, "width": 24})
        square = [2, 2, 12, 2, 12, 12, 2, 12]
        later = [8, 8, 20, 8, 20, 16, 8, 16]
        runs = {"size": [20, 24], "counts": [0, 40, 440]}
        annotations += [
            {"id": 3 * number, "image_id": number, "category_id": 7, "segmentation": [square]},
            {"id": 3 * number + 1, "image_id": number, "category_id": 3, "segmentation": [later]},
            {"id": 3 * number + 2, "image_id": number, "category_id": 7, "segmentation": runs, "iscrowd": crowd},
        ]
    said = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 7, "name": name}, {"id": 3, "name": "b"}],
    }
    path = root / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(said))


def test_of_coco_a_later_annotation_wins_and_a_crowd_is_ignored(tmp_path, capsys):
    for split in ("train", "val", "test"):
        coco(tmp_path / "src", split, crowd=1)
    task = opened(capsys, tmp_path, "coco", tmp_path / "src", "--modality", "Pathology")
    assert task.classes == ("background", "b", "nucleus")
    assert [len(task.split(split)) for split in ("train", "val", "test")] == [3, 3, 3]
    mask = task.mask(task.split("train")[0])
    assert (mask[5, 5], mask[10, 10], mask[14, 18], mask[19, 23]) == (2, 1, 1, 0)
    assert (mask[15, 0], mask[15, 1]) == (255, 255)
    assert check_task(task).problems == []
    coco(tmp_path / "src", "val", name="cell")
    code, _, err = run(capsys, "coco", tmp_path / "src", "--modality", "Pathology", "--out", tmp_path / "again")
    assert code == 2
    assert "calls category 7 'cell', another file 'nucleus'" in err or "calls category 7 'nucleus'" in err


def test_of_coco_boxes_alone_are_refused(tmp_path, capsys):
    coco(tmp_path / "src", "train")
    path = tmp_path / "src" / "annotations" / "instances_train.json"
    said = json.loads(path.read_text())
    said["annotations"][4] |= {"segmentation": [], "bbox": [1, 1, 2, 2]}
    path.write_text(json.dumps(said))
    code, _, err = run(
        capsys, "coco", path, "--root", tmp_path / "src", "--modality", "Pathology", "--out", tmp_path / "task"
    )
    assert code == 2
    assert "annotation 4: no segmentation, expected polygons or run lengths (boxes alone are no masks)" in err
    assert list((tmp_path / "task").iterdir()) == []  # the next try finds nothing in its way


def test_tasks_in_one_folder_keep_their_own_masks(tmp_path, capsys):
    """Both have a picture 0.png; a folder that is there already, of whoever, stays as it was."""
    tasks = []
    for name, value in (("one", 2), ("two", 1)):
        root = tmp_path / name
        save(root / "0.png", picture(0))
        outline = {"size": [20, 24], "counts": [0, 40 * value, 480 - 40 * value]}
        annotations = [{"id": 1, "image_id": 0, "category_id": 7, "segmentation": outline}]
        said = {"images": [{"id": 0, "file_name": "0.png", "height": 20, "width": 24}], "annotations": annotations}
        (root / "all.json").write_text(json.dumps(said | {"categories": [{"id": 7, "name": "nucleus"}]}))
        line = ("coco", root, "--modality", "Pathology", "--out", tmp_path / "tasks")
        assert run(capsys, *line)[0] == 0
        tasks.append(tmp_path / "tasks" / f"{name}.yaml")
    sums = [int(task.reference().mask(task.rows[0]).sum()) for task in map(Task.open, tasks)]
    assert sums == [80, 40]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.png")}
    code, _, err = run(capsys, *line[:-1], tmp_path)  # two/ holds the images themselves
    assert (code, f"{tmp_path / 'two'}: is there already, and pictures are drawn there" in err) == (2, True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.png")} == before
    assert not (tmp_path / "two.yaml").exists()


def test_synthetic_lesions_are_two_tasks_with_known_masks_and_labels(tmp_path, capsys):
    code, out, _ = run(capsys, "synthetic", "--count", 60, "--size", 32, "--out", tmp_path / "task")
    assert code == 0
    lesions, findings = (Task.open(tmp_path / "task" / f"{name}.yaml") for name in ("lesions", "findings"))
    assert [row.split for row in lesions.rows] == [row.split for row in findings.rows]
    assert len(lesions.modalities) == 10
    drawn = SyntheticMVU(size=32, seed=1)
    for index in (0, 5, 33):
        sample, row = drawn.sample(index), lesions.rows[index]
        np.testing.assert_allclose(lesions.image(row), sample.image, atol=0.5 / 255 + 1e-6)
        np.testing.assert_array_equal(lesions.reference().mask(row), sample.mask)
        assert findings.reference().label(findings.rows[index]) == sample.label
    assert f"fingerprint {findings.fingerprint}" in out
    (tmp_path / "task" / "findings.yaml").unlink()  # as a kill would leave it
    assert [task.fingerprint for task in synthetic_tasks(tmp_path / "task", 60, 32)] == [
        lesions.fingerprint,
        findings.fingerprint,
    ]
    with pytest.raises(TaskError, match="is there already"):
        synthetic_tasks(tmp_path / "task", 50, 32, seed=2)
    np.testing.assert_array_equal(lesions.reference().mask(lesions.rows[33]), drawn.sample(33).mask)
    again, _ = synthetic_tasks(tmp_path / "again", 60, 32)
    assert again.fingerprint == lesions.fingerprint


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (["folder", "--out", "task", "--modality", "CT"], "SRC is missing"),
        (["folder", "nowhere", "--out", "task"], "--modality is missing"),
        (["folder", "nowhere", "--out", "task", "--modality", "CT"], "nowhere: No such file or directory, expected"),
        (["idris", "nowhere", "--out", "task"], "'idris' is no task of the paper: `dexcore eval tasks` lists the 26"),
        (["dsca", "nowhere", "--out", "task"], "how the files of dsca lie is not known"),
        (["nifti", ".", "--out", "task", "--modality", "CT"], "pairs need --images GLOB, --mask A=B and --classes"),
        (["synthetic", "--out", "task", "--fractions", "1"], "--fractions is '1', expected the shares"),
    ],
)
def test_what_cannot_be_imported_is_told_in_a_line(tmp_path, monkeypatch, capsys, line, told):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *line)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert told in err
    assert not (tmp_path / "task").exists()
