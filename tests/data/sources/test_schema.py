"""What a source's YAML may say, and what is said of one that does not."""

import re
from pathlib import Path

import pytest

from dexcore.data.sources.schema import Column, InFile, RecipeError, load_recipe


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
