"""Pictures of the encoder's features: what patches are alike, and where images lie."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dexcore.extras import require
from dexcore.measures.neighbors import NEIGHBORS
from dexcore.report.analysis import DENSE, MODES, Analysis
from dexcore.report.change import INTERVAL
from dexcore.report.evaluation import Evaluation
from dexcore.report.gallery import kind
from dexcore.report.model_measures import plane
from dexcore.report.pictures import NEUTRAL, WIDTH, Picture, modality_color, new_figure, styled, to_png

_GAP, _LABEL, _HEADER = 0.06, 0.26, 0.28  # inches
_SPOKEN = {"experts": "experts", "director": "directors", DENSE: "dense encoder"}


def patch_picture(evaluation: Evaluation, analysis: Analysis) -> Picture | None:
    """Each example beside its patches' first three principal components as red, green and blue."""
    colors = _as_colors(analysis.patches)
    if not colors.size or not np.isfinite(analysis.patches).any():
        return None
    examples = evaluation.examples
    modes = analysis.modes
    routed = modes == MODES
    side = (WIDTH - len(modes) * _GAP) / (1 + len(modes))
    row = _LABEL + side + _GAP
    height = _HEADER + row * len(examples)
    with styled():
        figure = new_figure(height, layout=None)
        for column, name in enumerate(("input", *modes)):
            left = column * (side + _GAP)
            figure.text((left + side / 2) / WIDTH, 1 - 0.5 * _HEADER / height, name, ha="center", va="center")
            for number in range(len(examples)):
                bottom = height - _HEADER - number * row - _LABEL - side
                axis = figure.add_axes((left / WIDTH, bottom / height, side / WIDTH, side / height))
                image = examples.input[number] if column == 0 else colors[column - 1, number]
                axis.imshow(np.nan_to_num(image).clip(0, 1), aspect="auto", interpolation="nearest")
                axis.set_axis_off()
        for number in range(len(examples)):
            baseline = (height - _HEADER - number * row - _LABEL / 2 - 0.03) / height
            label = evaluation.modality_names[examples.modality[number]]
            what = kind(bool(examples.synthetic[number]), bool(examples.heldout[number]))
            figure.text(0, baseline, label, va="center", weight="bold")
            figure.text(1, baseline, what, va="center", ha="right")
        png = to_png(figure)
    shares = " + ".join(f"{100 * share:.0f}" for share in analysis.patch_variance)
    reading = (
        "A square is a patch, its color the first three principal components of its token: like colors are what the "
        "encoder takes for alike"
    )
    place = "colors that follow the place in the frame and not the picture"
    one_color = "one color an image (modality and nothing else)"
    components = f"The components are red, green and blue, with {shares} % of the variance; one PCA over all images"
    compare = "so that colors compare everywhere. Nothing is hidden."
    if routed:
        reading += ", through the experts (center) and through the directors alone (right)."
        unlike = "or a right column unlike the center one (the directors have not learned what the experts know)."
        bad = f"{place}, {one_color}, {unlike}"
        detail = (
            f"{components} and both modes, {compare} Through the directors alone the encoder is the plain transformer "
            "that can be had from the run."
        )
    else:
        reading += "."
        bad = f"{place}, or {one_color}."
        detail = f"{components}, {compare}"
    return Picture(
        name="patches.png",
        title="What the encoder sees as alike",
        reading=reading,
        bad=bad,
        png=png,
        detail=detail,
    )


def _as_colors(patches: np.ndarray) -> np.ndarray:
    """Components to [0, 1], each from its 2nd to its 98th percentile over all patches."""
    flat = patches.reshape(-1, 3)
    if not np.isfinite(flat).any():
        return np.zeros_like(patches)
    low, high = np.nanpercentile(flat, [2, 98], axis=0)
    return (np.nan_to_num(patches) - low) / np.maximum(high - low, 1e-12)


