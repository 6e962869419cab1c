"""The YAML file of a task, and how it becomes a `Spec`.

    name: uns
    modality: Ultrasound         # one of the ten; "column": each row of the table says its own
    kind: segmentation           # classification, multilabel, ordinal, segmentation, multilabel_segmentation
    table: uns.csv               # CSV or Parquet, beside this file; its columns: dexcore.evaluate.tasks.table
    root: /data/uns              # where the table's paths begin; default: the folder of this file
    classes: {0: background, 1: nerve}    # or a list of names; whole numbers from 0
    ignore: 255                  # value of the pixels that do not count
    mask_values: {0: 0, 255: 1}  # what masks hold -> class; ranges ("1-255": 1), colours ("#ff0000": 1), to "ignore"
    regions: {core: [2, 3]}      # of multilabel_segmentation: channels as unions of the values of one mask
    normalization: div255        # a name of dexcore.data.normalize; default: by modality, as a store is built
    units: HU                    # HU or SUV, of files that do not say it
    range: [0, 4095]             # declared input range: the values of black and white; others are refused
    split: column                # or {by: case, stratify: label, fractions: [0.7, 0.1, 0.2], seed: 0}
    metric: dice                 # the primary number
    empty: nnunet                # or kaggle: the rule of dice for empty masks; kaggle is `metric: dice_kaggle`
    unit: case                   # case, volume or image: what is independent
    positive: nerve              # the class that is looked for
    cases: known                 # or unknown: images are taken as independent, and every interval says so
    about: where it comes from, under which terms

A split that is drawn is written into the table once, and never drawn again.
"""

import math
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dexcore.data.modality import Modality
from dexcore.data.normalize import NORMALIZATIONS
from dexcore.data.sources.fields import Fields, name_value, one_of, text_value, whole_number
from dexcore.data.sources.recipe import RecipeError, Units
from dexcore.data.sources.schema import parse_modality
from dexcore.task_kinds import KINDS, SEGMENTATIONS, Kind

Unit = Literal["case", "volume", "image"]

COLUMN = "column"  # of a modality or a split: it stands in the table
# The primary number of each kind where the YAML does not say it, and all that may be one.
METRICS: dict[str, tuple[str, ...]] = {
    "classification": ("auroc", "balanced_accuracy", "accuracy", "macro_f1", "average_precision"),
    "multilabel": ("auroc", "average_precision", "macro_f1"),
    "ordinal": ("kappa", "balanced_accuracy", "accuracy", "macro_f1", "auroc"),
    "segmentation": ("dice", "iou", "dice_present", "dice_kaggle"),
    "multilabel_segmentation": ("dice", "iou", "dice_present", "dice_kaggle"),
}
_DICE = {"nnunet": "dice", "kaggle": "dice_kaggle"}  # by the rule for empty masks
_RANGE = re.compile(r"(\d+)(?:\s*-\s*(\d+))?")
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")
_MOST_VALUE = 1 << 24  # of a mask: labels are no measurements


class TaskError(ValueError):
    """A task is not as its kind must be; the message names the task, the file and the row."""


@dataclass(frozen=True)
class MaskValues:
    """What the values of a mask stand for.

    Attributes:
        ranges: (lowest, highest, class) of whole numbers.
        colours: (red, green, blue) -> class.
    """

    ranges: tuple[tuple[int, int, int], ...] = ()
    colours: Mapping[tuple[int, int, int], int] = field(default_factory=dict)


@dataclass(frozen=True)
class DrawnSplit:
    """A split that is drawn: the column whose values stay together, that whose shares are kept, and the shares."""

    by: str = "case"
    stratify: str | None = None
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)  # train, val, test
    seed: int = 0


@dataclass(frozen=True)
class Spec:
    """A task, as its YAML describes it; the module's text has the keys.

    Attributes:
        path: the YAML file.
        modality: None where the table's column says it.
        classes: their names, by index; of a multilabel_segmentation the names of the channels.
        mask_values: None where masks hold the indices of classes.
        regions: of each channel, the values of the one mask that make it up.
        split: None where the table's column says it.
        range: the values of black and white.
    """

    path: Path
    name: str
    kind: Kind
    table: Path
    root: Path
    classes: tuple[str, ...]
    modality: Modality | None = None
    ignore: int | None = None
    mask_values: MaskValues | None = None
    regions: tuple[tuple[int, ...], ...] = ()
    normalization: str | None = None
    units: Units | None = None
    range: tuple[float, float] | None = None
    split: DrawnSplit | None = None
    metric: str = ""
    unit: Unit = "case"
    positive: str | None = None
    cases: Literal["known", "unknown"] = "known"
    about: str = ""

    def located(self, path: str) -> str:
        """Where a path of the table lies: below the root, or, where it begins with "./", beside this YAML."""
        return str((self.path.parent if path.startswith("./") else self.root) / path)

    @property
    def is_segmentation(self) -> bool:
        """Whether rows have masks, not labels."""
        return self.kind in SEGMENTATIONS


