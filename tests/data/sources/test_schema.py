"""What a source's YAML may say, and what is said of one that does not."""

import re
from pathlib import Path

import pytest

from dexcore.data.modality import Modality
from dexcore.data.sources.recipe import Column, InFile, Recipe, RecipeError
from dexcore.data.sources.schema import describes_a_source, load_recipe


def load(folder, text):
    path = folder / "dataset.yaml"
    path.write_text(text, encoding="utf-8")
    return load_recipe(path, "unnamed")


def test_every_key_is_read(tmp_path):
    recipe = load(
        tmp_path,
        r"""
name: clips
modality: ultrasound
anatomy: thyroid
take: "*.hdf5"
leave: ["old/**", "*_test.hdf5"]
array: image
group: {array: annot_id, match: '^(\d+)_'}
cohort: thyroids
split: {csv: labels.csv, file: image, column: fold, heldout: [0, "test"]}
normalization: div255
min_side: 32
every: 10
hash_paths: true
home: a hospital
layout: |
  clips/<n>.hdf5
  beside labels
confirmed: false
terms: CC0
""",
    )
    assert (recipe.name, recipe.modality, recipe.anatomy) == ("clips", "Ultrasound", "thyroid")
    assert (recipe.take, recipe.leave) == (("*.hdf5",), ("old/**", "*_test.hdf5"))
    assert (recipe.array, recipe.group) == ("image", InFile("annot_id", re.compile(r"^(\d+)_")))
    assert recipe.split == (Column(Path("labels.csv"), "image", ("fold",)), frozenset({"0", "test"}))
    assert (recipe.cohort, recipe.min_side, recipe.every, recipe.hash_paths) == ("thyroids", 32, 10, True)
    assert (recipe.home, recipe.layout, recipe.confirmed) == ("a hospital", "clips/<n>.hdf5\nbeside labels\n", False)
    assert (recipe.normalization, recipe.terms) == ("div255", "CC0")


def test_columns_may_be_several(tmp_path):
    recipe = load(tmp_path, "group:\n  csv: a.csv\n  file: f\n  column: [site, patient]\n")
    assert recipe.group == Column(Path("a.csv"), "f", ("site", "patient"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modality: MR\ntakes: '*'\n", r"line 2: takes is no key: expected one of .*; did you mean take\?"),
        ("\nmodality: x-rays\n", r"line 2: modality is 'x-rays', expected one of .*; did you mean X-ray\?"),
        ("group: {path: '('}\n", r"line 1: group\.path is no regular expression: missing \)"),
        ("group: {path: a, csv: b}\n", r"line 1: group\.csv is no key: expected path"),
        ("group: {csv: b, file: f}\n", "line 1: group lacks column: expected csv and file and column"),
        ("group: {csv: b, file: f, column: []}\n", r"line 1: group\.column is an empty list"),
        ("group: {array: b}\narray: i\n", "line 1: group lacks match: expected array and match"),
        ("group: {array: b, match: c}\n", "line 1: group stands in an array .*: expected a key array"),
        ("terms: CC0\nhash_paths: maybe\n", "line 2: hash_paths is 'maybe', expected true or false"),
        ("take: /images/*.png\n", "line 1: take '/images/.*' is no pattern: expected a path below the folder"),
        ("split: 1.5\n", "line 1: split is 1.5, expected a share from 0 to 1"),
        ("layout: [a]\n", r"line 1: layout is \['a'\], expected a text"),
        ("take: ['*'\n", "line 2: is no YAML"),
    ],
)
def test_a_fault_is_told_with_line_key_and_what_was_expected(tmp_path, text, message):
    with pytest.raises(RecipeError, match=rf"dataset\.yaml, {message}"):
        load(tmp_path, text)


def test_one_line_is_enough(tmp_path):
    assert load(tmp_path, "modality: X-ray") == Recipe("unnamed", Modality.XRAY)
    assert load(tmp_path, "") == Recipe("unnamed")
    assert load(tmp_path, "modality: from DICOM\n") == Recipe("unnamed")


def test_what_is_no_text_file_is_told(tmp_path):
    (tmp_path / "dataset.yaml").write_bytes(b"modality: \xff\xfe")
    with pytest.raises(RecipeError, match=r"dataset.yaml: is no UTF-8 text"):
        load_recipe(tmp_path / "dataset.yaml", "x")
    with pytest.raises(RecipeError, match=r"nowhere.yaml: No such file or directory"):
        load_recipe(tmp_path / "nowhere.yaml", "x")


def test_the_yaml_of_another_program_is_told_apart(tmp_path):
    def ours(text):
        (tmp_path / "dataset.yaml").write_text(text)
        return describes_a_source(tmp_path / "dataset.yaml")

    assert not ours("path: ../coco\nnc: 3\nnames: [a, b, c]\n")
    assert ours("modalty: CT\nname: x\n")
    assert ours("")
    assert ours("modality: [")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("modality: CT\nmodality: MR", "line 2: modality stands there twice, first in line 1"),
        ("- CT", "line 1: expected keys with values, as modality: X-ray"),
        ("a: b: c", "line 1: is no YAML: mapping values are not allowed here"),
        ("axes: [axial, axial]", "line 1: axes is .*, expected one or more of sagittal, coronal, axial"),
        ("volume: last", "line 1: volume is 'last', expected first, all, or the number of a volume from 0"),
        ("mpp: 0", "line 1: mpp is 0, expected a number above 0"),
        ("name: !!python/object/apply:os.mkdir [pwned]", "line 1: is no YAML: could not determine a constructor"),
        ("a: " + "[" * 1500, "is nested too deeply|is no YAML"),
    ],
)
def test_yaml_that_does_more_or_less_than_describe_is_refused(tmp_path, monkeypatch, text, told):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=f"dataset.yaml.*{told}"):
        load(tmp_path, text)
    assert not (tmp_path / "pwned").exists()
