"""Pictures of the evaluation page: numbers with intervals, calibration, confusion, routes, and few images a class."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dexcore.measures.bootstrap import Estimate
from dexcore.report.pictures import BLUE, NEUTRAL, RED, Picture, modality_color, new_figure, spread, styled, to_png

_LETTERS = 44  # of a model's name beside its number
_BLOCKS = 4  # of a model that are drawn where tasks are rows


@dataclass(frozen=True)
class ModelRow:
    """A model on a task.

    Attributes:
        name: as in the table.
        number: the task's, over the model's seeds.
        baseline: whether it has learned nothing and is to be beaten.
        better: "+" or "-" where the interval of the difference from the model that all are compared with excludes 0.
        rank: 1 is the best; None where the number is not defined.
        seeds: trainings.
    """

    name: str
    number: Estimate
    baseline: bool
    better: str = ""
    rank: float | None = None
    seeds: int = 1


def plain(text: str, letters: int = _LETTERS) -> str:
    """A text as matplotlib draws it: no formulas, cut where it is long."""
    cut = text if len(text) <= letters else f"{text[: letters - 1]}…"
    return cut.replace("$", r"\$")


def forest_picture(rows: Sequence[ModelRow], metric: str, against: str, lower_is_better: bool) -> Picture:
    """The number of every model with its interval, the best one on top; baselines are gray."""
    with styled():
        figure = new_figure(0.75 + 0.46 * len(rows))
        axis = figure.subplots()
        for place, row in enumerate(rows):
            number, color = row.number, NEUTRAL if row.baseline else BLUE
            weight = "normal" if row.baseline else "bold"
            text = {"transform": axis.get_yaxis_transform(), "fontsize": 9.5, "va": "center"}
            axis.text(0, place - 0.28, plain(row.name), weight=weight, **text)
            axis.text(1, place - 0.28, f"{_told(number)} {row.better}".rstrip(), ha="right", **text)
            if np.isfinite(number.low):
                axis.plot([number.low, number.high], [place + 0.12] * 2, color=color, linewidth=3, alpha=0.45)
            if np.isfinite(number.value):
                axis.plot(number.value, place + 0.12, "s" if row.baseline else "o", color=color, markersize=7)
        beat = [row.number.value for row in rows if row.baseline and np.isfinite(row.number.value)]
        if beat:
            best = min(beat) if lower_is_better else max(beat)
            places = np.arange(len(rows)) + 0.12  # not through the texts
            axis.vlines(np.full(len(rows), best), places - 0.16, places + 0.3, color=NEUTRAL, linestyle=":", zorder=0)
        axis.set_ylim(len(rows) - 0.45, -0.6)
        axis.set_yticks([])
        axis.spines["left"].set_visible(False)
        axis.margins(x=0.06)
        axis.set_xlabel(metric.replace("_", " "))
        axis.locator_params(axis="x", nbins=6)
        png = to_png(figure)
    side = "left" if lower_is_better else "right"
    marks = (
        f" + and - mark a difference from {against}, case by case, whose interval excludes 0."
        if any(row.name == against for row in rows)
        else ""
    )
    return Picture(
        name="forest.png",
        title="All models",
        reading=(
            f"A dot is a model's number, its bar the 95 % interval; {side} is better. Gray squares are "
            f"baselines that have learned nothing, the dotted line is the best of them.{marks}"
            if beat
            else f"A dot is a model's number, its bar the 95 % interval; {side} is better.{marks}"
        ),
        bad="no gray baseline: what these numbers are worth is not known."
        if not beat
        else "a model at or behind the dotted line: its number says how images were exposed, and little of features.",
        png=png,
    )


def _told(number: Estimate) -> str:
    if not np.isfinite(number.value):
        return "not defined"
    interval = f" [{number.low:.3f}, {number.high:.3f}]" if np.isfinite(number.low) else ""
    return f"{number.value:.3f}{interval}"


def reliability_picture(bins: Sequence[tuple[int, float, float]], error: Estimate) -> Picture:
    """How often a model is right by how sure it is.

    Args:
        bins: of confidence: items, their mean confidence, and the share that is right.
        error: the expected calibration error.
    """
    items, confidence, right = (np.array(column, dtype=float) for column in zip(*bins, strict=True))
    with styled():
        figure = new_figure(3.9)
        top, below = figure.subplots(2, 1, height_ratios=[3, 1], sharex=True)
        top.plot([0, 1], [0, 1], color=NEUTRAL, linestyle=":", linewidth=1.3)
        top.vlines(
            confidence, np.minimum(confidence, right), np.maximum(confidence, right), color=RED, alpha=0.35, lw=4
        )
        top.plot(confidence, right, "o-", color=BLUE, markersize=6, linewidth=1.2)
        top.set_ylim(-0.03, 1.03)
        top.set_title("Share that is right")
        top.grid(True)
        below.bar(confidence, items, width=0.035, color=BLUE, alpha=0.7)
        below.set_title("Items")
        below.set_xlabel("confidence: the probability of the chosen class")
        below.set_xlim(0, 1.02)
        below.locator_params(axis="y", nbins=3, integer=True)
        png = to_png(figure)
    return Picture(
        name="reliability.png",
        title="Calibration",
        reading="On the dotted line a model is right as often as it says; bars in red are what the error adds up.",
        bad="dots far below the line: it is surer than it should be.",
        png=png,
        found=f"Expected calibration error (ECE, 15 bins): {_told(error)}.",
    )


def confusion_picture(confusion_cc: np.ndarray, classes: Sequence[str]) -> Picture:
    """Which class is taken for which: counts, each row's shares in color."""
    count = len(classes)
    total = confusion_cc.sum(axis=1, keepdims=True)
    share = np.divide(confusion_cc, total, out=np.zeros(confusion_cc.shape), where=total > 0)
    with styled():
        figure = new_figure(1.2 + min(3.6, 0.45 * count + 0.5))
        axis = figure.subplots()
        axis.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        if count <= 14:
            for row in range(count):
                for column in range(count):
                    color = "white" if share[row, column] > 0.55 else "#20262c"
                    style = {"ha": "center", "va": "center", "fontsize": 10 if count < 8 else 7.5, "color": color}
                    axis.text(column, row, str(int(confusion_cc[row, column])), **style)
        shown = spread(np.arange(count), 14)
        axis.set_yticks(shown, [f"{plain(classes[n], 18)}  {n + 1}" for n in shown])
        axis.set_xticks(shown, [str(n + 1) for n in shown])
        axis.set_xlabel("predicted")
        axis.spines[:].set_visible(False)
        axis.tick_params(length=0)
        png = to_png(figure)
    return Picture(
        name="confusion.png",
        title="Confusion",
        reading="A row is a class of the reference, a column what was predicted; darker is a larger share of the row.",
        bad="a dark column: everything is taken for one class.",
        png=png,
    )