def load_spec(path: str | os.PathLike[str]) -> Spec:
    """Read a task's YAML.

    Raises:
        TaskError: the file is not as the module's text says; the message names file, line and key.
        MissingExtraError: PyYAML is not installed.
    """
    path = Path(path)
    try:
        fields = Fields.read(path)
        return _spec(path, fields, fields.parse_all(SPEC_PARSERS))
    except RecipeError as error:
        raise TaskError(str(error)) from error


def _spec(path: Path, fields: Fields, found: dict[str, Any]) -> Spec:
    if "regions" in found:
        if found.setdefault("classes", tuple(found["regions"])) != tuple(found["regions"]):
            raise fields.error("classes", f"are not the regions, expected {', '.join(found['regions'])}")
        if found.get("kind") != "multilabel_segmentation" or "mask_values" in found:
            raise fields.error("regions", "is for the kind multilabel_segmentation, and stands without mask_values")
        found["regions"] = tuple(found["regions"].values())
    for key in ("modality", "kind", "classes"):
        if key not in found:
            raise RecipeError(f"{path}: lacks {key}: a task says its modality, its kind and its classes")
    kind, classes = found["kind"], found["classes"]
    found.setdefault("name", path.stem)
    rule = found.pop("empty", None)
    if rule is not None and kind not in SEGMENTATIONS:
        raise fields.error("empty", f"is about masks, the task's kind is {kind}")
    metric = found.setdefault("metric", METRICS[kind][0])
    if rule is not None and metric != _DICE[rule]:
        if metric != "dice":
            raise fields.error("empty", f"is {rule}, a rule of dice; the metric is {metric}: expected one of both")
        found["metric"] = _DICE[rule]
    found["table"] = path.parent / found.get("table", f"{path.stem}.csv")
    found["root"] = path.parent / found.get("root", "")
    if found["modality"] == COLUMN:
        found["modality"] = None
    if found.get("split") == COLUMN:
        found["split"] = None
    if found["metric"] not in METRICS[kind]:
        raise fields.error("metric", f"is {found['metric']!r}, expected of {kind} one of {', '.join(METRICS[kind])}")
    if found.get("positive") is not None and found["positive"] not in classes:
        raise fields.error("positive", f"is {found['positive']!r}, expected one of {', '.join(classes)}")
    for key in ("ignore", "mask_values"):
        if key in found and kind not in SEGMENTATIONS:
            raise fields.error(key, f"is about masks, the task's kind is {kind}")
    if kind == "multilabel_segmentation" and "ignore" in found:
        raise fields.error("ignore", "is for masks of one class a pixel, each channel of this task has its own")
    ignore = found.get("ignore")
    if ignore is not None and ignore < len(classes):
        raise fields.error("ignore", f"is {ignore}, expected a value that is no class: {len(classes)} or more")
    if "mask_values" in found:
        channel = ("absent", "present")  # of a mask of one channel
        names = channel if kind == "multilabel_segmentation" else classes
        found["mask_values"] = fields.parse("mask_values", lambda value: _mask_values(value, names, ignore))
    if len(classes) < 2 and kind != "multilabel_segmentation" and kind != "multilabel":
        raise fields.error("classes", f"holds {len(classes)}, expected at least two")
    return Spec(path=path, **found)


def _classes(value: Any) -> tuple[str, ...]:
    if isinstance(value, Fields):
        keys = [key for key, _ in value.pairs]
        if sorted(keys) != sorted(map(str, range(len(keys)))):
            raise ValueError(f"has the keys {', '.join(keys)}, expected 0 to {len(keys) - 1}; mask_values maps others")
        names = [name for _, name in sorted(value.pairs, key=lambda pair: int(pair[0]))]
    elif isinstance(value, list) and value:
        names = value
    else:
        raise ValueError(f"is {value!r}, expected {{0: background, 1: nerve}} or a list of names")
    texts = tuple(name_value(name) for name in names)
    for name, times in Counter(texts).items():
        if ";" in name or times > 1:
            reason = "stands there twice" if times > 1 else "holds a semicolon, which parts names"
            raise ValueError(f"holds {name!r}, which {reason}")
    return texts


