"""A run's measures beside those of its model before the first step, and what training changed."""

from dataclasses import dataclass

import numpy as np

from dexcore.report.analysis import Analysis
from dexcore.report.change import Change, neighbor_change, specialization_changes, variance_change
from dexcore.report.evaluation import Evaluation
from dexcore.report.model_measures import Conflict, Likeness, Separation, conflicts, likeness, separation
from dexcore.report.numbers import RunNumbers
from dexcore.report.specialization import Specialization, specialization
from dexcore.report.variance import SplitVariance, variance_explained

NEIGHBOR_LABELS = ("modality", "label", "label_across")  # fields of `Separation`


@dataclass(frozen=True, eq=False)
class Measures:
    """What an evaluation and an analysis say of one state of a model.

    Attributes:
        training: variance explained on training images.
        heldout: variance explained on images that training never sees.
        blocks: modality and expert, an entry a DEX block.
        likeness: of the experts' outputs, an entry a DEX block.
        separation: what nearest neighbors tell, in experts and in director mode.
        conflicts: of the modalities' gradients, in the shared weights and in the experts.
    """

    training: SplitVariance
    heldout: SplitVariance
    blocks: tuple[Specialization, ...]
    likeness: tuple[Likeness, ...]
    separation: tuple[Separation, ...]
    conflicts: tuple[Conflict, ...]

    @property
    def real(self) -> bool:
        """Whether the mean over modalities that is told first is over real images alone: where there is any."""
        return bool(self.training.mean_real.images or self.heldout.mean_real.images)


def measure(evaluation: Evaluation, analysis: Analysis) -> Measures:
    """Measure one state of a model."""
    return Measures(
        training=variance_explained(evaluation, heldout=False),
        heldout=variance_explained(evaluation, heldout=True),
        blocks=specialization(evaluation),
        likeness=likeness(analysis.expert_similarity),
        separation=separation(evaluation, analysis),
        conflicts=conflicts(analysis),
    )


@dataclass(frozen=True, eq=False)
class Compared:
    """The model before its first step, and what is different since.

    Of gradients and of the experts' likeness no spread is known: they stand beside each other, and no verdict is made.

    Attributes:
        step0: the measures before the first step.
        training, heldout: change of the variance explained, mean over modalities (over real images where there are
            any); None where the split has no image.
        blocks: change of the mutual information minus its null, an entry a DEX block.
        separation: an entry a mode of the encoder: change of what neighbors tell, by `NEIGHBOR_LABELS`.
    """

    step0: Measures
    training: Change | None
    heldout: Change | None
    blocks: tuple[Change, ...]
    separation: tuple[dict[str, Change], ...]

    @property
    def changes(self) -> list[Change]:
        """All of them."""
        split = [change for change in (self.training, self.heldout) if change is not None]
        return [*split, *self.blocks, *(change for mode in self.separation for change in mode.values())]


def compare(numbers: RunNumbers, trained: Measures) -> Compared | None:
    """Compare a run's ``trained`` measures with those before its first step; None where these are missing."""
    if numbers.step0 is None:
        return None
    now, then = numbers.evaluation, numbers.step0.evaluation
    before = measure(then, numbers.step0.analysis)
    splits = []
    for heldout in (False, True):
        chosen = (now.heldout == heldout) & ~(now.synthetic & trained.real)
        splits.append(variance_change(now, then, chosen, tests=2) if chosen.any() else None)
    return Compared(
        step0=before,
        training=splits[0],
        heldout=splits[1],
        blocks=specialization_changes(now, then, trained.blocks, before.blocks),
        separation=_separation_changes(numbers, trained.separation, before.separation),
    )


def _separation_changes(
    numbers: RunNumbers, trained: tuple[Separation, ...], before: tuple[Separation, ...]
) -> tuple[dict[str, Change], ...]:
    evaluation = numbers.evaluation
    labels: dict[str, np.ndarray] = {
        name: evaluation.modality if name == "modality" else numbers.analysis.label for name in NEIGHBOR_LABELS
    }
    tests = len(trained) * len(labels)
    return tuple(
        {
            name: neighbor_change(evaluation, label, getattr(now, name), getattr(then, name), tests)
            for name, label in labels.items()
        }
        for now, then in zip(trained, before, strict=True)
    )
