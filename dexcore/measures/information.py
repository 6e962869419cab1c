"""Whether experts follow labels: normalized mutual information, and its null of labels permuted among groups.

Axes: n images, g groups (file, volume, patient), m modalities (or other labels), r experts, p permutations.
"""

import math
from dataclasses import dataclass

import numpy as np

PERMUTATIONS = 1000


@dataclass(frozen=True, eq=False)
class Information:
    """How far the experts of one block follow the modalities.

    Attributes:
        shares_mr: float64 [m, r], P(expert | modality): the expert's mean share of the modality's images.
        nmi: `normalized_mutual_information` of ``shares_mr``; nan where it does not exist (one modality, one
            expert, gates that are not finite).
        null_mean: mean of nmi when modality labels are permuted among groups.
        null_95: 95th percentile of the same.
        p_value: (1 + permutations that reach nmi) / (1 + permutations).
        null_shares_mr: float64 [m, r], ``shares_mr`` of the permutation whose nmi lies nearest to
            ``null_mean``: what chance alone draws.
    """

    shares_mr: np.ndarray
    nmi: float
    null_mean: float
    null_95: float
    p_value: float
    null_shares_mr: np.ndarray


def normalized_mutual_information(shares: np.ndarray) -> np.ndarray:
    """I(modality; expert) / min(log m, log r), every modality weighing the same.

    The joint distribution is P(modality, expert) = P(expert | modality) / m. The divisor is the most that the
    two could tell of each other with all experts in use: it does not shrink when the router collapses, as the
    entropies of the usual normalizations do, so a collapsed router scores 0 and not the ratio of two small
    numbers. 0 is independence; 1 is one modality an expert (or whole experts a modality) with even use.
    Images that spread evenly over k experts cannot exceed log(r / k) / min(log m, log r).

    Args:
        shares: [..., m, r], rows sum to 1.

    Returns:
        float64 [...], nan where m or r is 1.
    """
    modalities, experts = shares.shape[-2:]
    most = min(math.log(modalities), math.log(experts))
    if most == 0:
        return np.full(shares.shape[:-2], np.nan)
    marginal = shares.mean(axis=-2, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(shares == 0, 0.0, shares * np.log(shares / marginal))
    return terms.sum(axis=(-2, -1)) / modalities / most


def permuted_labels(label_g: np.ndarray, permutations: int = PERMUTATIONS, seed: int = 0) -> np.ndarray:
    """The labels of groups in random order, int64 [p, g]: a whole group keeps one label."""
    random = np.random.default_rng(seed)
    return np.stack([random.permutation(label_g) for _ in range(permutations)])


def information(mass_gr: np.ndarray, label_g: np.ndarray, labels_pg: np.ndarray) -> Information:
    """Measure one block.

    Slices of one volume look alike and go to the same experts. Permuting labels by slice would call that a
    finding; here a whole group keeps one label, so groups are what is counted.

    Args:
        mass_gr: `gate_mass` of the groups.
        label_g: index of each group's modality.
        labels_pg: `permuted_labels` of the same.
    """
    modalities = int(label_g.max()) + 1
    shares_mr = gate_shares(mass_gr, label_g, modalities)
    nmi = float(normalized_mutual_information(shares_mr))
    null_shares_pmr = np.stack([gate_shares(mass_gr, labels, modalities) for labels in labels_pg])
    null_p = normalized_mutual_information(null_shares_pmr)
    null_mean = float(null_p.mean())
    reached = int((null_p >= nmi - 1e-12).sum())
    return Information(
        shares_mr=shares_mr,
        nmi=nmi,
        null_mean=null_mean,
        null_95=float(np.quantile(null_p, 0.95)),
        p_value=math.nan if math.isnan(nmi) else (1 + reached) / (1 + len(null_p)),
        null_shares_mr=null_shares_pmr[np.abs(null_p - null_mean).argmin()],
    )


def drawn_information(weight_dg: np.ndarray, mass_gr: np.ndarray, label_g: np.ndarray) -> np.ndarray:
    """`normalized_mutual_information` in draws of groups, float64 [d]: each counts as often as ``weight_dg`` says."""
    masses = [weight_dg[:, label_g == m] @ mass_gr[label_g == m] for m in np.unique(label_g)]
    mass_dmr = np.stack(masses, axis=1)
    with np.errstate(invalid="ignore"):
        return normalized_mutual_information(mass_dmr / mass_dmr.sum(axis=-1, keepdims=True))


def gate_mass(gates_nr: np.ndarray, group_n: np.ndarray, groups: int) -> np.ndarray:
    """The sum of the gates of each group's images, float64 [g, r]."""
    mass_gr = np.zeros((groups, gates_nr.shape[1]))
    np.add.at(mass_gr, group_n, gates_nr)
    return mass_gr


def gate_shares(mass_gr: np.ndarray, label_g: np.ndarray, modalities: int) -> np.ndarray:
    """P(expert | label), float64 [m, r], from the gate mass of each group."""
    mass_mr = np.eye(modalities)[label_g].T @ mass_gr
    with np.errstate(invalid="ignore"):
        return mass_mr / mass_mr.sum(axis=1, keepdims=True)
