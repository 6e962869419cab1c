"""What the numbers of an analysis say: what features tell apart, whether gradients conflict, how experts differ."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dexcore.measures.components import principal_components
from dexcore.measures.neighbors import Neighbors, neighbor_accuracy
from dexcore.report.analysis import PARTS, Analysis
from dexcore.report.evaluation import Evaluation


@dataclass(frozen=True, eq=False)
class Separation:
    """What the nearest neighbors of an image tell, in one mode of the encoder.

    Attributes:
        mode: "experts" or "director"; "dense" of an encoder without experts.
        modality: the image's modality; neighbors are of other groups (file, volume, patient).
        label: its label; neighbors are of other groups.
        label_across: its label; neighbors are of other modalities, so that only what modalities share can help.
    """

    mode: str
    modality: Neighbors
    label: Neighbors
    label_across: Neighbors


def separation(evaluation: Evaluation, analysis: Analysis) -> tuple[Separation, ...]:
    """Measure each mode; () where no image was evaluated."""
    if not len(evaluation):
        return ()
    modality, label = evaluation.modality, analysis.label
    _, group = evaluation.groups()
    return tuple(
        Separation(
            mode,
            modality=neighbor_accuracy(features, modality, group),
            label=neighbor_accuracy(features, label, group),
            label_across=neighbor_accuracy(features, label, modality),
        )
        for mode, features in zip(analysis.modes, analysis.features, strict=True)
    )


def plane(analysis: Analysis) -> tuple[np.ndarray, np.ndarray]:
    """The features' first two principal components, of all modes together, each around its own mean.

    What sets the modes apart as a whole would else take a component, and be all that it shows.

    Returns:
        float64 [modes, n, 2], nan where a feature is not finite, and the components' shares of the variance, [2].
    """
    centered = []
    for features in analysis.features.astype(np.float64):
        finite = features[np.isfinite(features).all(axis=1)]
        centered.append(features - finite.mean(axis=0) if len(finite) else features)
    projected, shares = principal_components(np.concatenate(centered), 2)
    return projected.reshape(len(analysis.modes), len(analysis), 2), shares


@dataclass(frozen=True)
class Conflict:
    """How the modalities' gradients of one part of the encoder lie to one another.

    Attributes:
        part: "shared weights" or "experts".
        between: mean cosine between modalities.
        ceiling: mean cosine between the halves of one modality.
        opposed: the two modalities with the lowest cosine, and it.
    """

    part: str
    between: float
    ceiling: float
    opposed: tuple[str, str, float]


def conflicts(analysis: Analysis) -> tuple[Conflict, ...]:
    """Measure each part; () where fewer than two modalities were compared or no cosine is finite."""
    names = analysis.gradient_modalities
    rows, columns = np.triu_indices(len(names), 1)
    found = []
    for part, cosines in zip(PARTS, analysis.gradient_cosines, strict=False):
        pairs, halves = cosines[rows, columns], np.diag(cosines)
        if np.isfinite(pairs).any() and np.isfinite(halves).any():
            lowest = int(np.nanargmin(pairs))
            opposed = names[rows[lowest]], names[columns[lowest]], float(pairs[lowest])
            found.append(Conflict(part, float(np.nanmean(pairs)), float(np.nanmean(halves)), opposed))
    return tuple(found)


@dataclass(frozen=True)
class Likeness:
    """Linear CKA among the FFNs of a block: 1 where all compute the same.

    Attributes:
        mean, lowest: over pairs of experts; nan where there is one expert.
        director: mean over experts, each with the director.
    """

    mean: float
    lowest: float
    director: float


def likeness(blocks: Sequence[np.ndarray]) -> tuple[Likeness, ...]:
    """Measure every block of similarities [R + 1, R + 1], the director last."""
    found = []
    for block in blocks:
        pairs = block[:-1, :-1][np.triu_indices(len(block) - 1, 1)]
        pairs = pairs[np.isfinite(pairs)]
        director = block[-1, :-1][np.isfinite(block[-1, :-1])]
        found.append(
            Likeness(
                mean=float(pairs.mean()) if len(pairs) else np.nan,
                lowest=float(pairs.min()) if len(pairs) else np.nan,
                director=float(director.mean()) if len(director) else np.nan,
            )
        )
    return tuple(found)