def _mask_values(value: Any, classes: tuple[str, ...], ignore: int | None) -> MaskValues:
    if not isinstance(value, Fields):
        raise ValueError(f"is {value!r}, expected {{0: 0, 255: 1}}: what masks hold, and the class it stands for")
    ranges: list[tuple[int, int, int]] = []
    colours: dict[tuple[int, int, int], int] = {}
    for key, _ in value.pairs:
        index = value.parse(key, lambda one: _class_index(one, classes, ignore))
        if _COLOUR.fullmatch(key):
            colours[int(key[1:3], 16), int(key[3:5], 16), int(key[5:7], 16)] = index
            continue
        match = _RANGE.fullmatch(key)
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if low > high or high > _MOST_VALUE:
            raise value.error(key, "is no value of a mask: expected a whole number, a range as 1-255, or '#ff0000'")
        for other, last, _ in ranges:
            if low <= last and other <= high:
                raise value.error(key, f"lies in {other}-{last}, which stands there too")
        ranges.append((low, high, index))
    if colours and ranges:
        raise ValueError("holds numbers and colours, expected one kind")
    return MaskValues(tuple(ranges), colours)


def _regions(value: Any) -> dict[str, tuple[int, ...]]:
    if not isinstance(value, Fields) or not value.pairs:
        raise ValueError(f"is {value!r}, expected {{whole: [1, 2, 3], core: [2, 3]}}")

    def values(found: Any) -> tuple[int, ...]:
        numbers = found if isinstance(found, list) else [found]
        return tuple(whole_number(1)(number) for number in numbers)

    return {name: value.parse(name, values) for name, _ in value.pairs}


def _class_index(value: Any, classes: tuple[str, ...], ignore: int | None) -> int:
    if value == "ignore" or (ignore is not None and value == ignore):
        if ignore is None:
            raise ValueError("is ignore, expected a key ignore with its value, as ignore: 255")
        return ignore
    if isinstance(value, str) and value in classes:
        return classes.index(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(classes):
        return value
    raise ValueError(f"is {value!r}, expected a class: 0 to {len(classes) - 1}, its name, or ignore")


def _modality(value: Any) -> Any:
    if value == COLUMN:
        return COLUMN
    try:
        found = parse_modality(value)
    except ValueError:
        found = None
    if found is None:
        raise ValueError(f"is {value!r}, expected one of {', '.join(Modality)}, or {COLUMN}")
    return found


def _range(value: Any) -> tuple[float, float]:
    numbers = value if isinstance(value, list) else []
    sound = len(numbers) == 2 and all(isinstance(one, int | float) and math.isfinite(one) for one in numbers)
    if not sound or not numbers[0] < numbers[1]:
        raise ValueError(f"is {value!r}, expected the values of black and white, as [0, 4095]")
    return float(numbers[0]), float(numbers[1])


def split_value(value: Any) -> Any:
    """ "column", or the split that is drawn."""
    if not isinstance(value, Fields):
        return one_of(COLUMN)(value)
    parsers: dict[str, Callable[[Any], Any]] = {
        "by": text_value,
        "stratify": text_value,
        "fractions": _fractions,
        "seed": whole_number(0),
    }
    return DrawnSplit(**value.parse_all(parsers))


def _fractions(value: Any) -> tuple[float, float, float]:
    numbers = value if isinstance(value, list) else []
    if len(numbers) != 3 or not all(isinstance(one, int | float) and 0 <= one <= 1 for one in numbers):
        raise ValueError(f"is {value!r}, expected the shares of train, val and test, as [0.7, 0.1, 0.2]")
    if not math.isclose(sum(numbers), 1, abs_tol=1e-6):
        raise ValueError(f"sums to {sum(numbers):.4g}, expected 1")
    train, val, test = map(float, numbers)
    return train, val, test


def _any(value: Any) -> Any:
    return value  # parsed when the classes are known


# By key; classes must be known before mask_values are parsed.
SPEC_PARSERS: dict[str, Callable[[Any], Any]] = {
    "name": name_value,
    "modality": _modality,
    "kind": one_of(*KINDS),
    "table": text_value,
    "root": text_value,
    "classes": _classes,
    "ignore": whole_number(1),
    "mask_values": _any,
    "regions": _regions,
    "normalization": one_of(*NORMALIZATIONS),
    "units": one_of("HU", "SUV"),
    "range": _range,
    "split": split_value,
    "metric": text_value,
    "empty": one_of(*_DICE),
    "unit": one_of("case", "volume", "image"),
    "positive": text_value,
    "cases": one_of("known", "unknown"),
    "about": text_value,
}