def routes_picture(gates_lr: np.ndarray, images: int, features: str) -> Picture:
    """What each expert received of a task's images, block by block."""
    with styled():
        figure = new_figure(0.9 + min(3.2, 0.28 * len(gates_lr) + 0.3))
        axis = figure.subplots()
        drawn = axis.imshow(gates_lr, cmap="viridis", vmin=0, aspect="auto")
        blocks, experts = (spread(np.arange(size), most) for size, most in zip(gates_lr.shape, (12, 16), strict=True))
        axis.set_yticks(blocks, [str(number + 1) for number in blocks])
        axis.set_xticks(experts, [str(number + 1) for number in experts])
        axis.set_ylabel("block")
        axis.set_xlabel("expert")
        axis.spines[:].set_visible(False)
        axis.tick_params(length=0)
        figure.colorbar(drawn, ax=axis, fraction=0.05, pad=0.03).outline.set_visible(False)
        png = to_png(figure)
    strongest = [f"{number + 1}: {int(row.argmax()) + 1} ({row.max():.0%})" for number, row in enumerate(gates_lr)]
    return Picture(
        name="routes.png",
        title=f"Routes of {features}",
        reading=f"The mean gate of each expert over {images} test images: a row adds up to 1.",
        bad="one bright column from top to bottom (collapse), or rows without any contrast on every task.",
        png=png,
        found=f"The strongest expert by block: {', '.join(strongest)}.",
    )


