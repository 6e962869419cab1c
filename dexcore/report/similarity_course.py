"""The picture of the experts' likeness over time."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dexcore.report.history import SimilarityCourse
from dexcore.report.model_measures import Likeness, likeness
from dexcore.report.pictures import BLUE, RED, Picture, new_figure, styled, to_png

_BLOCKS = 8  # drawn


def similarity_course_picture(course: SimilarityCourse) -> Picture | None:
    """Likeness of experts and director over time, a panel a block; None where it was not measured at two moments."""
    count = len(course.blocks)
    shown = [int(n) for n in np.unique(np.linspace(0, count - 1, min(_BLOCKS, count)).round())]
    if len(course.step) < 2 or not any(np.isfinite(course.blocks[number][:, -1, :-1]).any() for number in shown):
        return None
    measured = [likeness(list(block)) for block in course.blocks]  # of each block, at each moment
    rows = (len(shown) + 1) // 2
    with styled():
        figure = new_figure(0.7 + 1.55 * rows)
        axes = list(figure.subplots(rows, 2, sharex=True, sharey=True, squeeze=False).flat)
        drawn = [[*course.blocks[number][:, -1].flat, *(one.mean for one in measured[number])] for number in shown]
        bottom = min(0.75, math.floor(4 * np.nanmin(np.concatenate(drawn))) / 4)
        axes[0].set_ylim(bottom, 1.02)
        axes[0].set_yticks(np.arange(bottom, 1.01, 0.25 if bottom >= 0 else 0.5))
        for axis, number in zip(axes, shown, strict=False):
            _panel(axis, course.step, course.blocks[number], measured[number])
            axis.set_title(f"Block {number + 1}")
        for axis in axes[len(shown) :]:
            axis.set_visible(False)
        for axis in axes[max(0, len(shown) - 2) : len(shown)]:  # the lowest of either column
            axis.tick_params(labelbottom=True)
        figure.supxlabel("step", fontsize=10.5)
        handles = axes[0].get_lines()[-2:]
        figure.legend(handles=handles, loc="outside upper left", ncols=2, fontsize=9.5, handlelength=1.4)
        png = to_png(figure)
    return Picture(
        name="similarity_course.png",
        title="Likeness of the experts over time",
        reading=(
            "Blue is how alike two experts of a block are, on average, thin red each expert with the director: both "
            "begin at 1, where all are copies, and the lower blue ends, the more the experts differ."
        ),
        bad=(
            "blue that stays at 1 (the experts never parted: one would do), red that falls to 0 (the director follows "
            "none of them), or curves that still fall steeply at the end (the run was too short to tell)."
        ),
        png=png,
        found=_found(course.step, measured),
        detail=(
            "Linear CKA (unbiased) of the outputs for the same tokens, of the same few images of all modalities at "
            "every moment: 1 is the same up to rotation and scale, 0 unrelated. Of deep models every nth block is "
            "drawn; the last moment is what the picture before shows expert by expert."
        ),
    )


def _panel(axis: Any, step: np.ndarray, similarity: np.ndarray, measured: Sequence[Likeness]) -> None:
    directors = similarity[:, -1, :-1]
    axis.plot(step, directors[:, 1:], color=RED, linewidth=0.9, alpha=0.7)
    axis.plot(step, directors[:, 0], color=RED, linewidth=0.9, alpha=0.7, label="each expert with the director")
    mean = [one.mean for one in measured]
    axis.plot(step, mean, "o-", color=BLUE, linewidth=2, markersize=3.5, label="two experts, mean", clip_on=False)
    axis.set_xlim(step[0], step[-1])
    axis.grid(True, axis="y")
    axis.locator_params(axis="x", nbins=4, integer=True, min_n_ticks=1)


def _found(step: np.ndarray, measured: Sequence[Sequence[Likeness]]) -> str:
    """The first and the last moment, in words."""
    told = []
    for name, field in (("two experts", "mean"), ("an expert and the director", "director")):
        values = np.array([[getattr(one, field) for one in moments] for moments in measured])
        first, last = (at[np.isfinite(at)] for at in (values[:, 0], values[:, -1]))
        if len(first) and len(last):
            told.append(f"{name} {first.mean():.2f} and {last.mean():.2f}")
    return f"After {step[0]} and after {step[-1]} steps, mean over blocks: {', '.join(told)}." if told else ""
