"""Retrieval: whether the images of a class are nearest to each other."""

from dataclasses import dataclass

import numpy as np

from dexcore.measures.neighbors import unit
from dexcore.measures.ranking import average_precisions
from dexcore.measures.ratio import ratio

_PAIRS = 1 << 23  # of likenesses held at once


@dataclass(frozen=True, eq=False)
class Retrieved:
    """How well a gallery is ranked for each query.

    Attributes:
        mean: the mean over classes of the mean average precision of their queries (mAP); nan without any.
        chance_n: of each query: the share of what is right in its gallery, which a random order comes near to.
        precision_n: of each query, its average precision; nan where its gallery has nothing of its class.
    """

    mean: float
    chance_n: np.ndarray
    precision_n: np.ndarray


def class_retrieval(
    queries_nd: np.ndarray,
    query_label: np.ndarray,
    gallery_nd: np.ndarray,
    gallery_label: np.ndarray,
    apart_q: np.ndarray | None = None,
    apart_n: np.ndarray | None = None,
    center_d: np.ndarray | None = None,
) -> Retrieved:
    """Rank a gallery by cosine for each query; right is what is of its class. Exact; ties go to the lower index.

    Args:
        queries_nd, gallery_nd: features, finite.
        query_label, gallery_label: int64.
        apart_q, apart_n: cases; what is of a query's own is left out of its gallery.
        center_d: what is subtracted from both, such as the mean of the gallery.

    Raises:
        ValueError: features are not finite.
    """
    center = np.zeros(gallery_nd.shape[1]) if center_d is None else center_d
    queries, gallery = unit(queries_nd, center, "queries")[0], unit(gallery_nd, center, "gallery")[0]
    precision, chance = np.full(len(queries), np.nan), np.full(len(queries), np.nan)
    step = max(1, _PAIRS // max(len(gallery), 1))
    for start in range(0, len(queries), step):
        part = slice(start, start + step)
        likeness = queries[part] @ gallery.T
        right = query_label[part, None] == gallery_label
        asked = np.ones(right.shape, bool)
        if apart_q is not None and apart_n is not None:
            asked = apart_q[part, None] != apart_n
        likeness[~asked] = -np.inf
        order = np.argsort(-likeness, axis=1, kind="stable")
        right = np.take_along_axis(right & asked, order, axis=1)
        count = right.sum(axis=1)
        precision[part] = average_precisions(right)
        size = asked.sum(axis=1)
        chance[part] = ratio(count, size)
    known = np.isfinite(precision)
    of_classes = [precision[known & (query_label == one)].mean() for one in np.unique(query_label[known])]
    return Retrieved(float(np.mean(of_classes)) if of_classes else float("nan"), chance, precision)