def routes_by_task_picture(gates: Mapping[str, np.ndarray], features: str) -> Picture:
    """Whether tasks go different ways: a row a task, a column an expert, for some blocks.

    Args:
        gates: [layers, experts] by task, at least two.
        features: their name.
    """
    tasks = list(gates)
    stacked = np.stack(list(gates.values()))
    blocks = np.unique(np.linspace(0, stacked.shape[1] - 1, min(_BLOCKS, stacked.shape[1])).round().astype(int))
    with styled():
        figure = new_figure(0.5 + len(blocks) * (0.6 + 0.24 * len(tasks)))
        axes = figure.subplots(len(blocks), 1, squeeze=False)[:, 0]
        for axis, block in zip(axes, blocks, strict=True):
            drawn = axis.imshow(stacked[:, block], cmap="viridis", vmin=0, vmax=stacked.max(), aspect="auto")
            axis.set_title(f"Block {block + 1}")
            axis.set_yticks(range(len(tasks)), [plain(task, 18) for task in tasks], fontsize=9)
            experts = spread(np.arange(stacked.shape[2]), 16)
            axis.set_xticks(experts, [str(number + 1) for number in experts])
            axis.spines[:].set_visible(False)
            axis.tick_params(length=0)
        axes[-1].set_xlabel("expert")
        figure.colorbar(drawn, ax=list(axes), fraction=0.05, pad=0.03, aspect=40).outline.set_visible(False)
        png = to_png(figure)
    return Picture(
        name="routes_by_task.png",
        title=f"Routes by task: {features}",
        reading="The mean gate of each expert over a task's test images: rows that differ are tasks with experts of "
        "their own.",
        bad="rows that are all alike: routing does not tell these tasks apart.",
        png=png,
        detail="Tasks of other modalities differ in exposure too, and an untrained router tells those apart: routes "
        "alone do not say what experts know.",
    )


def shots_picture(courses: Mapping[str, Mapping[str, Mapping[int, Estimate]]], metric: str, layer: str) -> Picture:
    """A number by the images a class: a panel a classifier, a line a model.

    Args:
        courses: by classifier, model and number of images a class.
        metric: what the numbers are.
        layer: of the features.
    """
    models = list(dict.fromkeys(model for of_model in courses.values() for model in of_model))
    with styled():
        figure = new_figure(0.35 + 2.3 * len(courses) + 0.2 * ((len(models) + 1) // 2))
        axes = figure.subplots(len(courses), 1, squeeze=False, sharex=True)[:, 0]
        keys: dict[str, Any] = {}
        for axis, (method, of_model) in zip(axes, courses.items(), strict=True):
            for number, model in enumerate(models):
                course = of_model.get(model, {})
                # Beside each other, so that equal numbers do not hide one another.
                x = np.array(list(course), dtype=float) * 2 ** (0.06 * (number - (len(models) - 1) / 2))
                value, low, high = (np.array([getattr(one, part) for one in course.values()]) for part in _ESTIMATE)
                color = modality_color(number)
                axis.vlines(x, low, high, color=color, alpha=0.4, linewidth=2.5)
                keys[model] = axis.plot(x, value, "o-", color=color, markersize=5, linewidth=1.3)[0]
            axis.set_title(method)
            axis.set_xscale("log", base=2)
            axis.grid(True, axis="y")
        shots = sorted({shots for of_model in courses.values() for course in of_model.values() for shots in course})
        axes[-1].set_xticks(shots, list(map(str, shots)))
        axes[-1].minorticks_off()
        axes[-1].set_xlabel("images a class")
        names = [plain(model, 26) for model in keys]
        figure.legend(list(keys.values()), names, loc="outside lower left", ncols=2, fontsize=9, handlelength=1.2)
        png = to_png(figure)
    return Picture(
        name="shots.png",
        title="Few images a class",
        reading=f"{metric.replace('_', ' ').capitalize()} of the whole test split from so many training images a "
        "class, a mean over episodes, the same for all models; bars are 95 % intervals over cases and episodes.",
        bad="a line that does not rise, or does not leave the baselines'.",
        png=png,
        detail=f"Features: {layer}, or the only ones that a model has. Nothing is chosen; no validation image is used.",
    )


_ESTIMATE = ("value", "low", "high")
