"""Whether routing follows modalities: over depth, against routers that nobody trained, and alike from seed to seed.

A router is known by its mass: the sum of the gates that it gave to each expert, case by case.

Axes: n images, g cases, m modalities, r experts, d draws, b blocks.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dexcore.extras import require
from dexcore.measures.bootstrap import DRAWS, Estimate, estimate, resamples
from dexcore.measures.information import (
    PERMUTATIONS,
    drawn_information,
    gate_shares,
    information,
    permuted_labels,
)

ROUTERS = 20  # drawn at random, for a control
_PERMUTATIONS_OF_CONTROLS = 100  # of them the mean alone is wanted


@dataclass(frozen=True)
class Excess:
    """How far one router's experts follow the modalities, beyond chance.

    Attributes:
        nmi: normalized mutual information of expert and modality.
        null_mean, null_95: mean and 95th percentile of it with the modalities permuted among cases.
        p_value: (1 + permutations that reach it) / (1 + permutations).
        value: nmi minus the null's mean, with its interval over cases.
    """

    nmi: float
    null_mean: float
    null_95: float
    p_value: float
    value: Estimate


@dataclass(frozen=True)
class Depth:
    """`Excess` of every block, from the first on.

    Attributes:
        blocks: of b blocks.
        mean: of their values.
        slope: what a straight line through the values gains from the first block to the last; nan of one block.
    """

    blocks: tuple[Excess, ...]
    mean: Estimate
    slope: Estimate


def over_depth(
    masses: Sequence[np.ndarray],
    label_g: np.ndarray,
    draws: int = DRAWS,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Depth:
    """Measure a model's routers, from the mass [g, r] of each block; cases are drawn and permuted alike for all.

    Mutual information of few cases is too large, and that of drawn cases larger still: intervals are those of the draws
    around their own mean.
    """
    labels_pg = permuted_labels(label_g, permutations, seed)
    found = [information(mass, label_g, labels_pg) for mass in masses]
    value_b = np.array([one.nmi - one.null_mean for one in found])
    drawn_db = _centered(masses, label_g, draws, seed) + value_b
    groups = len(label_g)
    blocks = tuple(
        Excess(one.nmi, one.null_mean, one.null_95, one.p_value, estimate(value, drawn, groups))
        for one, value, drawn in zip(found, value_b.tolist(), drawn_db.T, strict=True)
    )
    line = _line(len(masses))
    return Depth(
        blocks,
        mean=estimate(float(value_b.mean()), drawn_db.mean(axis=1), groups),
        slope=estimate(float(value_b @ line), drawn_db @ line, groups),
    )


def _centered(masses: Sequence[np.ndarray], label_g: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Information in draws of cases minus its mean over the draws, float64 [d, b]; nan of one case alone."""
    if len(label_g) < 2:
        return np.full((1, len(masses)), np.nan)
    drawn = [
        np.stack([drawn_information(weight_dg, mass, label_g) for mass in masses], axis=1)
        for weight_dg in resamples(label_g, draws, seed)
    ]
    drawn_db = np.concatenate(drawn)
    return drawn_db - drawn_db.mean(axis=0)


def _line(blocks: int) -> np.ndarray:
    """Weights whose sum with values is what their least-squares line gains from first to last; nan of one value."""
    if blocks < 2:
        return np.full(blocks, np.nan)
    place = np.linspace(-0.5, 0.5, blocks)
    return np.asarray(place / (place @ place))


@dataclass(frozen=True)
class Control:
    """What routers that nobody trained reach in one block.

    Attributes:
        mean, highest: of their information minus the mean of their null; over `ROUTERS` of them.
        minus: the trained router's value minus their mean, with its interval over cases, drawn alike.
    """

    mean: float
    highest: float
    minus: Estimate


def control(
    mass_gr: np.ndarray, others: Sequence[np.ndarray], label_g: np.ndarray, draws: int = DRAWS, seed: int = 0
) -> Control:
    """Compare a router with others on the same cases, all by their mass [g, r]."""
    labels_pg = permuted_labels(label_g, _PERMUTATIONS_OF_CONTROLS, seed)
    values = [one.nmi - one.null_mean for one in (information(mass, label_g, labels_pg) for mass in (mass_gr, *others))]
    drawn_db = _centered([mass_gr, *others], label_g, draws, seed) + np.array(values)
    difference = values[0] - float(np.mean(values[1:]))
    minus = estimate(difference, drawn_db[:, 0] - drawn_db[:, 1:].mean(axis=1), len(label_g))
    return Control(float(np.mean(values[1:])), float(np.max(values[1:])), minus)


