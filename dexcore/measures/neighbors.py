"""Nearest neighbors, exactly and in little memory, and what they tell of a class.

Axes: q queries, n rows (images), d width, k neighbors.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

NEIGHBORS = 5
_NUMBERS = 1 << 23  # of likenesses held at once
_COLUMNS = 64  # rows of which only the nearest is looked at when the k nearest are bounded
_PAIRS = 4096  # that are compared in float64 at once


@dataclass(frozen=True, eq=False)
class Nearest:
    """The k rows that are most like each query, the nearest first.

    Attributes:
        index_qk: int64, rows; -1 where there are fewer than k that may be asked.
        likeness_qk: float64, their cosines; -inf where there is none.
    """

    index_qk: np.ndarray
    likeness_qk: np.ndarray


def nearest(
    queries_qd: np.ndarray,
    rows_nd: np.ndarray,
    k: int,
    apart_q: np.ndarray | None = None,
    apart_n: np.ndarray | None = None,
    center_d: np.ndarray | None = None,
) -> Nearest:
    """Find each query's k nearest rows by the cosine of what lies around ``center_d``; equal ones by their index.

    Exact: float32 products find all rows that may be among the k, given the largest error that they can have, and
    float64 decides. What is held at once does not grow with q times n.

    Args:
        queries_qd, rows_nd: features, finite; rows that are training features, say.
        apart_q, apart_n: labels (a case's index); a row is no neighbor of a query with the same one.
        center_d: what is subtracted from both, such as the mean of the rows; None for nothing.

    Raises:
        ValueError: features are not finite, or widths or labels do not fit.
    """
    if queries_qd.ndim != 2 or rows_nd.ndim != 2 or queries_qd.shape[1] != rows_nd.shape[1]:
        raise ValueError(f"features: expected [q, d] and [n, d], got {queries_qd.shape} and {rows_nd.shape}")
    if k < 1:
        raise ValueError(f"k: expected at least 1, got {k}")
    if (apart_q is None) != (apart_n is None):
        raise ValueError("apart_q and apart_n: expected both or neither")
    if apart_q is not None and apart_n is not None and (len(apart_q), len(apart_n)) != (len(queries_qd), len(rows_nd)):
        raise ValueError(f"apart: expected {len(queries_qd)} and {len(rows_nd)} labels")
    center = np.zeros(rows_nd.shape[1]) if center_d is None else np.asarray(center_d, dtype=np.float64)
    found_index = np.full((len(queries_qd), k), -1, dtype=np.int64)
    found_likeness = np.full((len(queries_qd), k), -np.inf)
    rows, row_norms = unit(rows_nd, center, "rows", np.float32)
    step = max(1, _NUMBERS // max(len(rows), 1))
    for start in range(0, len(queries_qd) if len(rows) else 0, step):
        part = slice(start, start + step)
        queries, query_norms = unit(queries_qd[part], center, "queries", np.float32)
        likeness = queries @ rows.T
        if apart_q is not None and apart_n is not None:
            likeness[apart_q[part, None] == apart_n[None, :]] = -np.inf
        query_p, row_p = _candidates(likeness, k, error=2 * rows.shape[1] * float(np.finfo(np.float32).eps))
        exact_p = _cosines(queries_qd[part], rows_nd, center, query_p, row_p)
        exact_p /= query_norms[query_p] * row_norms[row_p]
        order = np.lexsort((row_p, -exact_p, query_p))
        query_p, row_p, exact_p = query_p[order], row_p[order], exact_p[order]
        place_p = np.arange(len(query_p)) - np.searchsorted(query_p, query_p)
        kept = place_p < k
        found_index[start + query_p[kept], place_p[kept]] = row_p[kept]
        found_likeness[start + query_p[kept], place_p[kept]] = exact_p[kept]
    return Nearest(found_index, found_likeness)


def unit(
    features_nd: np.ndarray, center_d: np.ndarray, name: str = "features", dtype: type[np.floating[Any]] = np.float64
) -> tuple[np.ndarray, np.ndarray]:
    """Rows around a center at length 1, [n, d], and their lengths, float64 [n]; a row at the center stays 0.

    Raises:
        ValueError: they are not finite; the message says ``name`` and row.
    """
    center_d = np.asarray(center_d, dtype=np.float64)
    found = np.empty(features_nd.shape, dtype=dtype)
    norms = np.empty(len(features_nd))
    for start in range(0, len(found), _PAIRS):
        part = slice(start, start + _PAIRS)
        around = features_nd[part] - center_d
        norms[part] = np.maximum(np.sqrt(np.square(around).sum(axis=1)), 1e-12)
        found[part] = around / norms[part, None]
    if not np.isfinite(norms).all():
        raise ValueError(f"{name}: the features of row {int(np.argmin(np.isfinite(norms)))} are not finite")
    return found, norms


def _candidates(likeness_qn: np.ndarray, k: int, error: float) -> tuple[np.ndarray, np.ndarray]:
    """The pairs (query, row) that may be among the k nearest, when every likeness has at most half of ``error``.

    The k-th largest of the maxima of groups of rows is no larger than the k-th largest of all.
    """
    count = likeness_qn.shape[1] - likeness_qn.shape[1] % _COLUMNS
    groups = likeness_qn[:, :count].reshape(len(likeness_qn), -1, _COLUMNS).max(axis=2)
    if groups.shape[1] < k:
        groups = likeness_qn
    least = np.full(len(likeness_qn), -np.inf, dtype=np.float32)
    if groups.shape[1] >= k:
        least = np.partition(groups, groups.shape[1] - k, axis=1)[:, groups.shape[1] - k]
    least = np.maximum(least - np.float32(error), np.finfo(np.float32).min)  # what is apart is at -inf
    query_p, row_p = np.nonzero(likeness_qn >= least[:, None])
    return query_p, row_p


def _cosines(
    queries_qd: np.ndarray, rows_nd: np.ndarray, center_d: np.ndarray, query_p: np.ndarray, row_p: np.ndarray
) -> np.ndarray:
    """Products of pairs around the center in float64, each summed in the same order: equal rows give equal numbers."""
    products = np.empty(len(query_p))
    for start in range(0, len(query_p), _PAIRS):
        part = slice(start, start + _PAIRS)
        products[part] = ((queries_qd[query_p[part]] - center_d) * (rows_nd[row_p[part]] - center_d)).sum(axis=1)
    return products


@dataclass(frozen=True, eq=False)
class Neighbors:
    """How often an image's nearest neighbors are of its class.

    Attributes:
        accuracy: share of images whose class the majority of `NEIGHBORS` neighbors names, classes weighing the
            same; nan where fewer than two classes can be asked about.
        chance: 1 / classes: what random features reach.
        classes, images: how many it rests on.
        right_n: float64 [n], 1 or 0 an image; nan for an image that was not asked about.
    """

    accuracy: float
    chance: float
    classes: int
    images: int
    right_n: np.ndarray


def neighbor_accuracy(features_nd: np.ndarray, label_n: np.ndarray, apart_n: np.ndarray) -> Neighbors:
    """Classify every image by its nearest others (cosine of the centered features).

    An image's neighbors are sought among images that differ from it in ``apart_n``: slices of its own volume, say, are
    no evidence. Classes that lie within one value of ``apart_n`` cannot be found that way and are left out, as are
    labels below 0 and features that are not finite. A tie goes to the class of the nearest among the tied.
    """
    usable = (label_n >= 0) & np.isfinite(features_nd).all(axis=1)
    for label in np.unique(label_n[usable]):
        own = label_n == label
        if len(np.unique(apart_n[usable & own])) < 2:
            usable &= ~own
    features, apart = features_nd[usable].astype(np.float64), apart_n[usable]
    classes, label = np.unique(label_n[usable], return_inverse=True)
    right_n = np.full(len(features_nd), np.nan)
    if len(classes) < 2:
        return Neighbors(math.nan, math.nan, len(classes), len(features), right_n)
    found = nearest(features, features, NEIGHBORS, apart, apart, center_d=features.mean(axis=0)).index_qk
    right = _majority(np.where(found >= 0, label[found], -1), len(classes)) == label
    right_n[usable] = right
    accuracy = float(np.mean([right[label == index].mean() for index in range(len(classes))]))
    return Neighbors(accuracy, 1 / len(classes), len(classes), len(features), right_n)


def _majority(label_nk: np.ndarray, classes: int) -> np.ndarray:
    """The label that most of k neighbors have, the nearest first; -1 is none. A tie goes to the nearest."""
    votes = (label_nk[:, :, None] == np.arange(classes)).astype(np.float64)
    return (votes * equal_votes(label_nk.shape[1])[:, None]).sum(axis=1).argmax(axis=1)


def equal_votes(k: int) -> np.ndarray:
    """The weight of each of k neighbors where all count the same, float64 [k]; it decides between equals.

    Beside its vote each neighbor has a bit, larger than the bits of all behind it.
    """
    return np.asarray(1 + 1e-3 * 0.5 ** np.arange(k))


def near_votes(likeness_qk: np.ndarray, temperature: float) -> np.ndarray:
    """The weight of each neighbor by how like it is: exp(cosine / temperature), float64 [q, k], the nearest's is 1."""
    nearest_q = np.where(np.isfinite(likeness_qk[:, :1]), likeness_qk[:, :1], 0.0)
    return np.asarray(np.exp((likeness_qk - nearest_q) / temperature))


def shares(found: Nearest, target_nc: np.ndarray, weight_qk: np.ndarray) -> np.ndarray:
    """The share of its neighbors' weight that lies on each class, float64 [q, c]; zeros where there is none.

    Args:
        found: the neighbors.
        target_nc: bool, the classes of the rows.
        weight_qk: of each neighbor, float64 [q, k] or [k].
    """
    weight = np.where(found.index_qk >= 0, weight_qk, 0.0)
    total = np.zeros((len(weight), target_nc.shape[1]))
    for place in range(weight.shape[1]):  # never [q, k, c] at once
        total += weight[:, place, None] * target_nc[found.index_qk[:, place]]
    whole = weight.sum(axis=1, keepdims=True)
    share = np.divide(total, whole, out=np.zeros_like(total), where=whole > 0)
    return np.minimum(share, 1.0)  # sums in another order may end a bit above
