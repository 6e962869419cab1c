"""Cosines between modalities' gradients, and between halves of one, which is what agreement looks like.

A modality's cases are cut into folds, and the folds into two halves. All is told by the inner products of the folds'
gradients, so that cases can be drawn again without a gradient being computed again.

Noise makes every cosine smaller, between two modalities as between halves of one. Their difference is therefore no
measure of conflict: it falls with the noise. Their ratio is one.

Axes: m modalities, f folds of all modalities, d draws.
"""

from dataclasses import dataclass

import numpy as np

from dexcore.measures.bootstrap import DRAWS, Estimate, Statistic, estimate, resamples
from dexcore.measures.ratio import ratio

_STEP = 0.1  # how far a draw's weights go from the sample's to those of the cases drawn


def half_cosines(products: np.ndarray) -> np.ndarray:
    """Cosines between modalities, float64 [..., m, m]: means over pairs of halves; between its halves in the diagonal.

    Args:
        products: [..., 2 m, 2 m], inner products of gradients, the halves of a modality side by side. One of zeros has
            no direction: nan.
    """
    squares = np.diagonal(products, axis1=-2, axis2=-1)
    length = np.sqrt(np.where(squares > 0, squares, np.nan))
    pairs = products / length[..., :, None] / length[..., None, :]
    size = pairs.shape[-1] // 2
    pairs = pairs.reshape(*pairs.shape[:-2], size, 2, size, 2)
    cosines = pairs.mean(axis=(-3, -1))
    own = np.arange(size)
    cosines[..., own, own] = pairs[..., own, 0, own, 1]
    return cosines


@dataclass(frozen=True, eq=False)
class Folds:
    """Gradients of one model in folds of cases.

    Attributes:
        modalities: names of the m modalities.
        label_f: int64 [f], the modality of each fold.
        half_f: int64 [f], 0 or 1.
        product_ff: float64 [f, f], inner products of the folds' gradients (sums over images).
        cases: how many there are.
        weights: how many numbers the gradient is of.
    """

    modalities: tuple[str, ...]
    label_f: np.ndarray
    half_f: np.ndarray
    product_ff: np.ndarray
    cases: int
    weights: int

    def cosines(self, weight_df: np.ndarray) -> np.ndarray:
        """`half_cosines` where each fold counts as often as ``weight_df`` says, float64 [d, m, m]."""
        own_hf = (2 * self.label_f + self.half_f == np.arange(2 * len(self.modalities))[:, None]).astype(np.float64)
        weighted = own_hf * weight_df[:, None, :]
        return half_cosines(weighted @ self.product_ff @ weighted.transpose(0, 2, 1))


@dataclass(frozen=True)
class Conflict:
    """How far modalities pull the same weights apart.

    Attributes:
        between: cosine between two modalities, mean over pairs.
        ceiling: cosine between two halves of one modality, mean over modalities: what so many images allow.
        shortfall: `shortfall`: what the modality costs, whatever the noise.
    """

    between: Estimate
    ceiling: Estimate
    shortfall: Estimate


def shortfall(cosines_dmm: np.ndarray) -> np.ndarray:
    """By how much two modalities' gradients fall short of one direction, had they no noise: float64 [d].

    1 - sum of the cosines between m and n / sum of sqrt(own m own n), over pairs, ``own`` being the cosine between
    halves: 0 is one direction for all, 1 none in common, above 1 opposite ones. A pair weighs as much as its own
    gradients can be told from noise. nan where none can.

    Args:
        cosines_dmm: `half_cosines`.
    """
    own_dm = np.diagonal(cosines_dmm, axis1=1, axis2=2).clip(min=0)
    reach_dmm = np.sqrt(own_dm[:, :, None] * own_dm[:, None, :])
    pairs = ~np.eye(own_dm.shape[1], dtype=bool)
    return 1 - ratio(cosines_dmm[:, pairs].sum(axis=1), reach_dmm[:, pairs].sum(axis=1))


def shortfall_statistic(found: Folds) -> Statistic:
    """`shortfall` in draws of folds, around the sample's: see `strata`."""
    return lambda weight_df: _in_steps(found, weight_df)[:, 2]


def strata(found: Folds) -> np.ndarray:
    """Int64 [f]: folds are drawn within halves."""
    return 2 * found.label_f + found.half_f


def conflict(found: Folds, draws: int = DRAWS, seed: int = 0) -> Conflict:
    """Of one model, with intervals over cases: folds are drawn within their halves."""
    value, drawn = _numbers(found, draws, seed)
    return Conflict(*(estimate(float(value[k]), drawn[:, k], found.cases) for k in range(3)))


def conflict_minus(found: Folds, twin: Folds, draws: int = DRAWS, seed: int = 0) -> Conflict:
    """What a twin has more of each (a positive shortfall: its modalities disagree more), on the same folds.

    Raises:
        ValueError: they are not the same folds.
    """
    same = found.modalities == twin.modalities and np.array_equal(found.label_f, twin.label_f)
    if not same or found.weights != twin.weights:
        raise ValueError("gradients of a twin: expected the images and the weights of the model")
    (own, own_dk), (other, other_dk) = (_numbers(one, draws, seed) for one in (found, twin))
    return Conflict(*(estimate(float(other[k] - own[k]), other_dk[:, k] - own_dk[:, k], found.cases) for k in range(3)))


def _numbers(found: Folds, draws: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Between, ceiling and shortfall, float64 [3]; and in draws of folds around them, [d, 3]."""
    whole = _in_steps(found, np.ones((1, len(found.label_f))))[0]
    return whole, np.concatenate([_in_steps(found, weight) for weight in resamples(strata(found), draws, seed)])


def _in_steps(found: Folds, weight_df: np.ndarray) -> np.ndarray:
    """Between, ceiling and shortfall in draws of folds, float64 [d, 3].

    A drawn half holds folds twice, and so more noise than the sample: its cosines lie lower, and their ratio spreads
    too far. A small step towards the draw, enlarged, has the sample's noise and spreads as other cases would.
    """
    whole = _told(found.cosines(np.ones((1, len(found.label_f)))))
    return whole + (_told(found.cosines(1 + _STEP * (weight_df - 1))) - whole) / _STEP


def _told(cosines_dmm: np.ndarray) -> np.ndarray:
    size = cosines_dmm.shape[1]
    ceiling = np.diagonal(cosines_dmm, axis1=1, axis2=2).mean(axis=1)
    between = cosines_dmm[:, ~np.eye(size, dtype=bool)].mean(axis=1)
    return np.stack([between, ceiling, shortfall(cosines_dmm)], axis=1)
