"""The YAML file that describes a source of images, and how it becomes a `Recipe`.

    name: knees                        # default: the folder's path
    modality: MR                       # one of the ten; "from DICOM" (the default) where the files say it
    anatomy: knee
    take: ["*.nii.gz"]                 # default: every file
    leave: ["masks/**", "*_seg.nii.gz"]
    group: {path: "(patient\\d+)"}     # patient (default), study, volume, file, a regular expression, or a CSV column
    cohort: hospital                   # sources of one cohort share their patients; default: the name
    split: {heldout: "test/**"}        # a share of the groups (default 0.1), train, heldout, globs, or a CSV column
    units: HU                          # HU or SUV, of files that do not say it
    normalization: percentile_minmax   # default: by modality
    min_side: 64                       # px; smaller images are dropped
    axes: [axial]                      # a volume is cut across these; default: as it was acquired
    every: 30                          # one frame in so many; default: 30 of videos, else 1
    volume: first                      # of a 4-D file: first, all, or a number from 0
    mpp: 0.5                           # microns per pixel of the tiles of whole slides
    array: image                       # of an HDF5 file with several: the one that holds the images
    hash_paths: true                   # hashes stand in the store in place of paths: names of files may be patients'
    home: our archive, study 12        # where it is to be had
    layout: scans/<patient>/*.nii.gz   # how its files lie, in words
    confirmed: false                   # the layout was not seen, it is known from descriptions
    terms: CC-BY-4.0
    synthetic: {images: 20000, size: 256, seed: 0, modalities: [CT, MR]}    # no file is read: SyntheticMVU draws

A CSV column is ``{csv: labels.csv, file: NAME, column: NAME}``: the file is relative to the source's folder, or a glob
that one file below it matches; ``file`` names the column with the images' paths, names or stems, ``column`` that with
the values (a list of names: together). Patients that a column of an HDF5 file gives, one an image, are
``{array: NAME, match: REGEX}``.

The file may lie in the folder itself, as ``dataset.yaml``: it then holds for all below, but for what lies below another
one. Every key may be left out; one line, ``modality: X-ray``, is enough.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dexcore.data.modality import Modality
from dexcore.data.normalize import NORMALIZATIONS
from dexcore.data.record import AXES
from dexcore.data.sources.fields import (
    Fields,
    glob_values,
    name_value,
    one_of,
    text_value,
    whole_number,
    yes_value,
)
from dexcore.data.sources.recipe import Column, Drawing, InFile, Recipe, RecipeError

DATASET_YAML = "dataset.yaml"
FROM_DICOM = "from DICOM"
GROUPS = ("patient", "study", "volume", "file")


def load_recipe(path: str | os.PathLike[str], name: str) -> Recipe:
    """Read a source's YAML.

    Args:
        path: the file.
        name: of the source where the file does not give one.

    Raises:
        RecipeError: the file is not as `Recipe` says.
        MissingExtraError: PyYAML is not installed.
    """
    path = Path(path)
    fields = Fields.read(path)
    parsed = fields.parse_all(_PARSERS)
    if isinstance(parsed.get("group"), InFile) and "array" not in parsed:
        raise fields.error("group", "stands in an array of the images' file: expected a key array, as array: image")
    return Recipe(**{"name": name} | parsed)


def describes_a_source(path: Path) -> bool:
    """Whether a ``dataset.yaml`` is one of ours: other programs have files of this name with keys of their own.

    A file that cannot be read as YAML counts as ours, so that its fault is told.
    """
    try:
        keys = {key for key, _ in Fields.read(path).pairs}
    except RecipeError:
        return True
    return not keys or bool(keys & set(_PARSERS))


def parse_modality(value: Any) -> Modality | None:
    """A modality by its name, in any case; None for "from DICOM".

    Raises:
        ValueError: there is none of this name; the message lists them.
    """
    names = {name.lower(): name for name in (*Modality, FROM_DICOM)}
    word = one_of(*Modality, FROM_DICOM)(names.get(str(value).lower(), value))
    return None if word == FROM_DICOM else Modality(word)


def _positive(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1000:
        raise ValueError(f"is {value!r}, expected a number above 0 and below 1000")
    return float(value)


def _drawing(value: Any) -> Drawing:
    if not isinstance(value, Fields):
        raise ValueError(f"is {value!r}, expected {{images: 20000}}, and size, seed or modalities beside it")
    parsers = {"images": whole_number(1), "size": whole_number(32), "seed": whole_number(0), "modalities": _modalities}
    parsed = value.parse_all(parsers)
    if "images" not in parsed:
        raise ValueError("lacks images: expected how many are to be drawn")
    return Drawing(**parsed)


def _modalities(value: Any) -> tuple[Modality, ...]:
    found = [parse_modality(one) for one in (value if isinstance(value, list) else [value])]
    if not found or None in found:
        raise ValueError(f"is {value!r}, expected one or more of {', '.join(Modality)}")
    return tuple(one for one in found if one is not None)


def group_value(value: Any) -> Any:
    """What tells the group of an image: a level's name, an expression, a column, or an array (`Recipe.group`)."""
    if not isinstance(value, Fields):
        return one_of(*GROUPS)(value)
    keys = dict(value.pairs)
    if "path" in keys:
        value.only("path")
        return pattern_value(value, "path")
    if "array" in keys:
        return InFile(value.only("array", "match")["array"], pattern_value(value, "match"))
    return column_value(value.only("csv", "file", "column"))


