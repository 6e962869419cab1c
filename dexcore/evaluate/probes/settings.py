"""Probes that choose nothing: every setting is told, a number each; how these are estimated and compared.

Axes: e episodes, n test images, g cases, c classes, d draws.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from dexcore.evaluate.scores.compare import ComparisonError, better_side
from dexcore.evaluate.scores.flags import flags_of_task
from dexcore.measures.bootstrap import DRAWS, Estimate, estimate, resamples
from dexcore.measures.ratio import ratio

Setting = tuple[Any, ...]  # the layer, and what else there is to set


class BySetting(Protocol):
    """What a probe is worth on a task, by setting."""

    @property
    def task(self) -> str:
        """Of the task: its name."""

    @property
    def fingerprint(self) -> str:
        """Of the task."""

    @property
    def model(self) -> str:
        """The name of the features."""

    @property
    def seed(self) -> int:
        """Of the episodes."""

    @property
    def supports(self) -> str:
        """SHA-256 of the training images: equal ones are paired."""

    @property
    def settings(self) -> Sequence[Setting]:
        """Those that are told."""

    @property
    def label_n(self) -> np.ndarray:
        """The class of each test image, sorted by their names."""

    @property
    def case_n(self) -> np.ndarray:
        """The index of its case."""

    @property
    def flags(self) -> Sequence[str]:
        """What a reader of the numbers must know."""

    @property
    def numbers(self) -> Sequence[Estimate]:
        """Of each setting: the mean over classes of the mean over their images."""

    @property
    def metric(self) -> str:
        """What the numbers are."""

    def values(self) -> Iterator[np.ndarray]:
        """Of each setting float32 [e, n], from 0 to 1: 1 is right."""

    def told(self, setting: Setting) -> str:
        """A setting in words, but for its layer."""


def class_shares(label_n: np.ndarray) -> np.ndarray:
    """The weight of each image in a mean over classes: every class that is there counts the same."""
    count = np.bincount(label_n)
    return np.asarray(1 / count[label_n] / (count > 0).sum())


def estimated(value_en: np.ndarray, label_n: np.ndarray, case_n: np.ndarray) -> Estimate:
    """The mean over episodes and classes, and its interval: cases and episodes are drawn."""
    value = float(value_en.mean(axis=0, dtype=np.float64) @ class_shares(label_n))
    classes = np.unique(label_n)
    target_nc = (label_n[:, None] == classes).astype(np.float64)
    random = np.random.default_rng(1)
    cases, drawn = int(case_n.max()) + 1, []
    for weight_dg in resamples(np.zeros(cases, dtype=np.int64), DRAWS, 0) if cases > 1 else ():
        chosen = random.integers(0, len(value_en), (len(weight_dg), len(value_en)))
        share_de = np.stack([np.bincount(one, minlength=len(value_en)) for one in chosen]) / len(value_en)
        weight_dn = weight_dg[:, case_n]
        sum_dc = ((share_de.astype(np.float32) @ value_en) * weight_dn) @ target_nc
        count_dc = weight_dn @ target_nc
        drawn.append(ratio(sum_dc, count_dc).mean(axis=1))
    return estimate(value, np.concatenate([np.zeros(0), *drawn]), cases)


def compare_settings(a: BySetting, b: BySetting) -> list[tuple[Setting, Estimate]]:
    """A minus B, by A's settings: the same training images, and the same draws of cases and episodes of both.

    Layers are compared with those of the same name; the one layer of a model that has but one with all.

    Raises:
        ComparisonError: they are of other tasks or training images, or have no setting in common.
    """
    _check_paired(a, b)
    alone = 1 in (len({setting[0] for setting in one.settings}) for one in (a, b))
    others = list(zip(b.settings, b.values(), strict=True))
    found = [
        (one, estimated(value - of_other, a.label_n, a.case_n))
        for one, value in zip(a.settings, a.values(), strict=True)
        for other, of_other in others
        if one[1:] == other[1:] and (alone or one[0] == other[0])
    ]
    if not found:
        raise ComparisonError(f"task {a.task}: {a.model} and {b.model}: no layer and setting that both have")
    return found


def _check_paired(a: BySetting, b: BySetting) -> None:
    for name in ("task", "fingerprint", "metric", "supports"):
        if getattr(a, name) != getattr(b, name):
            raise ComparisonError(f"task {a.task}: {a.metric} of {a.model} and {b.model}: not the same {name}")


def compare_folders(a: Sequence[BySetting], b: Sequence[BySetting]) -> list[str]:
    """The comparisons of all that two folders share and their flags, for a terminal; [] where there is nothing.

    Raises:
        ComparisonError: as `compare_settings`, or a side holds several models of a task and a seed.
    """
    sides = []
    for name, found in (("a", a), ("b", b)):
        side: dict[tuple[str, str, int], BySetting] = {}
        for one in found:
            key = (one.metric, one.task, one.seed)
            if key in side:
                raise ComparisonError(
                    f"{name}: holds several models of task {one.task} with {one.metric}, {side[key].model} and "
                    f"{one.model}; expected one"
                )
            side[key] = one
        sides.append(side)
    lines: list[str] = []
    notes: dict[str, None] = {}
    for key in (key for key in sides[0] if key in sides[1]):
        one, other = sides[0][key], sides[1][key]
        for setting, number in compare_settings(one, other):
            better = better_side(number, f"{one.model} is better", f"{other.model} is better")
            lines.append(
                f"{one.task}: {_words(one, setting)}: {one.metric} of {one.model} - {other.model} "
                f"{number.value:+.3f} [{number.low:+.3f}, {number.high:+.3f}], {number.groups} cases: {better}"
            )
        notes |= dict.fromkeys(f"  note: {flag}" for flag in flags_of_task(one.task, [one, other]))
    return [*lines, *notes]


def _words(one: BySetting, setting: Setting) -> str:
    return " ".join(filter(None, (one.told(setting), f"on {setting[0]}")))


def not_beaten(found: BySetting, other: BySetting) -> list[str]:
    """The settings in which a model is not better than another one, in words."""
    return [_words(found, setting) for setting, difference in compare_settings(found, other) if not difference.low > 0]


@dataclass(frozen=True)
class SettingRow:
    """A task and a setting of a table.

    Attributes:
        task, metric, setting: what was measured.
        parts: of the setting, but for the layer: the number of images a class and the classifier; none of retrieval.
        numbers: by model, over its seeds.
        better: of the difference from the model that all are compared with: "+", "-" or "" for a tie, by model.
    """

    task: str
    metric: str
    setting: str
    parts: Setting
    numbers: Mapping[str, Estimate]
    better: Mapping[str, str]


@dataclass(frozen=True)
class SettingTable:
    """Models on tasks and settings.

    Attributes:
        models: their names.
        against: the model that the others are compared with.
        layer: whose numbers stand here; of a model with one layer that one.
        rows: a task and a setting each.
        flags: what a reader must know.
    """

    models: tuple[str, ...]
    against: str
    layer: str
    rows: tuple[SettingRow, ...]
    flags: tuple[str, ...]

    def lines(self) -> list[str]:
        """The table in Markdown."""
        head = ["task", "metric", "setting", *self.models]
        body = [
            [
                *(row.task, row.metric, row.setting or "-"),
                *(
                    f"{row.numbers[model]} {row.better.get(model, '')}".rstrip() if model in row.numbers else "-"
                    for model in self.models
                ),
            ]
            for row in self.rows
        ]
        notes = [f"- features: {self.layer}, or the only ones; + and - against {self.against}"]
        rows = [head, ["---"] * len(head), *body]
        return [*(f"| {' | '.join(cells)} |" for cells in rows), "", *notes, *(f"- {flag}" for flag in self.flags)]

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return {
            **{name: getattr(self, name) for name in ("models", "against", "layer", "flags")},
            "rows": [
                vars(row) | {"numbers": {model: number.as_json() for model, number in row.numbers.items()}}
                for row in self.rows
            ],
        }


def setting_table(found: Sequence[BySetting], against: str | None = None, layer: str = "mean") -> SettingTable:
    """Put models on tasks and settings; several seeds of a model are more episodes.

    Args:
        found: of several models.
        against: the model that the others are compared with, or one of its probes, as ``mine linear``; default: the
            first.
        layer: whose numbers are told, of a model that has it or no other.

    Raises:
        ComparisonError: there is nothing, no such model, or models of a task do not have the same training images.
    """
    models = tuple(dict.fromkeys(one.model for one in found))
    if not models:
        raise ComparisonError("table: there are no settings")
    beside = models[0] if against is None else next((m for m in models if f"{against} ".startswith(f"{m} ")), None)
    if beside is None:
        raise ComparisonError(f"against: no model {against!r}, expected one of {', '.join(models)}")
    of_task: dict[tuple[str, str], dict[str, dict[int, BySetting]]] = {}
    for one in found:
        seeds = of_task.setdefault((one.task, one.metric), {}).setdefault(one.model, {})
        if one.seed in seeds:
            raise ComparisonError(f"task {one.task}: {one.model} stands there twice with {one.metric}, seed {one.seed}")
        seeds[one.seed] = one
    rows: list[SettingRow] = []
    flags: list[str] = []
    for (task, metric), of_models in of_task.items():
        common = sorted(set.intersection(*(set(seeds) for seeds in of_models.values())))
        if not common:
            flags.append(f"{task}: {metric} is left out: there is no seed that all models have")
            continue
        first = next(iter(of_models.values()))[common[0]]
        values: dict[str, dict[Setting, np.ndarray]] = {}
        for model, seeds in of_models.items():
            for seed in common:
                _check_paired(next(iter(of_models.values()))[seed], seeds[seed])
            values[model] = _of_layer([seeds[seed] for seed in common], layer)
        rows += _rows(first, values, beside)
        if any(len(seeds) > len(common) for seeds in of_models.values()):
            flags.append(f"{task}: {metric} is of the seeds that all models have: {', '.join(map(str, common))}")
        flags += flags_of_task(task, [seeds[seed] for seeds in of_models.values() for seed in common])
    return SettingTable(models, beside, layer, tuple(rows), tuple(dict.fromkeys(flags)))


def _of_layer(found: Sequence[BySetting], layer: str) -> dict[Setting, np.ndarray]:
    """The values of all seeds, by setting without the layer."""
    layers = list(dict.fromkeys(setting[0] for setting in found[0].settings))
    chosen = layer if layer in layers else layers[0] if len(layers) == 1 else None
    together: dict[Setting, list[np.ndarray]] = {}
    for one in found:
        for setting, value in zip(one.settings, one.values(), strict=True):
            if setting[0] == chosen:
                together.setdefault(setting[1:], []).append(value)
    return {setting: np.concatenate(values) for setting, values in together.items()}


def _rows(first: BySetting, values: Mapping[str, Mapping[Setting, np.ndarray]], against: str) -> Iterator[SettingRow]:
    for setting in dict.fromkeys(setting for of_model in values.values() for setting in of_model):
        there = {model: of_model[setting] for model, of_model in values.items() if setting in of_model}
        numbers = {model: estimated(value, first.label_n, first.case_n) for model, value in there.items()}
        better = {
            model: better_side(estimated(value - there[against], first.label_n, first.case_n), "+", "-")
            for model, value in there.items()
            if against in there and model != against
        }
        better = {model: "" if side == "tie" else side for model, side in better.items()}
        yield SettingRow(first.task, first.metric, first.told(("", *setting)), setting, numbers, better)
