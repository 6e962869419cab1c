"""Pictures of what is compared two by two: the modalities' gradients, and the experts' outputs."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dexcore.extras import require
from dexcore.measures.spread import evenly
from dexcore.report.analysis import PARTS, Analysis
from dexcore.report.comparison import by_rule
from dexcore.report.model_measures import Conflict, Likeness
from dexcore.report.pictures import BLUE, NEUTRAL, RED, Picture, new_figure, spread, styled, to_png

_BLOCKS = 8  # drawn as matrices
_AGREES = 0.1  # below it two halves of one modality do not agree with each other: a grey row


def gradient_picture(
    analysis: Analysis, measured: Sequence[Conflict], cosines_told: Sequence[str], mlp: str = "dex"
) -> Picture | None:
    """Cosines between the modalities' gradients; None where there is nothing to compare.

    Args:
        cosines_told: each part's means in words, those of step 0 beside them.
        mlp: kind of the encoder's MLPs, a key of `dexcore.report.comparison.KINDS`.
    """
    if not measured:
        return None
    names = analysis.gradient_modalities
    size = len(names)
    side = min(3.6, 0.36 * size + 0.4)
    with styled():
        parts = PARTS[: len(analysis.gradient_cosines)]
        routed = len(parts) > 1
        figure = new_figure(len(parts) * (side + 0.75) + 0.35)
        halves = list(figure.subplots(len(parts), 1, squeeze=False)[:, 0])
        for axis, part, cosines in zip(halves, parts, analysis.gradient_cosines, strict=True):
            image = axis.imshow(cosines, cmap="RdBu_r", vmin=-1, vmax=1)
            axis.set_title(part.capitalize() if routed else "All weights of the encoder")
            _bare(axis)
            axis.set_yticks(range(size), names)
            axis.set_xticks(range(size), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=9)
            for place in range(size):
                frame = {"fill": False, "edgecolor": NEUTRAL, "linewidth": 1.6}
                axis.add_patch(_rectangle(place - 0.5, place - 0.5, **frame))
            unsure = ~(np.diagonal(cosines) >= _AGREES)
            for (row, column), cosine in np.ndenumerate(cosines):
                grey = unsure[row] or unsure[column]
                if grey:
                    axis.add_patch(_rectangle(column - 0.5, row - 0.5, facecolor="#c8c8c8", edgecolor="none"))
                color = "white" if abs(cosine) > 0.6 and not grey else "black"
                text = f"{round(100 * cosine)}" if math.isfinite(cosine) else "–"
                axis.text(column, row, text, ha="center", va="center", color=color, fontsize=8)
        bar = figure.colorbar(image, ax=halves, fraction=0.05, pad=0.03, aspect=40, ticks=[-1, -0.5, 0, 0.5, 1])
        bar.ax.set_yticklabels(["-100", "-50", "0", "50", "100"])
        bar.outline.set_visible(False)
        png = to_png(figure)
    first, second, cosine = measured[0].opposed
    when = "Cosines, times 100, between gradients of the objective's loss on training images, at the end of the run"
    shared = "Blue in the shared weights is the conflict that experts are for, and no fault of theirs."
    if not routed:
        bad = "deep blue: modalities with opposite wishes share all weights."
    elif by_rule(mlp):
        bad = (
            "deep blue among the experts: modalities with opposite wishes share experts, and the rule that chooses "
            f"them had them do so. {shared}"
        )
    else:
        bad = (
            "deep blue among the experts: modalities with opposite wishes share experts, which routing was to prevent. "
            f"{shared}"
        )
    if routed:
        when += ": above of the encoder's weights that every image uses, below of its experts"
    return Picture(
        name="gradients.png",
        title="Do modalities pull the same way?",
        reading=(
            "Modalities that meet in red pull the weights the same way, in blue against each other; the framed "
            "diagonal, two halves of one modality, is agreement with so few images, and grey where even they disagree."
        ),
        bad=bad,
        png=png,
        found=f"{'. '.join(cosines_told)}. Most opposed in the shared weights: {first} and {second}, {cosine:.2f}.",
        detail=(
            f"{when}. White has nothing to do "
            "with each other; at the end of a long training gradients mostly cancel, and white is what is left. "
            "Modalities with fewer than two training images are not shown. Of a cosine no spread is known: what "
            "differs from step 0 is no finding by itself."
        ),
    )


def _rectangle(x: float, y: float, **style: Any) -> Any:
    return require("matplotlib.patches", "train").Rectangle((x, y), 1, 1, **style)


def similarity_picture(
    analysis: Analysis, measured: Sequence[Likeness], step0: Sequence[Likeness] | None
) -> Picture | None:
    """Likeness of the experts over depth, and two by two; None where no block has two experts.

    Args:
        step0: the same before the first step; None where it was not measured.
    """
    blocks = analysis.expert_similarity
    if not any(math.isfinite(block.mean) for block in measured):
        return None
    shown = evenly(np.arange(len(blocks)), _BLOCKS).tolist()
    rows = (len(shown) + 1) // 2
    with styled():
        figure = new_figure(2.6 + 2.2 * rows)
        top, below = figure.subfigures(2, 1, height_ratios=[2.6, 2.2 * rows])
        _over_depth(top, measured, step0)
        axes = list(below.subplots(rows, 2, squeeze=False).flat)
        for axis, number in zip(axes, shown, strict=False):
            image = axis.imshow(blocks[number], cmap="viridis", vmin=0, vmax=1)
            axis.set_title(f"Block {number + 1}")
            _bare(axis)
            experts = len(blocks[number]) - 1
            ticks = spread(np.arange(experts), 8)
            for ticked in (axis.set_xticks, axis.set_yticks):
                ticked([*ticks, experts], [*(str(tick + 1) for tick in ticks), "D"], fontsize=8)
        for axis in axes[len(shown) :]:
            axis.set_visible(False)
        bar = below.colorbar(image, ax=axes, fraction=0.05, pad=0.03, aspect=40, ticks=[0, 0.5, 1])
        bar.outline.set_visible(False)
        png = to_png(figure)
    return Picture(
        name="similarity.png",
        title="How far experts have grown apart",
        reading=(
            "How alike the outputs of two experts are for the same tokens: all began as copies, at 1, and the lower, "
            "the further they have grown apart (D is the director)."
        ),
        bad=(
            "1 everywhere (the experts are still copies: one would do), or a director near 0 with all experts (it "
            "follows none of them)."
        ),
        png=png,
        found=_likeness_told(measured, step0),
        detail=(
            "Linear CKA (unbiased), measured at the end of the run: 1 is the same up to rotation and scale, 0 "
            "unrelated. A model that begins with every expert a copy of the director begins at 1. All experts "
            "are given the tokens that reach their block, those included that are never sent to them. Top: "
            "over depth. Below: expert by expert."
        ),
    )


def _likeness_told(measured: Sequence[Likeness], step0: Sequence[Likeness] | None) -> str:
    told = []
    for name, field in (("two experts", "mean"), ("an expert and the director", "director")):
        now, then = (_mean([getattr(block, field) for block in blocks]) for blocks in (measured, step0 or ()))
        if math.isfinite(now):
            told.append(f"{name} {now:.2f} (step 0: {then:.2f})" if math.isfinite(then) else f"{name} {now:.2f}")
    return f"Mean over blocks: {', '.join(told)}." if told else ""


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def _over_depth(figure: Any, measured: Sequence[Likeness], step0: Sequence[Likeness] | None) -> None:
    axis = figure.subplots()
    number = np.arange(1, len(measured) + 1)
    mean = np.array([block.mean for block in measured])
    lowest = np.array([block.lowest for block in measured])
    if step0:
        before = [block.mean for block in step0]
        axis.plot(number, before, "_", color=NEUTRAL, markersize=16, markeredgewidth=2, label="step 0", clip_on=False)
    axis.vlines(number, lowest, mean, color=BLUE, alpha=0.4, linewidth=5)
    axis.plot(number, mean, "o", color=BLUE, markersize=8, label="two experts (bar: to the lowest)", clip_on=False)
    axis.plot(number, [block.director for block in measured], "D", color=RED, label="with the director", clip_on=False)
    axis.set_title("Likeness (linear CKA), a block")
    axis.set_xlabel("block")
    axis.set_xlim(0.4, len(measured) + 0.6)
    axis.set_xticks(spread(number, 12))
    axis.set_ylim(min(0.0, float(np.nanmin(lowest))), 1.05)
    axis.grid(True, axis="y")
    figure.legend(loc="outside lower left", ncols=3, fontsize=8.5, columnspacing=0.8, handletextpad=0.3)


def _bare(axis: Any) -> None:
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
