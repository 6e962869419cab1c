"""Whether a class is found across modalities: retrieval where query and gallery are never of one modality.

Axes: q queries, n gallery images, m modalities, c classes, d width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dexcore.measures.bootstrap import DRAWS, Estimate, Statistic, bootstrap, mean_statistic
from dexcore.measures.neighbors import unit
from dexcore.measures.ranking import average_precisions

PERMUTATIONS = 200


class Points(NamedTuple):
    """Images in a space."""

    features_nd: np.ndarray  # finite
    label_n: np.ndarray  # int64, modality
    class_n: np.ndarray  # int64, -1 where nobody knows
    case_n: np.ndarray  # int64

    def of(self, places: np.ndarray) -> "Points":
        """Some of them."""
        return Points(*(values[places] for values in self))


@dataclass(frozen=True, eq=False)
class Across:
    """How well classes are found in the images of other modalities.

    Attributes:
        value: mean average precision: mean over queries of a modality, then over modalities; its interval is over
            cases.
        chance: the mean of it with the classes permuted among the images of each modality.
        null_95: its 95th percentile.
        p_value: (1 + permutations that reach it) / (1 + permutations).
        classes: how many there are in every modality.
        queries, gallery: images, of each class and modality as many.
        precision_q: of each query, float64.
        label_q, case_q: its modality and case.
    """

    value: Estimate
    chance: float
    null_95: float
    p_value: float
    classes: int
    queries: int
    gallery: int
    precision_q: np.ndarray
    label_q: np.ndarray
    case_q: np.ndarray


def across_modalities(
    queries: Points,
    gallery: Points,
    center_md: np.ndarray | None = None,
    draws: int = DRAWS,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Across:
    """Rank for each query the gallery's images of all other modalities by cosine; right is what is of its class.

    Classes that a modality lacks are left out, and of the others as many images are taken of each class and modality,
    the first ones. Classes are permuted by image.

    Args:
        queries, gallery: images of other cases.
        center_md: of each modality, subtracted from its images in both; None for nothing.
        draws, permutations, seed: of the interval and of chance.

    Raises:
        ValueError: fewer than two modalities or two classes are left.
    """
    queries, gallery = _balanced([queries, gallery])
    modalities = np.unique(queries.label_n)
    vectors = [_unit(one, center_md) for one in (queries, gallery)]
    orders = []
    for label in modalities:
        asked, others = np.flatnonzero(queries.label_n == label), np.flatnonzero(gallery.label_n != label)
        ranked = np.argsort(-(vectors[0][asked] @ vectors[1][others].T), axis=1, kind="stable")
        orders.append((asked, others[ranked]))

    def precisions(query_class: np.ndarray, gallery_class: np.ndarray) -> np.ndarray:
        found = np.zeros(len(query_class))
        for asked, order in orders:
            found[asked] = average_precisions(query_class[asked, None] == gallery_class[order])
        return found

    def mean(values_q: np.ndarray) -> float:
        return float(np.mean([values_q[queries.label_n == label].mean() for label in modalities]))

    precision_q = precisions(queries.class_n, gallery.class_n)
    whole = mean(precision_q)
    random = np.random.default_rng(seed)
    null = np.array(
        [mean(precisions(_permuted(queries, random), _permuted(gallery, random))) for _ in range(permutations)]
    )
    return Across(
        value=_over_cases(precision_q, queries.label_n, queries.case_n, draws, seed),
        chance=float(null.mean()),
        null_95=float(np.quantile(null, 0.95)),
        p_value=float(1 + (null >= whole - 1e-12).sum()) / (1 + permutations),
        classes=len(np.unique(queries.class_n)),
        queries=len(queries.label_n),
        gallery=len(gallery.label_n),
        precision_q=precision_q,
        label_q=queries.label_n,
        case_q=queries.case_n,
    )


def across_minus(found: Across, other: Across, draws: int = DRAWS, seed: int = 0) -> Estimate:
    """How much better a space is than another one, on the same queries.

    Raises:
        ValueError: the queries are others.
    """
    if not (np.array_equal(found.case_q, other.case_q) and np.array_equal(found.label_q, other.label_q)):
        raise ValueError("shared space: expected the queries that the other space was asked")
    return _over_cases(found.precision_q - other.precision_q, found.label_q, found.case_q, draws, seed)


def above_chance(found: Across) -> tuple[Statistic, np.ndarray]:
    """``value`` minus ``chance`` in draws of cases; and the modality of each case, within which they are drawn."""
    values_gm, label_g = _by_case(found.precision_q - found.chance, found.label_q, found.case_q)
    return mean_statistic(values_gm), label_g


def _over_cases(values_q: np.ndarray, label_q: np.ndarray, case_q: np.ndarray, draws: int, seed: int) -> Estimate:
    values_gm, label_g = _by_case(values_q, label_q, case_q)
    return bootstrap({"mean": mean_statistic(values_gm)}, label_g, draws, seed)["mean"]


def _by_case(values_q: np.ndarray, label_q: np.ndarray, case_q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Float64 [g, m], the mean of each case, nan of other modalities; int64 [g], its modality."""
    cases, place_q = np.unique(case_q, return_inverse=True)
    labels, label_q = np.unique(label_q, return_inverse=True)
    mean_g = np.bincount(place_q, values_q) / np.bincount(place_q)
    values_gm = np.full((len(cases), len(labels)), np.nan)
    values_gm[place_q, label_q] = mean_g[place_q]
    label_g = np.zeros(len(cases), np.int64)
    label_g[place_q] = label_q
    return values_gm, label_g


def _balanced(parts: Sequence[Points]) -> list[Points]:
    """As many images of each class and modality in each part."""
    modalities = sorted(set.intersection(*(set(part.label_n.tolist()) for part in parts)))
    known = sorted(set(np.concatenate([part.class_n for part in parts]).tolist()) - {-1})

    def count(part: Points, label: int, one: int) -> int:
        return int(((part.label_n == label) & (part.class_n == one)).sum())

    # A modality of which nothing is known asks nothing, and takes no class from the others.
    modalities = [m for m in modalities if all(any(count(part, m, one) for one in known) for part in parts)]
    classes = [one for one in known if all(count(part, label, one) for part in parts for label in modalities)]
    if len(modalities) < 2 or len(classes) < 2:
        raise ValueError(
            f"shared space: {len(classes)} classes in {len(modalities)} modalities have queries and gallery, expected "
            "two of each at least"
        )
    found = []
    for part in parts:
        most = min(count(part, label, one) for label in modalities for one in classes)
        places = [
            np.flatnonzero((part.label_n == label) & (part.class_n == one))[:most]
            for label in modalities
            for one in classes
        ]
        found.append(part.of(np.sort(np.concatenate(places))))
    return found


def _unit(points: Points, center_md: np.ndarray | None) -> np.ndarray:
    features = points.features_nd.astype(np.float64)
    if center_md is not None:
        features = features - center_md[points.label_n]
    return unit(features, np.zeros(features.shape[1]))[0]


def _permuted(points: Points, random: np.random.Generator) -> np.ndarray:
    """The classes, permuted among the images of each modality."""
    found = points.class_n.copy()
    for label in np.unique(points.label_n):
        own = points.label_n == label
        found[own] = random.permutation(found[own])
    return found
