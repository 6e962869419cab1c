"""What is left of a modality when only some experts of each layer may run: those that it uses most, or others.

Experts that all use are worth more than experts that hardly anyone uses, with modules or without: beside drawn experts
stand those that all modalities together use most.

Axes: g cases, m modalities, s sizes, q random draws of experts, d draws of cases.
"""

from dataclasses import dataclass

import numpy as np

from dexcore.measures.bootstrap import DRAWS, Estimate, estimate, resamples
from dexcore.measures.ratio import ratio


@dataclass(frozen=True, eq=False)
class Extraction:
    """Losses of held-out cases in parts of a model.

    Attributes:
        modalities: names of the m modalities.
        label_g: int64 [g], the modality of each case.
        loss_g: float64 [g], the sum of its images' losses in the whole model.
        sizes: experts that are left in each layer, rising, less than all of them.
        own_gs: float64 [g, s], the same sum where the experts are left that the case's modality uses most.
        common_gs: float64 [g, s], where those are left that all modalities together use most.
        random_qgs: float64 [q, g, s], where others are left, drawn at random, the same for all modalities.
    """

    modalities: tuple[str, ...]
    label_g: np.ndarray
    loss_g: np.ndarray
    sizes: tuple[int, ...]
    own_gs: np.ndarray
    common_gs: np.ndarray
    random_qgs: np.ndarray

    def growth(self, weight_dg: np.ndarray, loss_gs: np.ndarray) -> np.ndarray:
        """By which share the loss grows, mean over modalities, float64 [d, s]."""
        found = []
        for modality in range(len(self.modalities)):
            own = self.label_g == modality
            part_ds, whole_d = weight_dg[:, own] @ loss_gs[own], weight_dg[:, own] @ self.loss_g[own]
            found.append(ratio(part_ds, np.broadcast_to(whole_d[:, None], part_ds.shape)) - 1)
        return np.asarray(np.mean(found, axis=0))


@dataclass(frozen=True)
class Left:
    """With so many experts a layer left: by which share the loss grows, mean over modalities.

    Attributes:
        size: experts that are left in a layer.
        own: those that the modality uses most.
        common: those that all modalities together use most.
        random: drawn ones, mean over draws.
        common_minus_own: on the same draws of cases: what the modality's own choice saves. This tells of modules.
        random_minus_own: likewise: what choosing by use saves, whoever uses them.
    """

    size: int
    own: Estimate
    common: Estimate
    random: Estimate
    common_minus_own: Estimate
    random_minus_own: Estimate


def curve(found: Extraction, draws: int = DRAWS, seed: int = 0) -> tuple[Left, ...]:
    """The extraction curve, a point a size, with intervals over cases."""

    def numbers(weight_dg: np.ndarray) -> np.ndarray:
        """Float64 [d, 3, s]: own, common and random."""
        random = np.mean([found.growth(weight_dg, one) for one in found.random_qgs], axis=0)
        own, common = (found.growth(weight_dg, one) for one in (found.own_gs, found.common_gs))
        return np.stack([own, common, random], axis=1)

    whole = numbers(np.ones((1, len(found.label_g))))[0]
    drawn = np.concatenate([numbers(weight_dg) for weight_dg in resamples(found.label_g, draws, seed)])

    def told(s: int, kind: int, minus: int | None = None) -> Estimate:
        value, values_d = whole[kind, s], drawn[:, kind, s]
        if minus is not None:
            value, values_d = value - whole[minus, s], values_d - drawn[:, minus, s]
        return estimate(float(value), values_d, len(found.label_g))

    return tuple(
        Left(size, told(s, 0), told(s, 1), told(s, 2), told(s, 1, minus=0), told(s, 2, minus=0))
        for s, size in enumerate(found.sizes)
    )


def twin_minus_own(found: Extraction, twin: Extraction, draws: int = DRAWS, seed: int = 0) -> dict[int, Estimate]:
    """How much more a twin loses than the model, by size, each with the experts that its modalities use most.

    Raises:
        ValueError: they were measured on other cases.
    """
    if found.modalities != twin.modalities or not np.array_equal(found.label_g, twin.label_g):
        raise ValueError("extraction of a twin: expected the cases that the model was measured on")
    sizes = [size for size in found.sizes if size in twin.sizes]
    places = [([one.sizes.index(size) for size in sizes], one) for one in (found, twin)]

    def difference(weight_dg: np.ndarray) -> np.ndarray:
        own, other = (one.growth(weight_dg, one.own_gs[:, place]) for place, one in places)
        return np.asarray(other - own)

    whole = difference(np.ones((1, len(found.label_g))))[0]
    drawn = np.concatenate([difference(weight_dg) for weight_dg in resamples(found.label_g, draws, seed)])
    return {size: estimate(float(whole[s]), drawn[:, s], len(found.label_g)) for s, size in enumerate(sizes)}
