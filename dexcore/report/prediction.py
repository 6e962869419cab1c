"""The picture of a prediction: the image, where the model looked, how sure it is, and which experts took the image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dexcore.extras import require
from dexcore.report.pictures import BLUE, to_png

_HEIGHT = 3.7  # inches
_MOST_BARS = 10
_MOST_CELLS = 16  # experts a block whose gates are written into their cells
_FLAT = 3.0  # times the mean: attention that is never more is drawn as the flat map that it is
_LISTED = 3  # experts a block that are named where there are more
_INK = "#222222"
_STYLE = {"font.family": "DejaVu Sans", "font.size": 8.5, "text.color": _INK, "axes.titlesize": 9.5}
# Of classes in masks: apart from each other and from gray.
_COLOURS = (
    "#e6194b", "#3cb44b", "#4363d8", "#f58231", "#42d4f4", "#f032e6", "#bfef45", "#911eb4", "#ffe119", "#469990",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Overlay:
    """Masks on an image: bool [classes, height, width], and the name of each class that has pixels."""

    image: np.ndarray
    masks: np.ndarray
    names: tuple[str, ...]


def prediction_picture(
    title: str,
    shown: np.ndarray,
    attention: np.ndarray,
    asking: str,
    gates: np.ndarray | None,
    bars: Sequence[tuple[str, float]] = (),
    overlay: Overlay | None = None,
) -> bytes:
    """A PNG.

    Args:
        title: of the whole.
        shown: the image as the network saw it, [S, S] or [S, S, 3] in [0, 1].
        attention: [rows, columns] over the patches.
        asking: whose attention it is, and in which block.
        gates: [blocks, experts], 0 where the image did not go, NaN where a block has no such expert; None: there are
            no experts to show.
        bars: classes and their probabilities.
        overlay: the image at its own size, and its masks, in place of ``bars``.
    """
    with require("matplotlib", "train").rc_context(_STYLE):
        widths = [1.0, 1.0]
        widths += [0.8] if bars else []
        widths += [1.0 if gates.shape[1] <= _MOST_CELLS else 1.5] if gates is not None else []
        figure: Any = require("matplotlib.figure", "train").Figure(
            figsize=(3.1 * sum(widths), _HEIGHT), layout="constrained", facecolor="white"
        )
        figure.suptitle(_shortened(title, 40 * len(widths)), fontsize=10.5, fontweight="bold")
        axes = list(figure.subplots(1, len(widths), width_ratios=widths))
        _draw_image(axes[0], overlay, shown)
        _draw_attention(axes[1], shown, attention, asking)
        if bars:
            _draw_bars(axes[2], bars)
        if gates is not None:
            _draw_gates(axes[-1], gates)
        return to_png(figure)


def _draw_image(axis: Any, overlay: Overlay | None, shown: np.ndarray) -> None:
    image = shown if overlay is None else overlay.image
    _picture(axis, image)
    axis.set_title("as the model saw it" if overlay is None else "the mask")
    if overlay is None:
        return
    colors = require("matplotlib.colors", "train")
    handles = []
    for number, (mask, name) in enumerate(zip(overlay.masks, overlay.names, strict=True)):
        color = _COLOURS[number % len(_COLOURS)]
        tint = np.zeros((*mask.shape, 4), np.float32)
        tint[mask] = (*colors.to_rgb(color), 0.35)
        axis.imshow(tint, interpolation="nearest")
        if mask.any() and not mask.all():
            axis.contour(mask.astype(np.float32), levels=[0.5], colors=[color], linewidths=1.2)
        handles.append(require("matplotlib.patches", "train").Patch(color=color, label=_shortened(name, 24)))
    if handles:
        axis.legend(
            handles=handles[:12],
            loc="upper center",
            bbox_to_anchor=(0.5, -0.02),
            ncols=min(3, len(handles)),
            frameon=False,
            fontsize=8,
        )
    else:
        axis.set_xlabel("no pixel of any class but the first", fontsize=8)


def _draw_attention(axis: Any, shown: np.ndarray, attention: np.ndarray, asking: str) -> None:
    height, width = shown.shape[:2]
    gray = shown.mean(axis=2) if shown.ndim == 3 else shown
    _picture(axis, gray)
    peaks = float(attention.max()) / max(float(attention.mean()), 1e-12)  # 1 where all patches count alike
    axis.imshow(
        attention / max(float(attention.mean()), 1e-12),
        cmap="inferno",
        vmin=0,
        vmax=max(peaks, _FLAT),
        alpha=0.55,
        interpolation="bilinear",
        extent=(-0.5, width - 0.5, height - 0.5, -0.5),
    )
    axis.set_title("where it looked")
    axis.set_xlabel(f"{asking}\nat most {peaks:.1f} times the mean", fontsize=8)


def _picture(axis: Any, image: np.ndarray) -> None:
    axis.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="antialiased")
    axis.set_xticks([])
    axis.set_yticks([])


def _draw_bars(axis: Any, bars: Sequence[tuple[str, float]]) -> None:
    first = sorted(bars, key=lambda bar: -bar[1])[:_MOST_BARS][::-1]
    names, values = [_shortened(name, 24) for name, _ in first], [value for _, value in first]
    axis.barh(range(len(first)), values, color=BLUE, height=0.65)
    for place, value in enumerate(values):
        inside = value > 0.75
        axis.text(
            value - 0.02 if inside else value + 0.02,
            place,
            f"{value:.2f}",
            va="center",
            ha="right" if inside else "left",
            color="white" if inside else _INK,
        )
    axis.set_yticks(range(len(first)), names)
    axis.set_ylim(-0.7, max(len(first), 3) - 0.3)
    axis.set_xlim(0, 1)
    axis.set_xticks([0, 0.5, 1])
    axis.spines[["top", "right"]].set_visible(False)
    left = len(bars) - len(first)
    axis.set_title(f"probability{f' ({left} more classes)' if left else ''}")


def _draw_gates(axis: Any, gates: np.ndarray) -> None:
    blocks, experts = gates.shape
    colors = require("matplotlib", "train").colormaps["Blues"].with_extremes(bad="#eeeeee")
    axis.imshow(gates, cmap=colors, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    step = 1 if blocks <= 24 else 4
    axis.set_yticks(range(0, blocks, step), [str(block + 1) for block in range(0, blocks, step)])
    ticks = range(0, experts, 1 if experts <= _MOST_CELLS else max(1, experts // 8))
    axis.set_xticks(list(ticks), [str(expert + 1) for expert in ticks])
    axis.set_xticks(np.arange(-0.5, experts), minor=True)
    axis.set_yticks(np.arange(-0.5, blocks), minor=True)
    axis.grid(which="minor", color="white" if experts > _MOST_CELLS else "#dddddd", linewidth=0.6)
    axis.tick_params(which="both", length=0)
    axis.set_xlabel("expert")
    axis.set_ylabel("block")
    axis.set_title("experts that took it, and their weight")
    size = 7.5 if blocks <= 16 else 5.5
    if experts <= _MOST_CELLS:
        for block, expert in zip(*np.nonzero(np.nan_to_num(gates)), strict=True):
            gate = gates[block, expert]
            shade = "white" if gate > 0.55 else _INK
            axis.text(expert, block, f"{gate:.2f}".lstrip("0"), ha="center", va="center", color=shade, fontsize=size)
        return
    names = axis.secondary_yaxis("right")
    names.set_yticks(range(0, blocks, step), [_listed(gates[block]) for block in range(0, blocks, step)], fontsize=size)
    names.tick_params(length=0)


def _listed(gates: np.ndarray) -> str:
    """The experts with the largest weights, "#17 .62  #3 .38"; counted from 1."""
    known = np.nan_to_num(gates)
    order = [expert for expert in np.argsort(-known, kind="stable") if known[expert] > 0]
    told = "  ".join(f"#{expert + 1} {f'{known[expert]:.2f}'.lstrip('0')}" for expert in order[:_LISTED])
    return told + (f"  +{len(order) - _LISTED}" if len(order) > _LISTED else "")


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
