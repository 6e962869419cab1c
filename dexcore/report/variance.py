"""How much of an evaluation's images was reconstructed, by split and modality.

Axes: n images.
"""

import math
from dataclasses import dataclass

import numpy as np

from dexcore.measures.variance import share_explained
from dexcore.report.evaluation import Evaluation


@dataclass(frozen=True)
class Variance:
    """Share of the variance explained (of hidden patches, or of a teacher's tokens) by some images of one split.

    Attributes:
        value: 1 - sum of squared errors / sum of squares around each patch's own mean colour; 1 is
            perfect, 0 is what predicting every patch as its own mean colour reaches, nan where there is no
            variance to explain.
        images: how many images it rests on.
        modalities: how many modalities it rests on.
    """

    value: float
    images: int
    modalities: int


@dataclass(frozen=True)
class ModalityVariance:
    """`Variance` of one modality; synthetic and real images of it are told apart."""

    modality: str
    synthetic: bool
    variance: Variance


@dataclass(frozen=True)
class SplitVariance:
    """Variance explained on one split.

    Attributes:
        rows: by modality, in the order of the evaluation's names; absent where the split has no image of it.
        mean: unweighted mean over modalities, so that one with many images does not outvote the others.
        mean_real: the same over real images alone.
        pooled_real: all real images in one sum.
    """

    rows: tuple[ModalityVariance, ...]
    mean: Variance
    mean_real: Variance
    pooled_real: Variance


def variance_explained(evaluation: Evaluation, heldout: bool) -> SplitVariance:
    """Measure one split of ``evaluation``: the held-out images or the training images."""
    split = evaluation.heldout == heldout
    real = split & ~evaluation.synthetic
    rows = []
    for index, name in enumerate(evaluation.modality_names):
        for synthetic in (False, True):
            chosen = split & (evaluation.modality == index) & (evaluation.synthetic == synthetic)
            if chosen.any():
                rows.append(ModalityVariance(name, synthetic, _pooled(evaluation, chosen)))
    return SplitVariance(
        rows=tuple(rows),
        mean=_mean_over_modalities(evaluation, split),
        mean_real=_mean_over_modalities(evaluation, real),
        pooled_real=_pooled(evaluation, real),
    )


def _pooled(evaluation: Evaluation, chosen_n: np.ndarray) -> Variance:
    total = float(evaluation.total[chosen_n].sum())
    error = float(evaluation.squared_error[chosen_n].sum())
    return Variance(
        value=float(share_explained(error, total)),
        images=int(chosen_n.sum()),
        modalities=len(np.unique(evaluation.modality[chosen_n])),
    )


def _mean_over_modalities(evaluation: Evaluation, chosen_n: np.ndarray) -> Variance:
    names = evaluation.modality_names
    parts = [_pooled(evaluation, chosen_n & (evaluation.modality == m)) for m in range(len(names))]
    parts = [part for part in parts if part.images]
    return Variance(
        value=sum(part.value for part in parts) / len(parts) if parts else math.nan,
        images=sum(part.images for part in parts),
        modalities=len(parts),
    )
