"""The picture of reconstructions: input, masked, reconstruction, pasted, a row a modality."""

import numpy as np

from dexcore.report.evaluation import Evaluation
from dexcore.report.pictures import WIDTH, Picture, new_figure, styled, to_png

_COLUMNS = ("input", "masked", "reconstruction", "pasted")
_GAP, _LABEL, _HEADER = 0.06, 0.26, 0.28  # inches


def gallery_picture(evaluation: Evaluation) -> Picture | None:
    """One row a modality that has an example: a held-out one where there is any, real before synthetic."""
    chosen = _chosen(evaluation)
    if not chosen:
        return None
    examples = evaluation.examples
    side = (WIDTH - 3 * _GAP) / 4
    row = _LABEL + side + _GAP
    height = _HEADER + row * len(chosen)
    with styled():
        figure = new_figure(height, layout=None)
        for column, name in enumerate(_COLUMNS):
            left = column * (side + _GAP)
            figure.text((left + side / 2) / WIDTH, 1 - 0.5 * _HEADER / height, name, ha="center", va="center")
            for number, index in enumerate(chosen):
                bottom = height - _HEADER - number * row - _LABEL - side
                axis = figure.add_axes((left / WIDTH, bottom / height, side / WIDTH, side / height))
                axis.imshow(np.nan_to_num(getattr(examples, name)[index]).clip(0, 1), aspect="auto")
                axis.set_axis_off()
        for number, index in enumerate(chosen):
            baseline = height - _HEADER - number * row - _LABEL / 2 - 0.03
            label = evaluation.modality_names[examples.modality[index]]
            what = kind(bool(examples.synthetic[index]), bool(examples.heldout[index]))
            figure.text(0, baseline / height, label, va="center", weight="bold")
            figure.text(1, baseline / height, what, va="center", ha="right")
        png = to_png(figure)
    return Picture(
        name="reconstructions.png",
        title="Reconstructions",
        reading=(
            "From the visible patches of the second column alone the model predicts the third; the fourth has its "
            "prediction pasted into the hidden patches."
        ),
        bad="hidden patches that are flat or all alike, or structure that comes only in training images.",
        png=png,
        detail=(
            "Where targets are normalized patch by patch (the default), the model predicts structure inside a patch "
            "alone, and each patch's mean and deviation are taken from the target: the coarse brightness of the last "
            "two columns is given, what happens inside a patch is the model's. Its guess at visible patches, in the "
            "third column alone, is never trained and may be noise."
        ),
    )


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
