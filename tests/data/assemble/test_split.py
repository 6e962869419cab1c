"""Groups from paths, and from the columns of CSV files."""

import gzip
import re

import pytest
from made_folders import write_series

from dexcore.data.assemble.split import Grouping, UnplacedError, load_key, stem
from dexcore.data.assemble.walk import sources_by, walk
from dexcore.data.readers.dicom_header import read_header
from dexcore.data.sources.recipe import Column, InFile, Recipe, RecipeError
from dexcore.data.sources.schema import load_recipe

KEY = b"k" * 32


def recipe_of(tmp_path, text):
    (tmp_path / "dataset.yaml").write_text(text)
    return load_recipe(tmp_path / "dataset.yaml", "source")


def groups(recipe, *paths, header=None, key=KEY):
    grouping = Grouping(recipe, key)
    return [grouping.place(path, header)[0] for path in paths]


def splits(recipe, *paths):
    grouping = Grouping(recipe, KEY)
    return [grouping.place(path, None)[1] for path in paths]


def group(recipe, path, told=""):
    return Grouping(recipe, KEY).place(path, None, told)[0]


def by_table(folder, text, *columns, name="labels.csv"):
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return Recipe("source", group=Column(folder / name, "image", columns or ("patient",)))


def test_all_groups_of_an_expression_that_took_part_make_the_patient():
    recipe = Recipe("visits", group=re.compile(r"(?:(20\d\d)/)?(p\d+)-\d"))
    assert group(recipe, "2023/p1-0.png") == group(recipe, "2023/p1-1.png")
    assert group(recipe, "2023/p1-0.png") != group(recipe, "2024/p1-0.png")
    assert group(recipe, "p1-0.png") != group(recipe, "2024/p1-0.png")


def test_an_expression_without_groups_is_the_patient_itself():
    recipe = Recipe("scans", group=re.compile(r"p\d+"))
    assert group(recipe, "a/p12-x.png") == group(recipe, "b/p12-y.png") != group(recipe, "b/p13-y.png")


def test_a_path_without_a_match_is_placed_nowhere():
    with pytest.raises(UnplacedError, match="no match of the source's expression for groups in its path"):
        group(Recipe("scans", group=re.compile(r"p\d+")), "q.png")


def test_what_an_array_says_of_an_image_is_matched():
    recipe = Recipe("clips", group=InFile("annot_id", re.compile(r"^(\d+)_")), array="image")
    assert group(recipe, "d.hdf5", "7_1") == group(recipe, "d.hdf5", "7_2") != group(recipe, "d.hdf5", "71_")
    with pytest.raises(UnplacedError, match="what the array annot_id says of it"):
        group(recipe, "d.hdf5", "none")


def test_public_sources_of_one_cohort_share_their_patients_and_others_do_not():
    ct, mr, other = (
        Recipe(name, group=re.compile(r"\d+"), cohort=cohort, public=True)
        for name, cohort in (("ct", "heads"), ("mr", "heads"), ("heads again", None))
    )
    assert group(ct, "1.png") == group(mr, "1.png") != group(other, "1.png")


def test_leading_zeros_of_a_csv_file_count(tmp_path):
    recipe = by_table(tmp_path, "image,patient\n001.png,007\n1.png,7\n")
    assert group(recipe, "001.png") != group(recipe, "1.png")


def test_a_name_in_two_folders_has_the_row_of_its_folder(tmp_path):
    recipe = by_table(tmp_path, "image,patient\n/a/1.png,anna\n/b/1.png,bert\n/b/2.png,anna\n")
    assert group(recipe, "scans/a/1.png") == group(recipe, "scans/b/2.png") != group(recipe, "scans/b/1.png")
    # Rows may begin with folders that lie above the source's, or are named otherwise there.
    assert group(by_table(tmp_path, "image,patient\nall/scans/a/1.png,anna\n"), "scans/a/1.png")
    assert group(by_table(tmp_path, "image,patient\nCheXpert/train/p1/1.png,anna\n"), "batch 2/p1/1.png")
    assert group(by_table(tmp_path, "image,patient\nscans/1.png,anna\n"), "1.png")


def test_an_image_of_another_folder_than_its_names_row_has_none(tmp_path):
    recipe = by_table(tmp_path, "image,patient\na/1.png,anna\n")
    with pytest.raises(UnplacedError, match=r"no row .* \(column image, with a value in patient\)"):
        group(recipe, "b/1.png")


def test_rows_of_one_image_that_differ_place_it_nowhere(tmp_path):
    recipe = by_table(tmp_path, "image,patient\n1.png,anna\n1.png,bert\n2.png,anna\n2.png,anna\n")
    assert group(recipe, "2.png")
    with pytest.raises(UnplacedError, match="rows for it that differ"):
        group(recipe, "1.png")


