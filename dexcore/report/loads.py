"""Pictures of the experts' use: load over time, who starves, and the images' way through the blocks."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dexcore.extras import require
from dexcore.report.comparison import by_rule
from dexcore.report.history import History
from dexcore.report.pictures import BLUE, NEUTRAL, RED, Picture, modality_color, new_figure, spread, styled, to_png
from dexcore.report.routes import STARVING, Flow, Hunger

_FLOOR = 1e-3  # of an even share: less is drawn there


def load_picture(history: History, mlp: str = "dex") -> Picture | None:
    """Each block's load over time; None where no load was recorded.

    Args:
        mlp: kind of the encoder's MLPs, a key of `dexcore.report.comparison.KINDS`.
    """
    blocks = history.load
    if not blocks:
        return None
    rows = (len(blocks) + 1) // 2
    with styled():
        figure = new_figure(0.3 + 1.45 * rows)
        axes = list(figure.subplots(rows, 2, sharex=True, sharey=True, squeeze=False).flat)
        for number, (axis, load) in enumerate(zip(axes, blocks, strict=False), start=1):
            step, shares = _binned(history.step, load)
            axis.stackplot(step, shares.T, colors=_colors(load.shape[1]), linewidth=0)
            axis.set_title(f"Block {number}")
            axis.set_ylim(0, 1)
            axis.set_yticks([0, 0.5, 1], ["0", "50 %", "100 %"])
            axis.set_xlim(step[0], step[-1])
            axis.locator_params(axis="x", nbins=4, integer=True, min_n_ticks=1)
        for axis in axes[len(blocks) :]:
            axis.set_visible(False)
        for axis in axes[max(0, len(blocks) - 2) : len(blocks)]:  # the lowest of either column
            axis.tick_params(labelbottom=True)
        figure.supxlabel("step", fontsize=10.5)
        png = to_png(figure)
    if by_rule(mlp):
        who = "rule"
        bad = "bands that vanish: experts to which the rule gives no image that is drawn."
    else:
        who = "router"
        bad = "a band that fills its block (the router collapsed), or bands that vanish (experts nobody uses)."
    return Picture(
        name="load.png",
        title="Load of the experts over time",
        reading=(
            "Each band is one expert of a block, expert 1 at the bottom, its height the share of the batch that the "
            f"{who} gave it."
        ),
        bad=bad,
        png=png,
    )


def hunger_picture(history: History, blocks: tuple[Hunger, ...], on_images: str = "") -> Picture | None:
    """Each expert's share at the end, and how many starved over time; None where no load was recorded.

    Args:
        on_images: who starves on the evaluated images, before the first step and now, in words.
    """
    if not blocks:
        return None
    with styled():
        figure = new_figure(4.1)
        last, course = figure.subplots(2, 1, height_ratios=[1.7, 1])
        _shares_at_the_end(last, blocks)
        total = np.sum([block.course for block in blocks], axis=0)
        course.step(np.linspace(history.step[0], history.step[-1], len(total)), total, where="mid", color=BLUE)
        course.set_title("Starving experts, all blocks")
        course.set_xlabel("step")
        course.set_ylim(0, max(4, 1.15 * total.max()))
        course.grid(True, axis="y")
        course.locator_params(axis="y", nbins=4, integer=True)
        course.locator_params(axis="x", nbins=4, integer=True, min_n_ticks=1)
        png = to_png(figure)
    starving = sum(len(block.starving) for block in blocks)
    experts = sum(len(block.share_r) for block in blocks)
    return Picture(
        name="starving.png",
        title="Starving experts",
        reading=(
            "Top: each expert's share of its block over the last tenth of the run, 1 if all were used alike, red under "
            f"{STARVING:g}; bottom: how many were that low while training."
        ),
        bad=(
            "red points, or a bottom curve that does not come down: the router has written experts off, and the "
            "balance loss or the exploration noise is too weak to bring them back."
        ),
        png=png,
        found=f"{starving} of {experts} experts starve at the end of training."
        + (f" {on_images}." if on_images else ""),
    )


def _shares_at_the_end(axis: Any, blocks: tuple[Hunger, ...]) -> None:
    for number, block in enumerate(blocks, start=1):
        share = np.sort(block.share_r)
        # Side by side within a block, so that equal shares do not hide one another.
        x = number + np.linspace(-0.3, 0.3, len(share)) if len(share) > 1 else np.array([float(number)])
        colors = [RED if value < STARVING else BLUE for value in share]
        axis.scatter(x, share.clip(_FLOOR), c=colors, s=22, linewidths=0, clip_on=False, zorder=3)
    axis.axhline(1, color=NEUTRAL, linewidth=1.2)
    axis.axhspan(_FLOOR, STARVING, color=RED, alpha=0.08, linewidth=0)
    axis.set_yscale("log")
    axis.set_ylim(_FLOOR, max(2, 1.3 * max(block.share_r.max() for block in blocks)))
    axis.set_yticks([0.001, 0.01, 0.1, 1], ["≤ 0.001", "0.01", "0.1", "1"])
    axis.minorticks_off()
    axis.set_title("Share at the end (1: all alike)")
    axis.set_xlim(0.5, len(blocks) + 0.5)
    axis.set_xticks(spread(np.arange(1, len(blocks) + 1), 12))
    axis.set_xlabel("block")
    axis.grid(True, axis="y")


def flow_picture(way: Flow, names: Sequence[str]) -> Picture | None:
    """The images' way through the blocks; None where there are not two blocks or no images."""
    if len(way.blocks) < 2 or not len(way.modalities):
        return None
    with styled():
        figure = new_figure(4.4)
        axis = figure.subplots()
        nodes = _nodes(way)
        for column, ribbons in enumerate(way.ribbons_mrq):
            _draw_ribbons(axis, column, ribbons, nodes[column], nodes[column + 1], way.modalities)
        for column, tops in enumerate(nodes):
            for expert, (top, height) in tops.items():
                axis.bar(column, -height, 0.1, bottom=top, color=NEUTRAL, linewidth=0, zorder=3)
                if height > 0.05:
                    style = {"ha": "center", "va": "center", "fontsize": 7.5, "color": "white", "zorder": 4}
                    axis.text(column, top - height / 2, str(expert + 1), **style)
        axis.set_xlim(-0.1, len(nodes) - 0.9)
        axis.set_ylim(-0.01, 1.01)
        axis.set_xticks(range(len(nodes)), [f"block {b}" if b == way.blocks[0] else str(b) for b in way.blocks])
        axis.set_yticks([])
        axis.spines[:].set_visible(False)
        axis.tick_params(length=0)
        patches = require("matplotlib.patches", "train")
        keys = [patches.Patch(color=modality_color(index), label=names[index]) for index in way.modalities]
        figure.legend(handles=keys, loc="outside lower left", ncols=4, fontsize=9, handlelength=0.9, columnspacing=1.0)
        png = to_png(figure)
    return Picture(
        name="routing.png",
        title="Routing over depth",
        reading=(
            "Columns are blocks, gray bars their experts, and ribbons carry the images of one modality from each "
            "block's strongest expert to the next block's: a color that stays together is a modality with experts of "
            "its own."
        ),
        bad=(
            "one bar as tall as the picture (collapse), or all colors in all bars in like parts: routing that has "
            "nothing to do with modality."
        ),
        png=png,
        detail=(
            "A bar is as tall as the share of images for which its expert is the strongest of the chosen ones, each "
            "modality weighing the same; the number is the expert's in its block, and means nothing in another. Of "
            "deep models every nth block is drawn."
        ),
    )


