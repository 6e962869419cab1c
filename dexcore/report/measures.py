"""What the numbers of an evaluation say: how much was reconstructed, and whether experts follow modalities.

Axes: n images, g groups (file, volume, patient), m modalities, r experts, p permutations.
"""

import math
from dataclasses import dataclass

import numpy as np

from dexcore.report.evaluation import Evaluation

PERMUTATIONS = 1000


@dataclass(frozen=True)
class Variance:
    """Share of masked-patch variance explained by some images of one split.

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
        value=1 - error / total if total > 0 else math.nan,
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


@dataclass(frozen=True, eq=False)
class Specialization:
    """How far the experts of one block follow the modalities.

    Attributes:
        modalities: names of the m modalities that were evaluated.
        synthetic: for each of them, whether any of its images is synthetic.
        shares_mr: float64 [m, r], P(expert | modality): the expert's mean share of the modality's images.
        nmi: `normalized_mutual_information` of ``shares_mr``; nan where it does not exist (one modality, one
            expert, gates that are not finite).
        null_mean: mean of nmi when modality labels are permuted among groups.
        null_95: 95th percentile of the same.
        p_value: (1 + permutations that reach nmi) / (1 + permutations).
        null_shares_mr: float64 [m, r], ``shares_mr`` of the permutation whose nmi lies nearest to
            ``null_mean``: what chance alone draws.
    """

    modalities: tuple[str, ...]
    synthetic: tuple[bool, ...]
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


def specialization(
    evaluation: Evaluation, permutations: int = PERMUTATIONS, seed: int = 0
) -> tuple[Specialization, ...]:
    """Measure every DEX block on all evaluated images, against labels permuted by group.

    Slices of one volume look alike and go to the same experts. Permuting labels by slice would call that a
    finding; here a whole group keeps one label, so groups are what is counted.
    """
    if not len(evaluation) or not evaluation.gates:
        return ()
    present = np.unique(evaluation.modality)
    modalities = tuple(evaluation.modality_names[index] for index in present)
    synthetic = tuple(bool(evaluation.synthetic[evaluation.modality == index].any()) for index in present)
    group_modality, group_n = evaluation.groups()
    label_g = np.searchsorted(present, group_modality)
    random = np.random.default_rng(seed)
    labels_pg = np.stack([random.permutation(label_g) for _ in range(permutations)])
    blocks = []
    for gates_nr in evaluation.gates:
        mass_gr = gate_mass(gates_nr, group_n, len(label_g))
        blocks.append(_specialization(modalities, synthetic, mass_gr, label_g, labels_pg))
    return tuple(blocks)


def _specialization(
    modalities: tuple[str, ...],
    synthetic: tuple[bool, ...],
    mass_gr: np.ndarray,
    label_g: np.ndarray,
    labels_pg: np.ndarray,
) -> Specialization:
    shares_mr = _shares(mass_gr, label_g, len(modalities))
    nmi = float(normalized_mutual_information(shares_mr))
    null_shares_pmr = np.stack([_shares(mass_gr, labels, len(modalities)) for labels in labels_pg])
    null_p = normalized_mutual_information(null_shares_pmr)
    null_mean = float(null_p.mean())
    reached = int((null_p >= nmi - 1e-12).sum())
    return Specialization(
        modalities=modalities,
        synthetic=synthetic,
        shares_mr=shares_mr,
        nmi=nmi,
        null_mean=null_mean,
        null_95=float(np.quantile(null_p, 0.95)),
        p_value=math.nan if math.isnan(nmi) else (1 + reached) / (1 + len(null_p)),
        null_shares_mr=null_shares_pmr[np.abs(null_p - null_mean).argmin()],
    )


def gate_mass(gates_nr: np.ndarray, group_n: np.ndarray, groups: int) -> np.ndarray:
    """The sum of the gates of each group's images, float64 [g, r]."""
    mass_gr = np.zeros((groups, gates_nr.shape[1]))
    np.add.at(mass_gr, group_n, gates_nr)
    return mass_gr


def _shares(mass_gr: np.ndarray, label_g: np.ndarray, modalities: int) -> np.ndarray:
    """P(expert | label) [m, r] from the gate mass of each group."""
    mass_mr = np.eye(modalities)[label_g].T @ mass_gr
    with np.errstate(invalid="ignore"):
        return mass_mr / mass_mr.sum(axis=1, keepdims=True)
