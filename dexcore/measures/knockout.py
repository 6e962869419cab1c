"""What a model loses without one of its experts, by modality, and whether it is those who use the expert that lose.

An image that a layer does not send to an expert loses nothing without it, so damage follows use by construction: among
the same images even random routing would look specific. Use is therefore measured on other images than damage.

Axes: g cases, m modalities, r experts of a layer, e experts of all layers side by side, d draws.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dexcore.measures.bootstrap import DRAWS, Estimate, Statistic, estimate, resamples
from dexcore.measures.information import PERMUTATIONS, permuted_labels
from dexcore.measures.ratio import ratio


@dataclass(frozen=True, eq=False)
class KnockOut:
    """The loss of a model whole, and without each of its experts, on held-out cases.

    Attributes:
        modalities: names of the m modalities.
        label_g: int64 [g], the modality of each case.
        count_g: float64 [g], its images.
        loss_g: float64 [g], the sum of their losses, nothing knocked out.
        gained: a layer each, float64 [g, r]: how much larger that sum is without the expert.
        shares: a layer each, float64 [m, r]: P(expert | modality), of other images (training images).
        instead: what stood in for the expert (`dexcore.nn.set_expert_mask`).
    """

    modalities: tuple[str, ...]
    label_g: np.ndarray
    count_g: np.ndarray
    loss_g: np.ndarray
    gained: tuple[np.ndarray, ...]
    shares: tuple[np.ndarray, ...]
    instead: str

    @property
    def damage(self) -> tuple[np.ndarray, ...]:
        """A layer each, float64 [m, r]: by which share the modality's loss grows without the expert."""
        return self._by_layer(self._damage(np.ones((1, len(self.label_g))))[0])

    @cached_property
    def _gained_ge(self) -> np.ndarray:
        return np.concatenate(self.gained, axis=1)

    def _by_layer(self, values_me: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(np.split(values_me, np.cumsum([one.shape[1] for one in self.gained])[:-1], axis=1))

    def _damage(self, weight_dg: np.ndarray, label_g: np.ndarray | None = None) -> np.ndarray:
        """The damage in draws of cases, float64 [d, m, e]."""
        label_g = self.label_g if label_g is None else label_g
        found = []
        for modality in range(len(self.modalities)):
            own = label_g == modality
            gained_de = weight_dg[:, own] @ self._gained_ge[own]
            loss_d = weight_dg[:, own] @ self.loss_g[own]
            found.append(ratio(gained_de, np.broadcast_to(loss_d[:, None], gained_de.shape)))
        return np.stack(found, axis=1)


def damage_bounds(
    found: KnockOut, draws: int = DRAWS, seed: int = 0
) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
    """The interval of each damage over cases: low and high, a layer each, float64 [m, r], as `KnockOut.damage`."""
    drawn = np.concatenate([found._damage(weight) for weight in resamples(found.label_g, draws, seed)])
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    return found._by_layer(low), found._by_layer(high)


@dataclass(frozen=True)
class Specificity:
    """Whether a modality loses by those experts that it uses.

    Attributes:
        value: the correlation of damage and P(expert | modality) over all pairs of an expert and a modality, of what
            is neither the expert's own (its load, its worth to all) nor the modality's: both are centered by expert and
            by modality, layer by layer. nan where nothing varies, as where all experts are copies. Its interval is over
            held-out cases; shares are as they are.
        null_mean, null_95: mean and 95th percentile of it with the held-out cases' modalities permuted.
        p_value: (1 + permutations that reach it) / (1 + permutations).
    """

    value: Estimate
    null_mean: float
    null_95: float
    p_value: float


def specificity_statistic(found: KnockOut) -> Statistic:
    """`Specificity.value` in draws of cases."""
    return lambda weight_dg: _correlations(found, found._damage(weight_dg))


def specificity(found: KnockOut, draws: int = DRAWS, permutations: int = PERMUTATIONS, seed: int = 0) -> Specificity:
    """Measure it, with its interval over cases and its null."""
    ones = np.ones((1, len(found.label_g)))
    correlations = specificity_statistic(found)
    whole = float(correlations(ones)[0])
    drawn = [correlations(weight) for weight in resamples(found.label_g, draws, seed)]
    labels_pg = permuted_labels(found.label_g, permutations, seed)
    null = _correlations(found, np.concatenate([found._damage(ones, labels) for labels in labels_pg]))
    null = null[np.isfinite(null)]
    known = bool(len(null)) and math.isfinite(whole)
    return Specificity(
        value=estimate(whole, np.concatenate(drawn), len(found.label_g)),
        null_mean=float(null.mean()) if known else math.nan,
        null_95=float(np.quantile(null, 0.95)) if known else math.nan,
        p_value=float(1 + (null >= whole - 1e-12).sum()) / (1 + len(null)) if known else math.nan,
    )


def _correlations(found: KnockOut, damage_dme: np.ndarray) -> np.ndarray:
    """Of damage and shares, float64 [d]."""
    shares = _interaction(tuple(one[None] for one in found.shares))[0]
    damage = _interaction(tuple(np.stack(one) for one in zip(*map(found._by_layer, damage_dme), strict=True)))
    norms = np.linalg.norm(damage, axis=1) * np.linalg.norm(shares)
    tiny = 1e-9 * np.abs(damage_dme).max(axis=(1, 2), initial=0.0) + 1e-15  # roundings of what cancels
    norms = np.where(np.linalg.norm(damage, axis=1) > tiny, norms, 0.0)
    return ratio(damage @ shares, norms)


def _interaction(layers: tuple[np.ndarray, ...]) -> np.ndarray:
    """What is neither the expert's nor the modality's: layers [d, m, r] centered by both, flat: float64 [d, m e]."""
    centered = [
        one - one.mean(axis=1, keepdims=True) - one.mean(axis=2, keepdims=True) + one.mean(axis=(1, 2), keepdims=True)
        for one in layers
    ]
    return np.concatenate([one.reshape(len(one), -1) for one in centered], axis=1)


@dataclass(frozen=True)
class OwnDamage:
    """What a modality loses without the expert that it uses most, and without others: shares of its loss.

    All are means over layers; those of "mean" are means over modalities too.

    Attributes:
        own: without the expert that it uses most.
        matched: without the expert, of all others of the layer, whose load over all modalities is nearest to that.
        random: without any other, the mean over them.
        own_minus_matched, own_minus_random: differences, on the same draws of cases.
    """

    own: Estimate
    matched: Estimate
    random: Estimate
    own_minus_matched: Estimate
    own_minus_random: Estimate


MEAN = "mean"


def own_damage_statistic(found: KnockOut) -> Statistic:
    """``own_minus_matched`` of `OwnDamage`, the mean over modalities, in draws of cases."""
    own, matched, _ = _chosen(found.shares)
    return lambda weight_dg: np.asarray(np.einsum("dme,me->dm", found._damage(weight_dg), own - matched).mean(axis=1))


def own_damage(found: KnockOut, draws: int = DRAWS, seed: int = 0) -> dict[str, OwnDamage]:
    """Of each modality by name, and under ``MEAN`` of all. Which expert is whose is told by ``shares``."""
    chosen = _chosen(found.shares)

    def numbers(weight_dg: np.ndarray) -> np.ndarray:
        """Float64 [d, 3, m]: own, matched, random."""
        damage_dme = found._damage(weight_dg)
        return np.einsum("dme,kme->dkm", damage_dme, chosen)

    whole = numbers(np.ones((1, len(found.label_g))))[0]
    drawn = np.concatenate([numbers(weight) for weight in resamples(found.label_g, draws, seed)])

    def told(values: np.ndarray, values_d: np.ndarray, groups: int) -> OwnDamage:
        own, matched, random = (estimate(float(values[k]), values_d[:, k], groups) for k in range(3))
        differences = (estimate(float(values[0] - values[k]), values_d[:, 0] - values_d[:, k], groups) for k in (1, 2))
        return OwnDamage(own, matched, random, *differences)

    sizes = np.bincount(found.label_g, minlength=len(found.modalities))
    by_name = {name: told(whole[:, m], drawn[:, :, m], int(sizes[m])) for m, name in enumerate(found.modalities)}
    return by_name | {MEAN: told(whole.mean(axis=1), drawn.mean(axis=2), len(found.label_g))}


def _chosen(shares: tuple[np.ndarray, ...]) -> np.ndarray:
    """Weights of experts, float64 [3, m, e]: a modality's own one, one of like load, all others; layers alike."""
    found = []
    for shares_mr in shares:
        modalities, experts = shares_mr.shape
        own, matched, others = np.zeros((3, modalities, experts))
        load_r = shares_mr.mean(axis=0)
        for m in range(modalities):
            first = int(shares_mr[m].argmax())
            away = np.where(np.arange(experts) == first, np.inf, np.abs(load_r - load_r[first]))
            own[m, first] = 1
            if experts > 1:
                matched[m, int(away.argmin())] = 1
                others[m] = (np.arange(experts) != first) / (experts - 1)
        found.append(np.stack([own, matched, others]))
    return np.concatenate(found, axis=2) / len(shares)