_GAP = 0.025


def _nodes(way: Flow) -> list[dict[int, tuple[float, float]]]:
    """Top and height of each used expert's bar, a column a block, ordered so that few ribbons cross."""
    columns: list[dict[int, tuple[float, float]]] = []
    for number, mass_mr in enumerate(way.mass_mr):
        mass = mass_mr.sum(axis=0)
        used = np.flatnonzero(mass > 0)
        if number == 0:
            place = np.arange(len(mass_mr)) @ mass_mr
        else:
            before = np.zeros(way.ribbons_mrq[number - 1].shape[1])
            for expert, (top, height) in columns[-1].items():
                before[expert] = 1 - top + height / 2
            place = before @ way.ribbons_mrq[number - 1].sum(axis=0)
        order = sorted(used, key=lambda expert: place[expert] / mass[expert])
        scale = 1 - _GAP * (len(order) - 1)
        top = 1.0
        column: dict[int, tuple[float, float]] = {}
        for expert in map(int, order):
            column[expert] = (top, float(mass[expert]) * scale)
            top -= column[expert][1] + _GAP
        columns.append(column)
    return columns


def _draw_ribbons(
    axis: Any,
    column: int,
    ribbons_mrq: np.ndarray,
    left: dict[int, tuple[float, float]],
    right: dict[int, tuple[float, float]],
    modalities: np.ndarray,
) -> None:
    scale = [1 - _GAP * (len(nodes) - 1) for nodes in (left, right)]
    leave = {expert: top for expert, (top, _) in left.items()}
    # Where each ribbon leaves: at its expert, by target, then modality; where it arrives: by source, then modality.
    starts = {}
    for source in left:
        for target in right:
            for m in range(len(modalities)):
                starts[source, target, m] = leave[source]
                leave[source] -= ribbons_mrq[m, source, target] * scale[0]
    arrive = {expert: top for expert, (top, _) in right.items()}
    for target in right:
        for source in left:
            for m, modality in enumerate(modalities):
                mass = ribbons_mrq[m, source, target]
                if mass > 0:
                    ends = (starts[source, target, m], arrive[target])
                    _ribbon(axis, column, ends, (mass * scale[0], mass * scale[1]), modality_color(int(modality)))
                    arrive[target] -= mass * scale[1]


def _ribbon(axis: Any, column: int, tops: tuple[float, float], heights: tuple[float, float], color: str) -> None:
    x = np.linspace(0, 1, 24)
    bend = x * x * (3 - 2 * x)
    top = tops[0] + (tops[1] - tops[0]) * bend
    height = heights[0] + (heights[1] - heights[0]) * bend
    axis.fill_between(column + 0.05 + 0.9 * x, top - height, top, color=color, alpha=0.8, linewidth=0)


def _binned(step: np.ndarray, load: np.ndarray, bins: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """At most ``bins`` means over time, stretched to the run's first and last step."""
    pieces = np.array_split(np.nan_to_num(load), min(bins, len(load)))
    shares = np.stack([piece.mean(axis=0) for piece in pieces])
    if len(shares) == 1:  # a single step still has an area to show
        return np.array([step[0] - 0.5, step[0] + 0.5]), np.repeat(shares, 2, axis=0)
    return np.linspace(step[0], step[-1], len(shares)), shares


def _colors(experts: int) -> list[Any]:
    maps = require("matplotlib", "train").colormaps
    if experts <= 8:
        return [maps["Set2"](number) for number in range(experts)]
    return [maps["turbo"](number) for number in np.linspace(0.05, 0.95, experts)]
