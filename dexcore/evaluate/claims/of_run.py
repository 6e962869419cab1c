"""Numbers that a run's own evaluation holds: how its routers follow modalities, and what it predicts.

Both are of images that training never saw, drawn by group (file, volume, patient) within each modality.

Axes: n images, g groups, m modalities, r experts, d draws.
"""

from pathlib import Path

import numpy as np

from dexcore.evaluate.claims.numbers import Number
from dexcore.measures.information import drawn_information, gate_mass, information, permuted_labels
from dexcore.measures.variance import share_explained
from dexcore.report.evaluation import Evaluation
from dexcore.report.files import EVALUATION_FILE, STEP0_EVALUATION_FILE

_PERMUTATIONS = 200  # their mean alone is used


def run_numbers(folder: Path) -> dict[str, Number]:
    """The numbers of a finished run: ``variance explained``; of routed models ``routing`` and ``routing at step 0``.

    Raises:
        FileNotFoundError, ValueError: the run's evaluation is missing or damaged.
    """
    evaluation = Evaluation.load(folder / EVALUATION_FILE)
    numbers = {"variance explained": variance_number(evaluation)}
    if evaluation.gates:
        numbers["routing"] = routing_number(evaluation)
        if (folder / STEP0_EVALUATION_FILE).is_file():
            numbers["routing at step 0"] = routing_number(Evaluation.load(folder / STEP0_EVALUATION_FILE))
    return numbers


def routing_number(evaluation: Evaluation) -> Number:
    """Normalized mutual information of modality and expert minus its null of permuted labels, the mean over blocks.

    The null is the whole set's in every draw. Draws repeat cases, which raises their information a little: the draws
    are used for how far the number spreads, not for where it lies.
    """
    label_g, group_n, kept = _groups(evaluation)
    mass = [gate_mass(gates[kept], group_n, len(label_g)) for gates in evaluation.gates]
    labels_pg = permuted_labels(label_g, _PERMUTATIONS)
    null = float(np.mean([information(mass_gr, label_g, labels_pg).null_mean for mass_gr in mass]))

    def above_null(weight_dg: np.ndarray) -> np.ndarray:
        blocks = [drawn_information(weight_dg, mass_gr, label_g) for mass_gr in mass]
        return np.asarray(np.mean(blocks, axis=0) - null)

    return Number.of(above_null, label_g, "held out")


def variance_number(evaluation: Evaluation) -> Number:
    """The share of the variance inside hidden patches that the model predicts, the mean over modalities."""
    label_g, group_n, kept = _groups(evaluation)
    sums = {
        name: np.bincount(group_n, getattr(evaluation, name)[kept], len(label_g)) for name in ("squared_error", "total")
    }
    member_gm = (np.arange(label_g.max() + 1)[:, None] == label_g).T.astype(np.float64)

    def explained(weight_dg: np.ndarray) -> np.ndarray:
        error, total = ((weight_dg * values) @ member_gm for values in sums.values())
        return np.asarray(share_explained(error, total).mean(axis=1))

    return Number.of(explained, label_g, "held out")


def _groups(evaluation: Evaluation) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of held-out images: the modality of each group, counted from 0; each image's group; which images they are.

    Raises:
        ValueError: no image is held out.
    """
    kept = np.flatnonzero(evaluation.heldout)
    if not len(kept):
        raise ValueError("the store holds no image out: expected some of every modality")
    modality_g, group_n = evaluation.groups(evaluation.heldout)
    return np.unique(modality_g, return_inverse=True)[1], group_n, kept