def random_routers(
    features_nd: np.ndarray,
    spread: float,
    experts: int,
    top_k: int,
    tau: float,
    routers: int = ROUTERS,
    seed: int = 0,
) -> Iterator[np.ndarray]:
    """Gates [n, r] of routers with normal weights on standardized features.

    Args:
        features_nd: what a router sees.
        spread: standard deviation over experts that its logits are given, so that its gates are as sharp as those of
            the router it is compared with.
        experts, top_k, tau: of that router.
        routers: how many are drawn.
        seed: of the draws.
    """
    features = np.asarray(features_nd, dtype=np.float64)
    deviation = features.std(axis=0)
    features = (features - features.mean(axis=0)) / np.where(deviation > 0, deviation, 1.0)
    random = np.random.default_rng(seed)
    for _ in range(routers):
        logits = features @ random.normal(size=(features.shape[1], experts))
        wide = float(logits.std(axis=1).mean())
        yield top_k_gates(logits * (spread / wide if wide > 0 else 0.0), top_k, tau)


def top_k_gates(logits_nr: np.ndarray, top_k: int, tau: float) -> np.ndarray:
    """Gates [n, r] of logits as `dexcore.ops.route` makes them; ties go to the lower index."""
    raised = np.exp((logits_nr - logits_nr.max(axis=1, keepdims=True)) / tau)
    chosen = np.argsort(-raised, axis=1, kind="stable")[:, :top_k]
    gates = np.zeros_like(raised)
    np.put_along_axis(gates, chosen, np.take_along_axis(raised, chosen, axis=1), axis=1)
    return gates / gates.sum(axis=1, keepdims=True)


@dataclass(frozen=True)
class Stability:
    """Whether the same experts arise from other seeds, by what they are for; names of experts mean nothing.

    Attributes:
        value: the mean likeness of matched experts over all pairs of seeds, with its interval over cases. Experts of
            two seeds are matched one to one so that likeness is largest (Hungarian method); the likeness of two is 1
            minus the total variation distance of their P(modality | expert), every modality weighing the same.
        null_mean, null_95: mean and 95th percentile of it with the cases' modalities permuted, in each seed otherwise.
        p_value: (1 + permutations that reach it) / (1 + permutations).
    """

    value: Estimate
    null_mean: float
    null_95: float
    p_value: float


def stability(
    masses: Sequence[np.ndarray], label_g: np.ndarray, draws: int = 200, permutations: int = 200, seed: int = 0
) -> Stability:
    """Compare the routers of one block in trainings from several seeds.

    Args:
        masses: of each seed, float64 [g, r], on the same cases.
        label_g: the modality of each case.

    Raises:
        ValueError: fewer than two seeds, or masses of different shapes.
        MissingExtraError: SciPy is not installed.
    """
    if len(masses) < 2 or len({mass.shape for mass in masses}) > 1:
        shapes = ", ".join(str(mass.shape) for mass in masses)
        raise ValueError(
            f"masses: expected those of two seeds or more, all of one shape [cases, experts], got {shapes}"
        )
    whole = _matched([_purposes(mass, label_g) for mass in masses])
    drawn = [
        _matched([_purposes(mass * weight[:, None], label_g) for mass in masses])
        for weights in resamples(label_g, draws, seed)
        for weight in weights
    ]
    random = np.random.default_rng(seed)
    null = np.array(
        [_matched([_purposes(mass, random.permutation(label_g)) for mass in masses]) for _ in range(permutations)]
    )
    return Stability(
        value=estimate(whole, np.array(drawn), len(label_g)),
        null_mean=float(null.mean()),
        null_95=float(np.quantile(null, 0.95)),
        p_value=float(1 + (null >= whole - 1e-12).sum()) / (1 + permutations) if math.isfinite(whole) else math.nan,
    )


def _purposes(mass_gr: np.ndarray, label_g: np.ndarray) -> np.ndarray:
    """P(modality | expert), float64 [r, m], every modality weighing the same; even where nobody uses an expert."""
    shares_mr = gate_shares(mass_gr, label_g, int(label_g.max()) + 1)
    load_r = shares_mr.sum(axis=0)
    even = np.full_like(shares_mr, 1 / len(shares_mr))
    return np.divide(shares_mr, load_r, out=even, where=load_r > 0).T


def _matched(purposes: Sequence[np.ndarray]) -> float:
    """The mean likeness of matched experts over all pairs."""
    assign = require("scipy.optimize", "eval").linear_sum_assignment
    found = []
    for place, one in enumerate(purposes):
        for other in purposes[:place]:
            likeness = 1 - np.abs(one[:, None] - other[None]).sum(axis=2) / 2
            rows, columns = assign(-likeness)
            found.append(likeness[rows, columns].mean())
    return float(np.mean(found))
