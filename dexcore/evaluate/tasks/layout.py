"""The YAML file that says how the download of a task lies, and how it becomes a `Layout`.

It has the keys of a task (`spec`), but table, root and cases, and these:

    take: ["**/*_endo.png"]            # the images (globs of dexcore.data.sources)
    leave: ["**/domain_random/**"]
    mask: {match: "_endo\\.png$", to: "_watershed.png"}    # the mask's path from the image's; "*" stands for a name
    mask: {match: "...", to: {MA: "...", HE: "..."}}       # one a channel; what is not there is absent
    partial: true                      # images without a mask are left out, not an error
    draw: nonzero                      # how masks are made: nonzero, filled, polygons or regions (importers.raster)
    label: {path: "/(CLL|FL|MCL)/"}    # or {csv, file, column}, or {match, to, tag}: of a file beside, as XML or yolo
    group: {path: "(video\\d+)"}       # the case: an expression, {csv, file, column}, or file: nobody is known
    split: {train: GLOBS, val: GLOBS, test: GLOBS}         # or {fractions: [...], seed: 0}: drawn by case
    val: 0.3                           # the share of the train cases that becomes val, where there is none
    axis: coronal                      # volumes are cut across it; default: that of their acquisition
    raw: {height: 2048, width: 2048, dtype: ">u2", invert: 4095, reduce: 2}    # images without a header
    home, layout, confirmed, terms     # as of a source (dexcore.data.sources.schema)
    known: [sentences]                 # what is known about the task, and what is not
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dexcore.data.record import AXES
from dexcore.data.sources.fields import Fields, glob_values, one_of, text_value, whole_number, yes_value
from dexcore.data.sources.globs import matcher
from dexcore.data.sources.recipe import Column
from dexcore.data.sources.schema import column_value, group_value, pattern_value
from dexcore.evaluate.tasks.spec import SPEC_PARSERS, DrawnSplit, split_value
from dexcore.evaluate.tasks.table import SPLITS

DRAWINGS = ("nonzero", "filled", "polygons", "regions")


@dataclass(frozen=True)
class Beside:
    """A file beside an image: its path is the image's with ``match`` replaced by ``to``.

    There "*" stands for any name, and "**/" for any folders.
    """

    match: re.Pattern[str]
    to: str


@dataclass(frozen=True)
class Raw:
    """Images without a header. ``invert``: the value that becomes 0; ``reduce``: pixels a side that become one."""

    height: int
    width: int
    dtype: str
    invert: int | None = None
    reduce: int = 1


@dataclass(frozen=True)
class Layout:
    """How the files of a task lie; the module's text has the keys.

    Attributes:
        said: the keys of the task's YAML, as texts, numbers and lists.
        masks: by channel; of masks of one class a pixel the channel is "".
        label: an expression over the path, a column, or a file beside and the element in it ("": YOLO's first number).
        group: an expression over the path, a column, or None where nobody is known.
        splits: globs by split; none: ``drawn``.
        val: the share of the train cases that becomes val.
    """

    said: Mapping[str, Any]
    take: tuple[str, ...]
    leave: tuple[str, ...] = ()
    masks: Mapping[str, Beside] = field(default_factory=dict)
    draw: str | None = None
    label: re.Pattern[str] | Column | tuple[Beside, str] | None = None
    group: re.Pattern[str] | Column | None = None
    splits: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    partial: bool = False
    drawn: DrawnSplit = field(default_factory=DrawnSplit)
    val: float = 0.0
    axis: str | None = None
    raw: Raw | None = None
    home: str = ""
    layout: str = ""
    confirmed: bool = True
    terms: str = ""
    known: tuple[str, ...] = ()

    def images(self, paths: Iterable[str]) -> list[str]:
        """Those of some paths that are its images."""
        take, leave = matcher(self.take), matcher(self.leave)
        return [path for path in paths if take(path) and not leave(path)]


def load_layout(path: Path) -> Layout:
    """Read a layout's YAML.

    Raises:
        RecipeError: it is not as the module's text says; the message names file, line and key.
    """
    fields = Fields.read(path)
    found = fields.parse_all(_PARSERS)
    own = {key: value for key, value in found.items() if key not in SPEC_PARSERS or key == "split"}
    split = own.pop("split", None)
    if isinstance(split, DrawnSplit):
        own["drawn"] = split
    elif split is not None:
        own["splits"] = split
    own["masks"] = own.pop("mask", {})
    said = {"name": path.stem} | {
        key: _plain(value) for key, value in fields.pairs if key in SPEC_PARSERS and key != "split"
    }
    if "classes" in found:
        said["classes"] = list(found["classes"])
    return Layout(said=said, **{"take": ()} | own)


def _plain(value: Any) -> Any:
    if not isinstance(value, Fields):
        return value
    # Keys were made texts; numbers among them become numbers again.
    return {int(key) if key.isdecimal() else key: _plain(one) for key, one in value.pairs}


def _mask(value: Any) -> dict[str, Beside]:
    if not isinstance(value, Fields) or {key for key, _ in value.pairs} != {"match", "to"}:
        raise ValueError(f"is {value!r}, expected {{match: EXPRESSION, to: PATH}}")
    match, to = pattern_value(value, "match"), dict(value.pairs)["to"]
    if isinstance(to, Fields):
        return {name: Beside(match, to.parse(name, text_value)) for name, _ in to.pairs}
    return {"": Beside(match, value.parse("to", text_value))}


def _label(value: Any) -> Any:
    if not isinstance(value, Fields):
        raise ValueError(f"is {value!r}, expected {{path: EXPRESSION}}, {{csv, file, column}} or {{match, to, tag}}")
    keys = {key for key, _ in value.pairs}
    if "path" in keys:
        value.only("path")
        return pattern_value(value, "path")
    if "csv" in keys:
        return column_value(value.only("csv", "file", "column"))
    told = value.only("match", "to", "tag")
    return Beside(pattern_value(value, "match"), told["to"]), "" if told["tag"] == "yolo" else told["tag"]


def _group(value: Any) -> Any:
    return None if value == "file" else group_value(value)


def _split(value: Any) -> Any:
    if isinstance(value, Fields) and {key for key, _ in value.pairs} <= set(SPLITS):
        return value.parse_all(dict.fromkeys(SPLITS, glob_values))
    return split_value(value)


def _share(value: Any) -> float:
    if not isinstance(value, float) or not 0 < value < 1:
        raise ValueError(f"is {value!r}, expected a share between 0 and 1")
    return value


def _raw(value: Any) -> Raw:
    if not isinstance(value, Fields):
        raise ValueError(f"is {value!r}, expected {{height, width, dtype}}")
    parsers: dict[str, Callable[[Any], Any]] = dict.fromkeys(("height", "width", "reduce"), whole_number(1))
    parsers |= {"dtype": one_of("u1", ">u2", "<u2"), "invert": whole_number(1)}
    found = value.parse_all(parsers)
    if not {"height", "width", "dtype"} <= set(found):
        raise ValueError("expected height, width and dtype")
    return Raw(**found)


def _sentences(value: Any) -> tuple[str, ...]:
    return tuple(text_value(one) for one in (value if isinstance(value, list) else [value]))


_PARSERS: dict[str, Callable[[Any], Any]] = {
    **{key: parser for key, parser in SPEC_PARSERS.items() if key not in ("table", "root", "cases")},
    "partial": yes_value,
    "take": glob_values,
    "leave": glob_values,
    "mask": _mask,
    "draw": one_of(*DRAWINGS),
    "label": _label,
    "group": _group,
    "split": _split,
    "val": _share,
    "axis": one_of(*AXES),
    "raw": _raw,
    "home": text_value,
    "layout": text_value,
    "confirmed": yes_value,
    "terms": text_value,
    "known": _sentences,
}
