"""Pictures of modality and expert: a heat map a block beside its null, and the measure over depth."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dexcore.report.change import INTERVAL
from dexcore.report.compared import Compared
from dexcore.report.pictures import BLUE, NEUTRAL, Picture, new_figure, spread, styled, to_png
from dexcore.report.specialization import Specialization

_COLORS = "viridis"


def depth_picture(blocks: Sequence[Specialization], compared: Compared | None) -> Picture | None:
    """The measure over depth, beside step 0; None where fewer than two modalities were evaluated."""
    if not blocks or len(blocks[0].modalities) < 2:
        return None
    with styled():
        return _depth(blocks, compared)


def block_pictures(blocks: Sequence[Specialization], compared: Compared | None) -> list[Picture]:
    """A heat map a block; none where fewer than two modalities were evaluated."""
    if not blocks or len(blocks[0].modalities) < 2:
        return []
    with styled():
        return [_block(number, block, compared) for number, block in enumerate(blocks, start=1)]


def _depth(blocks: Sequence[Specialization], compared: Compared | None) -> Picture:
    number = np.arange(1, len(blocks) + 1)
    figure = new_figure(3.1)
    axis = figure.subplots()
    top = 0.1
    states = [("trained", blocks, "o", 0.18)]
    if compared:
        states.insert(0, ("step 0", compared.step0.blocks, "D", -0.18))
    else:
        states = [("trained", blocks, "o", 0.0)]
    width = 0.32 if compared else 0.7
    for name, state, marker, shift in states:
        measured, mean, high = (
            np.array([getattr(block, field) for block in state]) for field in ("nmi", "null_mean", "null_95")
        )
        color = BLUE if name == "trained" else NEUTRAL
        last = name == "trained"
        axis.bar(
            number + shift, high, width, color=color, alpha=0.25, linewidth=0, label="null, to 95 %" if last else None
        )
        null = {"markersize": 36 * width, "markeredgewidth": 2, "label": "null, mean" if last else None}
        axis.plot(number + shift, mean, "_", color=color, **null)
        axis.plot(number + shift, measured, marker, color=color, markersize=8, label=name, clip_on=False)
        top = float(np.nanmax([top, *measured, *high]))
    axis.set_title("Normalized mutual information, a block")
    axis.set_xlabel("block")
    axis.set_xlim(0.4, len(blocks) + 0.6)
    axis.set_ylim(0, min(1.0, 1.2 * top))
    axis.set_xticks(spread(number, 12))
    axis.grid(True, axis="y")
    figure.legend(loc="outside lower left", ncols=4, fontsize=9.5, columnspacing=1.0, handletextpad=0.3)
    return Picture(
        name="specialization.png",
        title="Do experts follow modalities?",
        reading=(
            "A circle further above its bar than the gray diamond above its own: in training the experts of the block "
            "came to follow modalities more than they did as a random router does (0 is nothing, 1 everything)."
            if compared
            else "A circle above its bar is more than chance, which a router that was never trained reaches as well: "
            "without step 0 it is no work of training (0 is nothing, 1 everything)."
        ),
        bad=(
            "circles no further above their bars than the diamonds: routing that training has not changed."
            if compared
            else "circles inside the bars in every block: experts that do not tell modalities apart."
        ),
        png=to_png(figure),
        found=_changes(compared),
        detail=(
            "The router never sees modality labels. The null permutes the labels among files, volumes and patients, so "
            "slices of one volume count once. Step 0 is the same model before training, on the same images: images of "
            "a modality look alike, and a random router sends what looks alike the same way. Synthetic modalities take "
            f"part, and are easier to tell apart. Of a difference: {INTERVAL}"
        ),
    )


def _changes(compared: Compared | None) -> str:
    if compared is None:
        return ""
    told = [f"block {number} {change.told()}" for number, change in enumerate(compared.blocks, 1) if change.told()]
    if not told:
        return ""
    shown = told if len(told) <= 12 else [*told[:6], "...", *told[-5:]]
    return f"Mutual information minus its null, trained minus step 0: {', '.join(shown)}."


def _block(number: int, block: Specialization, compared: Compared | None) -> Picture:
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
    left.set_yticks(range(modalities), [f"{name}*" if synthetic else name for name, synthetic in starred])
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
        found=_verdict(number, block, compared),
    )


def _annotate(axis: Any, shares: np.ndarray, top: float) -> None:
    if shares.shape[1] > 8:  # no room
        return
    for (row, column), share in np.ndenumerate(shares):
        if share >= 0.005:
            color = "white" if share < 0.6 * top else "black"
            axis.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=color, fontsize=8)


def _verdict(number: int, block: Specialization, compared: Compared | None) -> str:
    if math.isnan(block.nmi):
        return "The mutual information cannot be measured here."
    told = (
        f"Normalized mutual information {block.nmi:.3f}; by chance {block.null_mean:.3f}, 95th percentile "
        f"{block.null_95:.3f}, p = {block.p_value:.3f}."
    )
    if compared is None:
        return told
    then, change = compared.step0.blocks[number - 1], compared.blocks[number - 1]
    return told + f" Step 0: {then.nmi:.3f}, by chance {then.null_mean:.3f}. Change of the excess: {change.told()}."
