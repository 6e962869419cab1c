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

import difflib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dexcore.data.modality import Modality
from dexcore.data.normalize import NORMALIZATIONS
from dexcore.data.sources.globs import matcher
from dexcore.data.sources.recipe import AXES, Column, Drawing, InFile, Recipe, RecipeError
from dexcore.extras import require

DATASET_YAML = "dataset.yaml"
FROM_DICOM = "from DICOM"
GROUPS = ("patient", "study", "volume", "file")
_MAX_BYTES = 1 << 20


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
    fields = _Fields.read(path)
    for key, _ in fields.pairs:
        if key not in _PARSERS:
            close = difflib.get_close_matches(key, _PARSERS, 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise fields.error(key, f"is no key: expected one of {', '.join(_PARSERS)}{hint}")
    parsed = {key: fields.parse(key, _PARSERS[key]) for key, _ in fields.pairs}
    if isinstance(parsed.get("group"), InFile) and "array" not in parsed:
        raise fields.error("group", "stands in an array of the images' file: expected a key array, as array: image")
    return Recipe(**{"name": name} | parsed)


def describes_a_source(path: Path) -> bool:
    """Whether a ``dataset.yaml`` is one of ours: other programs have files of this name with keys of their own.

    A file that cannot be read as YAML counts as ours, so that its fault is told.
    """
    try:
        keys = {key for key, _ in _Fields.read(path).pairs}
    except RecipeError:
        return True
    return not keys or bool(keys & set(_PARSERS))


class _Fields:
    """The keys of a mapping in a YAML file, with their lines."""

    def __init__(self, path: Path, inside: str, pairs: list[tuple[str, Any]], lines: dict[str, int]) -> None:
        self.path, self.inside, self.pairs, self.lines = path, inside, pairs, lines

    @classmethod
    def read(cls, path: Path) -> "_Fields":
        yaml = require("yaml", "train")
        try:
            if path.stat().st_size > _MAX_BYTES:
                raise RecipeError(f"{path}: more than {_MAX_BYTES} bytes, expected the few lines of a source")
            text = path.read_text(encoding="utf-8-sig")
        except OSError as error:
            raise RecipeError(f"{path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise RecipeError(f"{path}: is no UTF-8 text") from error
        try:
            loader = yaml.SafeLoader(text)
            node = loader.get_single_node()
            if node is None:
                return cls(path, "", [], {})
            return cls.of(path, "", loader, node)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = f", line {mark.line + 1}" if mark else ""
            raise RecipeError(f"{path}{line}: is no YAML: {getattr(error, 'problem', None) or error}") from error
        except RecursionError:
            raise RecipeError(f"{path}: is nested too deeply") from None

    @classmethod
    def of(cls, path: Path, inside: str, loader: Any, node: Any) -> "_Fields":
        yaml = require("yaml", "train")
        if not isinstance(node, yaml.MappingNode):
            raise RecipeError(f"{path}, line {node.start_mark.line + 1}: expected keys with values, as modality: X-ray")
        pairs: list[tuple[str, Any]] = []
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            key = str(loader.construct_object(key_node, deep=True))
            line = key_node.start_mark.line + 1
            if key in lines:
                raise RecipeError(f"{path}, line {line}: {inside}{key} stands there twice, first in line {lines[key]}")
            lines[key] = line
            if isinstance(value_node, yaml.MappingNode):
                value: Any = cls.of(path, f"{inside}{key}.", loader, value_node)
            else:
                value = loader.construct_object(value_node, deep=True)
            pairs.append((key, value))
        return cls(path, inside, pairs, lines)

    def error(self, key: str, problem: str) -> RecipeError:
        return RecipeError(f"{self.path}, line {self.lines[key]}: {self.inside}{key} {problem}")

    def parse(self, key: str, parser: Callable[[Any], Any]) -> Any:
        """Parse a key's value; what the parser says of it comes with the file, the line and the key."""
        try:
            return parser(dict(self.pairs)[key])
        except RecipeError:
            raise
        except ValueError as error:
            raise self.error(key, str(error)) from error

    def only(self, *keys: str) -> dict[str, Any]:
        """The values of exactly these keys: texts, or lists of texts."""
        found = dict(self.pairs)
        for key in found:
            if key not in keys:
                raise self.error(key, f"is no key: expected {' and '.join(keys)}")
        for key in keys:
            if key not in found:
                raise ValueError(f"lacks {key}: expected {' and '.join(keys)}")
        return {key: self.parse(key, _texts if key == "column" else _text) for key in keys}

    def __repr__(self) -> str:
        return "{" + ", ".join(key for key, _ in self.pairs) + "}"


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"is {value!r}, expected a text")
    return value


def _name(value: Any) -> str:
    text = _text(value)
    if not text.isprintable() or len(text) > 100:
        raise ValueError(f"is {text!r}, expected a name of at most 100 printable characters")
    return text


def _one_of(*words: str) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        if value not in words:
            close = difflib.get_close_matches(str(value), words, 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(f"is {value!r}, expected one of {', '.join(words)}{hint}")
        return str(value)

    return parse


def parse_modality(value: Any) -> Modality | None:
    """A modality by its name, in any case; None for "from DICOM".

    Raises:
        ValueError: there is none of this name; the message lists them.
    """
    names = {name.lower(): name for name in (*Modality, FROM_DICOM)}
    word = _one_of(*Modality, FROM_DICOM)(names.get(str(value).lower(), value))
    return None if word == FROM_DICOM else Modality(word)


def _texts(value: Any) -> tuple[str, ...]:
    if value == []:
        raise ValueError("is an empty list, expected one or more texts")
    return tuple(_text(one) for one in (value if isinstance(value, list) else [value]))


def _globs(value: Any) -> tuple[str, ...]:
    texts = _texts(value)
    matcher(texts)
    return texts


def _yes(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"is {value!r}, expected true or false")
    return value


def _whole(least: int) -> Callable[[Any], int]:
    def parse(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"is {value!r}, expected a whole number of at least {least}")
        return value

    return parse


def _positive(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1000:
        raise ValueError(f"is {value!r}, expected a number above 0 and below 1000")
    return float(value)


def _drawing(value: Any) -> Drawing:
    if not isinstance(value, _Fields):
        raise ValueError(f"is {value!r}, expected {{images: 20000}}, and size, seed or modalities beside it")
    parsers = {"images": _whole(1), "size": _whole(32), "seed": _whole(0), "modalities": _modalities}
    for key, _ in value.pairs:
        if key not in parsers:
            raise value.error(key, f"is no key: expected one of {', '.join(parsers)}")
    if "images" not in dict(value.pairs):
        raise ValueError("lacks images: expected how many are to be drawn")
    return Drawing(**{key: value.parse(key, parsers[key]) for key, _ in value.pairs})


def _modalities(value: Any) -> tuple[Modality, ...]:
    found = [parse_modality(one) for one in (value if isinstance(value, list) else [value])]
    if not found or None in found:
        raise ValueError(f"is {value!r}, expected one or more of {', '.join(Modality)}")
    return tuple(one for one in found if one is not None)


def _group(value: Any) -> Any:
    if not isinstance(value, _Fields):
        return _one_of(*GROUPS)(value)
    keys = dict(value.pairs)
    if "path" in keys:
        value.only("path")
        return _pattern(value, "path")
    if "array" in keys:
        return InFile(value.only("array", "match")["array"], _pattern(value, "match"))
    return _column(value.only("csv", "file", "column"))


def _pattern(fields: _Fields, key: str) -> re.Pattern[str]:
    try:
        return re.compile(fields.parse(key, _text))
    except re.error as error:
        raise fields.error(key, f"is no regular expression: {error}") from error


def _split(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"is {value!r}, expected a share from 0 to 1, train, heldout, or {{heldout: GLOBS}}")
    if isinstance(value, int | float):
        if not 0 <= value <= 1:
            raise ValueError(f"is {value!r}, expected a share from 0 to 1")
        return float(value)
    if not isinstance(value, _Fields):
        return _one_of("train", "heldout")(value)
    found = dict(value.pairs)
    if "heldout" not in found:
        raise ValueError("lacks heldout: expected {heldout: GLOBS}, or {csv, file, column, heldout}")
    if set(found) == {"heldout"}:
        return value.parse("heldout", _globs)
    values = found["heldout"] if isinstance(found["heldout"], list) else [found["heldout"]]
    rest = _Fields(value.path, value.inside, [pair for pair in value.pairs if pair[0] != "heldout"], value.lines)
    return _column(rest.only("csv", "file", "column")), frozenset(map(str, values))


def _column(values: dict[str, Any]) -> Column:
    return Column(Path(values["csv"]), values["file"], values["column"])


def _axes(value: Any) -> tuple[int, ...]:
    names = [_one_of(*AXES)(one) for one in (value if isinstance(value, list) else [value])]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"is {value!r}, expected one or more of {', '.join(AXES)}")
    return tuple(AXES.index(name) for name in names)


def _volume(value: Any) -> Any:
    if value in ("first", "all"):
        return value
    try:
        return _whole(0)(value)
    except ValueError:
        raise ValueError(f"is {value!r}, expected first, all, or the number of a volume from 0") from None


_PARSERS: dict[str, Callable[[Any], Any]] = {
    "name": _name,
    "modality": parse_modality,
    "anatomy": _name,
    "take": _globs,
    "leave": _globs,
    "group": _group,
    "cohort": _name,
    "split": _split,
    "units": _one_of("HU", "SUV"),
    "normalization": _one_of(*NORMALIZATIONS),
    "min_side": _whole(1),
    "axes": _axes,
    "every": _whole(1),
    "volume": _volume,
    "mpp": _positive,
    "array": _text,
    "hash_paths": _yes,
    "home": _text,
    "layout": _text,
    "confirmed": _yes,
    "terms": _text,
    "synthetic": _drawing,
}
