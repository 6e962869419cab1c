"""A run on a terminal: where it stands, its curves, the use of its experts, and what to do."""

import math
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dexcore.amounts import duration
from dexcore.extras import require
from dexcore.report.live.advice import Advice
from dexcore.report.live.course import Course, Standing

if TYPE_CHECKING:
    from rich.console import RenderableType

_BARS = "▁▂▃▄▅▆▇█"
_CURVES = {  # of metrics.jsonl, in this order
    "loss": "loss",
    "loss_self": "objective",
    "loss_align": "alignment",
    "loss_balance": "balance",
    "loss_entropy": "cross-entropy",
    "loss_dice": "dice loss",
    "grad_norm": "gradient norm",
    "lr": "learning rate",
    "images_per_second": "images a second",
}
_WIDE = 76  # characters, for all numbers beside the curves
_LOG = ("learning rate", "gradient norm")
_STYLES = {
    Standing.TRAINING: "green",
    Standing.EVALUATING: "green",
    Standing.FINISHED: "green",
    Standing.QUIET: "yellow",
    Standing.STOPPED: "yellow",
}


def screen(course: Course, advice: Sequence[Advice], width: int = 80) -> "RenderableType":
    """All of it, for a console of rich's.

    Args:
        course: from `Follower.read`.
        advice: from `advise`.
        width: of the terminal, in characters.

    Raises:
        MissingExtraError: rich is not installed.
    """
    console = require("rich.console", "train")
    parts: list[Any] = [_head(course), _progress(course, width), *_beside(course)]
    if course.steps:
        parts += ["", _curves(course, width)]
    if course.load:
        parts += ["", _experts(course, width)]
    for one in advice:
        text = require("rich.text", "train").Text
        parts += ["", text(f"! {one.problem}", style="bold yellow"), text(f"  {one.remedy}")]
    return console.Group(*parts)


def sparkline(values: np.ndarray, width: int, low: float | None = None, high: float | None = None) -> str:
    """A curve in ``width`` characters at most, each the mean of its piece; a blank where no number is finite."""
    pieces = np.array_split(values, min(width, len(values))) if len(values) else []
    means = np.array([piece[np.isfinite(piece)].mean() if np.isfinite(piece).any() else np.nan for piece in pieces])
    known = means[np.isfinite(means)]
    if not len(known):
        return " " * len(means)
    low = known.min() if low is None else low
    high = known.max() if high is None else high
    scaled = np.clip((means - low) / (high - low if high > low else 1), 0, 1)
    return "".join(_BARS[round(one * 7)] if math.isfinite(one) else " " for one in scaled.tolist())


def _head(course: Course) -> Any:
    text = require("rich.text", "train").Text()
    text.append(str(course.folder), style="bold")
    text.append(f" {course.standing.value}", style=_STYLES.get(course.standing, ""))
    return text


def _progress(course: Course, width: int) -> Any:
    text = require("rich.text", "train").Text()
    if not course.total_steps:
        text.append(f"step {course.steps:,}, epoch {course.epoch}")
    else:
        done = min(1.0, course.steps / course.total_steps)
        told = f"step {course.steps:,} of {course.total_steps:,}, epoch {course.epoch}"
        left = course.standing in (Standing.TRAINING, Standing.ELSEWHERE, Standing.QUIET)
        after = f" {100 * done:.0f} %" + (f", {duration(course.seconds_left)} left" if left else "")
        room = max(10, width - len(told) - len(after) - 2)
        text.append(f"{told} ")
        text.append("━" * round(done * room), style="green")
        text.append("━" * (room - round(done * room)), style="dim")
        text.append(after)
    return text


def _beside(course: Course) -> Iterator[Any]:
    text = require("rich.text", "train").Text
    now, told = time.time(), []
    if course.checkpoint is not None:
        steps, written = course.checkpoint
        told.append(f"checkpoint after step {steps:,}, {duration(now - written)} ago")
    elif course.steps:
        told.append("no checkpoint yet")
    if math.isfinite(course.written) and course.standing is not Standing.FINISHED:
        told.append(f"last step {duration(now - course.written)} ago")
    if told:
        yield text(", ".join(told), style="dim")
    shares = [f"{name.removeprefix('seconds_')} {100 * share:.0f} %" for name, share in course.shares().items()]
    if shares:
        yield text(f"of a step's time: {', '.join(shares)}", style="dim")
    machine, images = course.start.get("machine", {}), course.start.get("images", {})
    if machine:
        count = machine.get("processes", 1)
        where = f"{count} processes on {machine.get('device')}" if count > 1 else f"on {machine.get('device')}"
        training = sum(images.get("training", {}).values())
        yield text(f"{where}; {training:,} training images of {images.get('name')}", style="dim")


def _curves(course: Course, width: int) -> Any:
    rows: list[tuple[str, np.ndarray, int]] = []
    for name, title in _CURVES.items():
        values = np.array(course.scalars.get(name, ()))
        if np.isfinite(values).any() and not (name == "loss" and "loss_self" in course.scalars):
            rows.append((title, values, 20))
    if course.heldout is not None and course.heldout.best:
        rows.append(("held-out loss", course.heldout.loss, 1))
    if course.probe is not None:
        for (mode, layer), curve in course.probe.curves.items():
            if np.isfinite(curve).any():
                rows.append((f"{course.probe.metric}, {mode} {layer}", curve, 1))
    head = ("", "now", "first", "least", "most")[: 3 if width < _WIDE else 5]
    told = [(title, *_numbers(values, steps))[: len(head)] for title, values, steps in rows]
    taken = sum(max(map(len, column)) + 2 for column in zip(head, *told, strict=True))
    table = _table(*head, "course")
    for (title, values, _), numbers in zip(rows, told, strict=True):
        shown = np.log(np.maximum(values, 1e-12)) if title in _LOG else values
        low, high = np.nanquantile(shown[np.isfinite(shown)], (0.01, 0.98))  # the first steps would flatten the rest
        table.add_row(title, *numbers[1:], sparkline(shown, max(4, width - taken - 2), low, high))
    return table


def _numbers(values: np.ndarray, steps: int) -> tuple[str, ...]:
    """The mean of the last steps, the first number, the least and the most."""
    finite = values[np.isfinite(values)]
    return tuple(f"{one:.3g}" for one in (finite[-steps:].mean(), finite[0], finite.min(), finite.max()))


def _experts(course: Course, width: int) -> Any:
    """A row a block: a bar an expert, full at twice an even share."""
    table = _table("block", "gates by expert", "least (expert)", "most (expert)")
    for number, share_r in enumerate(course.mean_load(), start=1):
        relative = share_r * len(share_r)
        bars = sparkline(relative[: max(8, width - 40)], len(relative), 0.0, 2.0)
        ends = (f"{100 * share_r[at]:.1f} % ({at + 1})" for at in (relative.argmin(), relative.argmax()))
        table.add_row(str(number), bars, *ends)
    return table


def _table(*columns: str) -> Any:
    table = require("rich.table", "train").Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for place, column in enumerate(columns):
        left = not place or column.startswith(("course", "gates"))
        table.add_column(column, justify="left" if left else "right", no_wrap=True)
    return table
