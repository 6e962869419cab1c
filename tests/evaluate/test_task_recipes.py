"""The paper's 26 tasks: recipes, held to trees as the downloads unpack."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from task_trees import TREES, make_tree

from dexcore.cli import main
from dexcore.evaluate.tasks import Task
from dexcore.evaluate.tasks.catalog import downstream, downstream_task, layout_of
from dexcore.evaluate.tasks.places import file_of

ROOT = Path(__file__).parents[2]


def imported(name, src, out):
    assert main(["eval", "import", name, str(src), "--out", str(out)]) == 0
    return Task.open(out / f"{name}.yaml")


def taken(row, name):
    """The path of a row's file below the downloads; what could not be read as it was lies beside the table."""
    file = file_of(row.image)
    return file.removeprefix(f"./{name}/images/").removesuffix(".png") if file.startswith("./") else file


@pytest.mark.parametrize("name", TREES)
def test_a_recipe_takes_exactly_its_images_with_their_cases_splits_labels_and_masks(tmp_path, capsys, name):
    tree = make_tree(name, tmp_path / "src")
    task = imported(name, tmp_path / "src", tmp_path / "task")
    assert {taken(row, name) for row in task.rows} == set(tree.cases)
    pairs = {(tree.cases[taken(row, name)], row.case) for row in task.rows}
    assert len(pairs) == len({case for case, _ in pairs}) == len({case for _, case in pairs})
    splits = {row.case: {other.split for other in task.rows if other.case == row.case} for row in task.rows}
    assert all(len(found) == 1 for found in splits.values())
    assert {row.split for row in task.rows} >= {"train", "test"}
    reference = task.reference()
    for row in task.rows:
        path = taken(row, name)
        assert row.split in tree.splits.get(path, "train|val|test").split("|")
        image = task.image(row)
        if path in tree.levels:
            np.testing.assert_allclose(image, tree.levels[path], atol=1e-6)
        if not task.spec.is_segmentation:
            assert reference.label(row) == tree.labels[path]
            continue
        wanted = tree.masks[path] if row.slice is None else tree.masks[path][row.slice]
        mask = reference.mask(row)
        np.testing.assert_array_equal(mask, wanted)
        assert mask.shape[-2:] == image.shape[:2]
    slices = [len(tree.masks[path]) if ".nii" in path else 1 for path in tree.cases]
    assert len(task.rows) == sum(slices)


def test_trees_are_there_for_every_confirmed_layout():
    confirmed = {one.slug for one in downstream() if layout_of(one).confirmed}
    assert len(confirmed) == 19
    assert confirmed <= set(TREES)
    assert {one.slug for one in downstream() if layout_of(one).take} == set(TREES)


def test_every_recipe_says_what_is_known_of_its_task_and_agrees_with_the_papers_list(capsys):
    for one in downstream():
        layout = layout_of(one)
        assert layout.known, one.name
        assert layout.home, one.name
        assert layout.layout, one.name
        assert layout.said["modality"] == one.modality
        assert layout.said["kind"].endswith("segmentation") == (one.task == "segmentation")
    assert main(["eval", "tasks"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 28
    assert lines[-1].split() == ["in", "all", "80898", "29743", "48926"]
    assert main(["eval", "tasks", "FHU"]) == 0
    page = capsys.readouterr().out
    assert "# The layout is partly known." in page
    assert "All of HC18 is in the pre-training" in page
    assert "# dexcore eval import fhu FOLDER --out DIR" in page


@pytest.mark.parametrize(
    ("name", "fault", "told"),
    [
        ("uns", lambda src: next(src.rglob("2_1_mask.tif")).unlink(), "2_1.tif: its mask .*2_1_mask.tif is missing"),
        (
            "octdl",
            lambda src: next(src.rglob("*.csv")).write_text("file_name,patient_id\n"),
            "no row in the source's CSV",
        ),
        ("octdl", lambda src: next(src.rglob("*.csv")).unlink(), "0 files are OCTDL_labels.csv, expected one"),
        (
            "slsc-cls",
            lambda src: next(src.rglob("ISIC_test3.txt")).write_text("1 0 0\n2 0 0\n"),
            r"classes \[1, 2\], ex",
        ),
        ("slsc-seg", lambda src: next(src.rglob("ISIC_test3.txt")).write_text("1 0 0 0\n"), "line 1: is no polygon"),
        (
            "monusac",
            lambda src: next(src.rglob("TCGA-55*.xml")).write_text(
                '<A><Annotation><Attributes><Attribute Name="Cell"/></Attributes><Region><Vertex X="1" Y="1"/></Region>'
                "</Annotation></A>"
            ),
            "holds a region of .'Cell'., expected one of Epithelial",
        ),
        ("scr", lambda src: next(src.rglob("JPCLN002.IMG")).write_bytes(b"0"), "JPCLN002.IMG: has 1 bytes, expected"),
        (
            "tnbc",
            lambda src: [path.unlink() for path in src.rglob("Slide_*/*.png")],
            "no image below .*expected TNBC_Nuc",
        ),
    ],
)
def test_a_download_that_is_not_whole_is_refused_by_name(tmp_path, capsys, name, fault, told):
    make_tree(name, tmp_path / "src")
    fault(tmp_path / "src")
    assert main(["eval", "import", name, str(tmp_path / "src"), "--out", str(tmp_path / "task")]) == 2
    err = capsys.readouterr().err
    assert re.search(told, err), err
    assert not list((tmp_path / "task").glob("*.yaml"))


@pytest.mark.parametrize("name", ["UNS", "uns", "CholecSeg8k", "IDRiD (task 1)", "SLSC seg", "autopet-org"])
def test_a_task_is_found_by_its_name_in_any_spelling(name):
    assert downstream_task(name).name.lower()[:3] == name.lower()[:3]


def test_the_list_is_the_papers():
    with open(ROOT / "dexcore" / "evaluate" / "tasks" / "downstream_tasks.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [one.name for one in downstream()]
    assert len({one.slug for one in downstream()}) == 26


def test_tasks_says_what_lies_below_a_folder(tmp_path, capsys):
    for name in ("uns", "octdl"):
        make_tree(name, tmp_path / "downloads" / name)
    assert main(["eval", "tasks", "--root", str(tmp_path / "downloads")]) == 0
    files = {line.split()[0]: line.split()[-1] for line in capsys.readouterr().out.splitlines()[1:-1]}
    assert {name for name, count in files.items() if count != "-"} == {"UNS", "OCTDL"}
    assert (files["UNS"], files["OCTDL"]) == ("10", "42")
    assert main(["eval", "tasks", "uns", "--root", str(tmp_path / "downloads")]) == 0
    told = f"# Below {tmp_path / 'downloads'}: 10 files, as uns/ultrasound-nerve-segmentation/train/10_1.tif."
    assert told in capsys.readouterr().out
