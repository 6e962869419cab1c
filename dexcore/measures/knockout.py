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
    """Whether a modality loses by those experts that it uses, and how much.

    Attributes:
        value: by how much more a modality's loss grows without an expert that is drawn as the modality uses them than
            without one drawn as all modalities do, the mean over modalities and layers: a share of the loss. An
            expert's load, its worth to all and what the modality loses by any expert are not in it; 0 where all
            modalities use the same experts, or experts are copies. Its interval is over held-out cases; shares are as
            they are.
        null_mean, null_95: mean and 95th percentile of it with the held-out cases' modalities permuted.
        p_value: (1 + permutations that reach it) / (1 + permutations).
        correlation: of damage and P(expert | modality), both centered by expert and by modality, layer by layer: the
            same without a size; nan where one of them does not vary. No interval: one over draws of cases would be too
            narrow, since draws hold more noise than the cases.
    """

    value: Estimate
    null_mean: float
    null_95: float
    p_value: float
    correlation: float


def specificity_statistic(found: KnockOut) -> Statistic:
    """`Specificity.value` in draws of cases. It is linear in damage, so that its draws spread as other cases would."""
    return lambda weight_dg: _specific(found, found._damage(weight_dg))


def specificity(found: KnockOut, draws: int = DRAWS, permutations: int = PERMUTATIONS, seed: int = 0) -> Specificity:
    """Measure it, with its interval over cases and its null."""
    damage_me = found._damage(np.ones((1, len(found.label_g))))
    whole = float(_specific(found, damage_me)[0])
    statistic = specificity_statistic(found)
    drawn = [statistic(weight) for weight in resamples(found.label_g, draws, seed)]
    labels_pg = permuted_labels(found.label_g, permutations, seed)
    null = _specific(found, np.concatenate([found._damage(np.ones((1, len(one))), one) for one in labels_pg]))
    null = null[np.isfinite(null)]
    known = bool(len(null)) and math.isfinite(whole)
    reached = null >= whole - 1e-12 * np.abs(damage_me).max(initial=0.0)
    return Specificity(
        value=estimate(whole, np.concatenate(drawn), len(found.label_g)),
        null_mean=float(null.mean()) if known else math.nan,
        null_95=float(np.quantile(null, 0.95)) if known else math.nan,
        p_value=float(1 + reached.sum()) / (1 + len(null)) if known else math.nan,
        correlation=_correlation(found),
    )


def _specific(found: KnockOut, damage_dme: np.ndarray) -> np.ndarray:
    """`Specificity.value` of damages, float64 [d]."""
    shares_me = np.concatenate(found.shares, axis=1)
    more_me = shares_me - shares_me.mean(axis=0)  # sums to 0 over modalities, and over a layer's experts
    return np.asarray(np.einsum("dme,me->d", damage_dme, more_me)) / (len(found.modalities) * len(found.shares))


def _correlation(found: KnockOut) -> float:
    damage, shares = (_interaction(layers) for layers in (found.damage, found.shares))
    norms = [float(np.linalg.norm(one)) for one in (damage, shares)]
    tiny = 1e-9 * max((float(np.abs(one).max(initial=0.0)) for one in found.damage), default=0.0)  # roundings
    return float(damage @ shares) / math.prod(norms) if norms[0] > tiny and norms[1] > 1e-9 else math.nan


def _interaction(layers: tuple[np.ndarray, ...]) -> np.ndarray:
    """What is neither the expert's nor the modality's: layers [m, r] centered by both, flat: float64 [m e]."""
    centered = [one - one.mean(axis=0) - one.mean(axis=1, keepdims=True) + one.mean() for one in layers]
    return np.concatenate([one.ravel() for one in centered])


@dataclass(frozen=True)
class OwnDamage:
    """What a modality loses without the expert that it uses most, and without others: shares of its loss.

    Where all modalities use one expert most, own is larger than matched if that expert is worth more than another as
    busy: whether modalities differ is told by `Specificity`. All are means over layers; those of "mean" are means over
    modalities too.

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