def map_picture(evaluation: Evaluation, analysis: Analysis, neighbors_told: Sequence[str]) -> Picture | None:
    """Images in the plane of the first two principal components; None where there is no variance to show.

    Args:
        neighbors_told: what nearest neighbors tell in each mode, in words.
    """
    places, shares = plane(analysis)
    if not shares[0] > 0:
        return None
    present = np.unique(evaluation.modality)
    labels = np.unique(analysis.label[analysis.label >= 0])
    label_colors = _label_colors(len(analysis.label_names))
    columns = 2 if len(labels) else 1
    modes = analysis.modes
    routed = modes == MODES
    with styled():
        figure = new_figure((5.9 if columns == 2 else 6.4) * (1 if routed else 0.7))
        axes = figure.subplots(len(modes), columns, sharex=True, sharey=True, squeeze=False)
        for row, mode in enumerate(modes):
            for index in present:
                _dots(axes[row, 0], places[row, evaluation.modality == index], modality_color(int(index)))
            axes[row, 0].set_title(f"{mode}: modality")
            if columns == 2:
                _dots(axes[row, 1], places[row, analysis.label < 0], NEUTRAL, alpha=0.2)
                for index in labels:
                    _dots(axes[row, 1], places[row, analysis.label == index], label_colors[index])
                axes[row, 1].set_title(f"{mode}: label")
        for axis in axes.flat:
            axis.set_xticks([])
            axis.set_yticks([])
            for spine in axis.spines.values():
                spine.set_visible(True)
                spine.set_alpha(0.4)
        _legends(figure, evaluation, present, [(analysis.label_names[i], label_colors[i]) for i in labels])
        png = to_png(figure)
    gray = ", gray where it is not known (real images)" if (analysis.label < 0).any() and columns == 2 else ""
    plane_told = "The plane, one for both modes (each around its own mean)," if routed else "The plane"
    return Picture(
        name="features.png",
        title="Where images lie",
        reading=(
            "A point is an image, in the plane of the features' first two principal components, colored by modality"
            + (f" on the left and by label on the right{gray}." if columns == 2 else ".")
        ),
        bad=(
            "islands of one modality with all labels mixed inside: features that know the machine and not the meaning "
            "(after pre-training on pixels alone some of that is usual)."
        ),
        png=png,
        found=" ".join(
            f"Through the {_SPOKEN[mode]}, nearest neighbors tell the {told}."
            for mode, told in zip(modes, neighbors_told, strict=True)
        ),
        detail=(
            f"{plane_told} holds {100 * shares[0]:.0f} + "
            f"{100 * shares[1]:.0f} % of the variance. The percentages are measured in all dimensions: an image is "
            f"classified by its {NEIGHBORS} nearest images of other files, volumes and patients (cosine), classes "
            "weighing the same. From other modalities alone, only what modalities share can tell the label. Random "
            f"features tell much of it already: step 0 is the same model before training. Of a difference: {INTERVAL}"
        ),
    )


def _dots(axis: Any, places: np.ndarray, color: Any, alpha: float = 0.8) -> None:
    axis.scatter(places[:, 0], places[:, 1], s=11, color=color, alpha=alpha, linewidths=0)


def _label_colors(labels: int) -> list[Any]:
    turbo = require("matplotlib", "train").colormaps["turbo"]
    return [turbo(share) for share in np.linspace(0.08, 0.92, max(labels, 1))]


def _legends(figure: Any, evaluation: Evaluation, present: np.ndarray, labels: Sequence[tuple[str, Any]]) -> None:
    line = require("matplotlib.lines", "train").Line2D
    style = {"linestyle": "", "marker": "o", "markersize": 5}
    left = [line([], [], color=modality_color(int(i)), label=evaluation.modality_names[i], **style) for i in present]
    right = [line([], [], color=color, label=name, **style) for name, color in labels]
    size = {"fontsize": 8.5, "handletextpad": 0.2, "columnspacing": 0.8, "borderpad": 0.1}
    if right:
        figure.legend(handles=left, loc="outside lower left", ncols=2, **size)
        figure.legend(handles=right, loc="outside lower right", ncols=2, **size)
    else:
        figure.legend(handles=left, loc="outside lower left", ncols=4, **size)
