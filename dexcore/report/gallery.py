"""The picture of single images, a row a modality: input, what was visible, patch mean alone, prediction; or, of a model
that was taught, the teacher's tokens and its own."""

from collections.abc import Mapping

import numpy as np

from dexcore.report.evaluation import Evaluation
from dexcore.report.pictures import WIDTH, Picture, new_figure, styled, to_png

_GAP, _LABEL, _HEADER = 0.06, 0.26, 0.28  # inches


def gallery_picture(evaluation: Evaluation, objective: str = "mae") -> Picture | None:
    """One row a modality that has an example: a held-out one where there is any, real before synthetic.

    What a column does not show is blank: no visible patch stands among the predicted ones, to be admired with them.

    Args:
        objective: of the model, a key of `dexcore.report.objectives.OBJECTIVES`.
    """
    chosen = _chosen(evaluation)
    if not chosen:
        return None
    return (_tokens if objective == "distill" else _reconstructions)(evaluation, chosen)


def _reconstructions(evaluation: Evaluation, chosen: list[int]) -> Picture:
    examples = evaluation.examples
    columns = {"input": examples.input, "visible": examples.masked}
    if examples.has_patch_mean:
        columns["patch mean alone"] = examples.only_hidden(examples.patch_mean)
    columns["prediction"] = examples.only_hidden(examples.reconstruction)
    return Picture(
        name="reconstructions.png",
        title="Reconstructions",
        reading=(
            "From the visible patches of the second column alone the model predicts the hidden ones, in the last; "
            "pale blue is what a column does not show."
            if "patch mean alone" not in columns
            else "From the visible patches of the second column alone the model predicts the hidden ones, in the last; "
            "what it shows beyond the third, every hidden patch filled with its own mean, is the model's, and pale "
            "blue is what a column does not show."
        ),
        bad="a prediction that looks like the patch mean alone, or structure that comes only in training images.",
        png=_drawn(evaluation, chosen, columns),
        detail=(
            "Where targets are normalized patch by patch (the default), the model predicts structure inside a patch "
            "alone, and each patch's mean and deviation are taken from the target: the coarse picture, bright where "
            "the image is bright, and how strong a patch's contrast is, are given away; what happens inside a patch is "
            "the model's. Its guess at visible patches is never trained, and not shown."
        ),
    )


def _tokens(evaluation: Evaluation, chosen: list[int]) -> Picture:
    examples = evaluation.examples
    columns = {"input": examples.input, "teacher": examples.patch_mean, "model": examples.reconstruction}
    return Picture(
        name="tokens_taught.png",
        title="The teacher's tokens and the model's",
        reading="The same colour is the same token: the last column should be the second.",
        bad="a last column of one colour, or one that is the second's only in training images.",
        png=_drawn(evaluation, chosen, columns),
        detail=(
            "Every patch is a pixel. The three colours are the first three principal components of the teacher's "
            "tokens of these images, in which both columns are shown."
        ),
    )


def _drawn(evaluation: Evaluation, chosen: list[int], columns: Mapping[str, np.ndarray]) -> bytes:
    """A row an example, with a line above it; a column an entry of ``columns``, images [m, S, S, 3]."""
    examples = evaluation.examples
    side = (WIDTH - (len(columns) - 1) * _GAP) / max(4, len(columns))
    row = _LABEL + side + _GAP
    height = _HEADER + row * len(chosen)
    with styled():
        figure = new_figure(height, layout=None)
        for column, (name, images) in enumerate(columns.items()):
            left = column * (side + _GAP)
            figure.text((left + side / 2) / WIDTH, 1 - 0.5 * _HEADER / height, name, ha="center", va="center")
            for number, index in enumerate(chosen):
                bottom = height - _HEADER - number * row - _LABEL - side
                axis = figure.add_axes((left / WIDTH, bottom / height, side / WIDTH, side / height))
                axis.imshow(np.nan_to_num(images[index]).clip(0, 1), aspect="auto")
                axis.set_axis_off()
        for number, index in enumerate(chosen):
            baseline = height - _HEADER - number * row - _LABEL / 2 - 0.03
            label = evaluation.modality_names[examples.modality[index]]
            what = kind(bool(examples.synthetic[index]), bool(examples.heldout[index]))
            figure.text(0, baseline / height, label, va="center", weight="bold")
            right = (len(columns) * (side + _GAP) - _GAP) / WIDTH
            figure.text(right, baseline / height, what, va="center", ha="right")
        return to_png(figure)


def kind(synthetic: bool, heldout: bool) -> str:
    """What sort of image an example is, for its caption."""
    return ("synthetic, " if synthetic else "") + ("held out" if heldout else "training image")


def _chosen(evaluation: Evaluation) -> list[int]:
    """Index of the example to show of every modality that has one."""
    examples = evaluation.examples
    chosen = []
    for modality in np.unique(examples.modality):
        candidates = np.flatnonzero(examples.modality == modality)
        chosen.append(int(min(candidates, key=lambda i: (not examples.heldout[i], examples.synthetic[i], i))))
    return chosen
