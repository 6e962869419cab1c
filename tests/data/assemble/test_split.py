"""Groups from paths, and from the columns of CSV files."""

import gzip
import re

import pytest

from dexcore.data.assemble.split import Grouping, UnplacedError
from dexcore.data.assemble.walk import sources_by, walk
from dexcore.data.sources.schema import Column, InFile, Recipe, RecipeError, load_recipe

KEY = b"k" * 32


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
    # Rows may begin with folders that lie above the source's.
    assert group(by_table(tmp_path, "image,patient\nall/scans/a/1.png,anna\n"), "scans/a/1.png")


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
    with pytest.raises(RecipeError, match=r"own: its CSV file \*\*/labels.csv is 2 files, as deep/tables/labels.csv"):
        sources_by(tmp_path, walk(tmp_path).files, [recipe])
    for path in tmp_path.rglob("labels.csv"):
        path.unlink()
    with pytest.raises(RecipeError, match=r"\*\*/labels.csv is no file below"):
        sources_by(tmp_path, walk(tmp_path).files, [recipe])