def pattern_value(fields: Fields, key: str) -> re.Pattern[str]:
    """The regular expression of a key."""
    try:
        return re.compile(fields.parse(key, text_value))
    except re.error as error:
        raise fields.error(key, f"is no regular expression: {error}") from error


def _split(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"is {value!r}, expected a share from 0 to 1, train, heldout, or {{heldout: GLOBS}}")
    if isinstance(value, int | float):
        if not 0 <= value <= 1:
            raise ValueError(f"is {value!r}, expected a share from 0 to 1")
        return float(value)
    if not isinstance(value, Fields):
        return one_of("train", "heldout")(value)
    found = dict(value.pairs)
    if "heldout" not in found:
        raise ValueError("lacks heldout: expected {heldout: GLOBS}, or {csv, file, column, heldout}")
    if set(found) == {"heldout"}:
        return value.parse("heldout", glob_values)
    values = found["heldout"] if isinstance(found["heldout"], list) else [found["heldout"]]
    rest = Fields(value.path, value.inside, [pair for pair in value.pairs if pair[0] != "heldout"], value.lines)
    return column_value(rest.only("csv", "file", "column")), frozenset(map(str, values))


def column_value(values: dict[str, Any]) -> Column:
    """The column that ``csv``, ``file`` and ``column`` name."""
    return Column(Path(values["csv"]), values["file"], values["column"])


def _axes(value: Any) -> tuple[int, ...]:
    names = [one_of(*AXES)(one) for one in (value if isinstance(value, list) else [value])]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"is {value!r}, expected one or more of {', '.join(AXES)}")
    return tuple(AXES.index(name) for name in names)


def _volume(value: Any) -> Any:
    if value in ("first", "all"):
        return value
    try:
        return whole_number(0)(value)
    except ValueError:
        raise ValueError(f"is {value!r}, expected first, all, or the number of a volume from 0") from None


_PARSERS: dict[str, Callable[[Any], Any]] = {
    "name": name_value,
    "modality": parse_modality,
    "anatomy": name_value,
    "take": glob_values,
    "leave": glob_values,
    "group": group_value,
    "cohort": name_value,
    "split": _split,
    "units": one_of("HU", "SUV"),
    "normalization": one_of(*NORMALIZATIONS),
    "min_side": whole_number(1),
    "axes": _axes,
    "every": whole_number(1),
    "volume": _volume,
    "mpp": _positive,
    "array": text_value,
    "hash_paths": yes_value,
    "home": text_value,
    "layout": text_value,
    "confirmed": yes_value,
    "terms": text_value,
    "synthetic": _drawing,
}
