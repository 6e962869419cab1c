"""Pictures of modality and expert: a heat map a block beside its null, and the measure over depth."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dexcore.report.measures import Specialization
from dexcore.report.pictures import BLUE, NEUTRAL, Picture, new_figure, spread, styled, to_png

_COLORS = "viridis"


def depth_picture(blocks: Sequence[Specialization]) -> Picture | None:
    """The measure over depth; None where fewer than two modalities were evaluated."""
    if not blocks or len(blocks[0].modalities) < 2:
        return None
    with styled():
        return _depth(blocks)


def block_pictures(blocks: Sequence[Specialization]) -> list[Picture]:
    """A heat map a block; none where fewer than two modalities were evaluated."""
    if not blocks or len(blocks[0].modalities) < 2:
        return []
    with styled():
        return [_block(number, block) for number, block in enumerate(blocks, start=1)]


def _depth(blocks: Sequence[Specialization]) -> Picture:
    number = np.arange(1, len(blocks) + 1)
    measured = np.array([block.nmi for block in blocks])
    mean = np.array([block.null_mean for block in blocks])
    high = np.array([block.null_95 for block in blocks])
    figure = new_figure(2.9)
    axis = figure.subplots()
    axis.plot(number, measured, "o", color=BLUE, markersize=9, label="measured", clip_on=False)
    axis.plot(number, mean, "_", color=NEUTRAL, markersize=16, markeredgewidth=2, label="null, mean")
    axis.bar(number, high, width=0.7, color=NEUTRAL, alpha=0.3, linewidth=0, label="null, to 95th percentile")
    axis.set_title("Normalized mutual information, a block")
    axis.set_xlabel("block")
    axis.set_xlim(0.4, len(blocks) + 0.6)
    axis.set_ylim(0, min(1.0, 1.2 * float(np.nanmax([*measured, *high, 0.1]))))
    axis.set_xticks(spread(number, 12))
    axis.grid(True, axis="y")
    figure.legend(loc="outside lower left", ncols=3, fontsize=9.5, columnspacing=1.2, handletextpad=0.4)
    return Picture(
        name="specialization.png",
        title="Do experts follow modalities?",
        reading=(
            "A point above its gray bar: an image's modality and its experts tell more of each other than chance does "
            "(0 is nothing, 1 everything)."
        ),
        bad="points inside the gray bars in every block: experts that do not tell modalities apart.",
        png=to_png(figure),
        detail=(
            "The router never sees modality labels. The null permutes the labels among files, volumes and patients, so "
            "slices of one volume count once. Synthetic modalities take part, and are easier to tell apart."
        ),
    )


def _block(number: int, block: Specialization) -> Picture:
    modalities, experts = block.shares_mr.shape
    top = float(np.nan_to_num([block.shares_mr, block.null_shares_mr]).max()) or 1.0  # one scale for both
    figure = new_figure(1.5 + 0.27 * modalities)
    left, right = figure.subplots(1, 2, sharey=True)
    halves = (
        (left, block.shares_mr, f"measured\nNMI {block.nmi:.2f}"),
        (right, block.null_shares_mr, f"chance\nNMI {block.null_mean:.2f}"),
    )
    for axis, shares, title in halves:
        image = axis.imshow(shares, cmap=_COLORS, vmin=0, vmax=top, aspect="auto")
        axis.set_title(title)
        axis.set_xlabel("expert")
        axis.spines[:].set_visible(False)
        axis.tick_params(length=0)
        ticks = spread(np.arange(experts), 8)
        axis.set_xticks(ticks, [str(expert + 1) for expert in ticks])
        _annotate(axis, shares, top)
    starred = zip(block.modalities, block.synthetic, strict=True)
    left.set_yticks(range(modalities), [name + "*" * synthetic for name, synthetic in starred])
    bar = figure.colorbar(image, ax=(left, right), fraction=0.05, pad=0.02, aspect=30)
    bar.outline.set_visible(False)
    bar.ax.locator_params(nbins=5)
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    if any(block.synthetic):
        figure.supxlabel("* synthetic images", x=0.01, ha="left", fontsize=9.5)
    return Picture(
        name=f"experts_block_{number:02d}.png",
        title=f"Block {number}: modality and expert",
        reading=(
            "Rows are modalities, columns experts, and a row adds up to 100 %: left as measured, right a typical draw "
            "with the labels permuted."
        ),
        bad="rows that all look alike, or experts dark in every row (nobody uses them).",
        png=to_png(figure),
        found=_verdict(block),
    )


def _annotate(axis: Any, shares: np.ndarray, top: float) -> None:
    if shares.shape[1] > 8:  # no room
        return
    for (row, column), share in np.ndenumerate(shares):
        if share >= 0.005:
            color = "white" if share < 0.6 * top else "black"
            axis.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=color, fontsize=8)


def _verdict(block: Specialization) -> str:
    if math.isnan(block.nmi):
        return "The mutual information cannot be measured here."
    return (
        f"Normalized mutual information {block.nmi:.3f}; by chance {block.null_mean:.3f}, 95th percentile "
        f"{block.null_95:.3f}, p = {block.p_value:.3f}."
    )