def test_several_columns_are_one_patient_together(tmp_path):
    recipe = by_table(tmp_path, "image;site;patient\n1.png;a;1\n2.png;b;1\n3.png;a;1\n", "site", "patient")
    assert group(recipe, "1.png") == group(recipe, "3.png") != group(recipe, "2.png")


def test_gzip_under_a_name_of_csv_is_read(tmp_path):
    assert group(by_table(tmp_path, gzip.compress(b"image,patient\n1,anna\n")), "1.png")


def test_a_csv_file_is_found_below_the_sources_folder_by_a_glob(tmp_path):
    (tmp_path / "deep" / "tables").mkdir(parents=True)
    (tmp_path / "deep" / "tables" / "labels.csv").write_text("image,patient\n1.png,anna\n")
    (tmp_path / "1.png").write_bytes(b"1")
    own = tmp_path / "own.yaml"
    own.write_text("take: '*.png'\ngroup: {csv: '**/labels.csv', file: image, column: patient}\n")
    recipe = load_recipe(own, "own")
    [source] = sources_by(tmp_path, walk(tmp_path).files, [recipe])
    assert group(source.recipe, "1.png")
    (tmp_path / "labels.csv").write_text("image,patient\n")
    with pytest.raises(
        RecipeError, match=r"own needs .* \*\*/labels.csv below .*: 2 files match, deep/tables/labels.csv and"
    ):
        sources_by(tmp_path, walk(tmp_path).files, [recipe])
    for path in tmp_path.rglob("labels.csv"):
        path.unlink()
    with pytest.raises(RecipeError, match=r"no file matches, expected one"):
        sources_by(tmp_path, walk(tmp_path).files, [recipe])


def test_levels_of_dicom(tmp_path):
    first, second = (read_header(write_series(tmp_path / str(seed), 1, patient="P", seed=seed)[0]) for seed in range(2))
    for level, same in (("patient", True), ("study", False), ("volume", False), ("file", False)):
        one = groups(Recipe("x", group=level), "1/001.dcm", header=first)
        other = groups(Recipe("x", group=level), "2/001.dcm", header=second)
        assert (one == other) is same, level
    nameless = read_header(write_series(tmp_path / "n", 1, patient="", seed=5)[0])
    assert groups(Recipe("x"), "a", header=nameless) == groups(Recipe("x", group="study"), "b", header=nameless)


def test_a_patient_is_one_group_in_all_sources_of_a_user(tmp_path):
    header = read_header(write_series(tmp_path, 1, patient="P7")[0])
    by_path = recipe_of(tmp_path, "group: {path: '^([^/]+)/'}")
    assert groups(Recipe("ct"), "x.dcm", header=header) == groups(by_path, "P7/1.png")


def test_public_sources_are_hashed_without_a_key():
    public = Recipe("MVU", public=True)
    assert groups(public, "a", key=KEY) == groups(public, "a", key=b"another key of mine")
    assert groups(Recipe("own"), "a", key=KEY) != groups(Recipe("own"), "a", key=b"another key of mine")


def test_splits(tmp_path):
    paths = [f"{index}.png" for index in range(400)]
    assert set(splits(recipe_of(tmp_path, "split: train"), *paths)) == {"train"}
    assert set(splits(recipe_of(tmp_path, "split: heldout"), *paths)) == {"heldout"}
    assert splits(recipe_of(tmp_path, "split: {heldout: ['test/**', '9*']}"), "test/a", "a", "90.png") == [
        "heldout",
        "train",
        "heldout",
    ]
    quarter = splits(recipe_of(tmp_path, "split: 0.25"), *paths)
    assert 70 < quarter.count("heldout") < 130
    tenth = splits(recipe_of(tmp_path, "split: 0.1"), *paths)
    moved = [
        path for path, one, other in zip(paths, tenth, quarter, strict=True) if (one, other) == ("heldout", "train")
    ]
    assert moved == []  # a larger share holds the smaller one


def test_a_key_that_is_none_is_told(tmp_path):
    (tmp_path / "key").write_text("short")
    with pytest.raises(ValueError, match=r"the key of groups .*key holds 5 bytes, expected at least 16"):
        load_key(tmp_path / "key")


def test_stems():
    names = ["12.img.nii.gz", "12.label.nii.gz", "a.b.png", "ISIC_1.jpg", "noending", "0001.dcm", "v1.2.nrrd"]
    assert [stem(name) for name in names] == ["12", "12", "a.b", "ISIC_1", "noending", "0001", "v1.2"]
