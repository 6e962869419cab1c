"""How features lie to one another: principal components, nearest neighbors, and the likeness of two maps (CKA).

Axes: n rows (images or tokens), d width, c components.
"""

import math
from dataclasses import dataclass

import numpy as np

NEIGHBORS = 5


def principal_components(features_nd: np.ndarray, components: int) -> tuple[np.ndarray, np.ndarray]:
    """Project onto the directions of largest variance.

    Rows that are not finite take no part and become nan. A component's sign, which is free, makes its largest
    weight positive, so that two builds agree.

    Returns:
        float64 [n, components], and each component's share of the variance, float64 [components]; zeros where
        there is no variance or no further component.
    """
    features = np.asarray(features_nd, dtype=np.float64)
    finite = np.isfinite(features).all(axis=1)
    projected = np.full((len(features), components), np.nan)
    shares = np.zeros(components)
    if not finite.any():
        return projected, shares
    centered = features[finite] - features[finite].mean(axis=0)
    values, vectors = np.linalg.eigh(centered.T @ centered)
    values, vectors = values[::-1][:components].clip(min=0), vectors[:, ::-1][:, :components]
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(vectors.shape[1])])
    found = vectors.shape[1]
    projected[finite] = 0.0
    projected[finite, :found] = centered @ vectors
    total = np.square(centered).sum()
    if total > 0:
        shares[:found] = values / total
    return projected, shares


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
    features = features - features.mean(axis=0)
    features = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    likeness = features @ features.T
    likeness[apart[:, None] == apart[None, :]] = -np.inf
    nearest = np.argsort(-likeness, axis=1, kind="stable")[:, :NEIGHBORS]
    valid = np.isfinite(np.take_along_axis(likeness, nearest, axis=1))
    right = _majority(np.where(valid, label[nearest], -1), len(classes)) == label
    right_n[usable] = right
    accuracy = float(np.mean([right[label == index].mean() for index in range(len(classes))]))
    return Neighbors(accuracy, 1 / len(classes), len(classes), len(features), right_n)


def _majority(label_nk: np.ndarray, classes: int) -> np.ndarray:
    """The label that most of k neighbors have, the nearest first; -1 is none. A tie goes to the nearest."""
    votes = (label_nk[:, :, None] == np.arange(classes)).astype(np.float64)
    # Beside its vote each neighbor has a bit, larger than the bits of all behind it: it decides between equals.
    bits = 1 + 1e-3 * 0.5 ** np.arange(label_nk.shape[1])
    return (votes * bits[:, None]).sum(axis=1).argmax(axis=1)


def linear_cka(maps_rnd: np.ndarray) -> np.ndarray:
    """Linear centered kernel alignment between every two of r feature maps of the same n inputs.

    The numerator and both norms of Kornblith et al. (2019, arXiv 1905.00414, eq. 3) by the unbiased estimate of HSIC
    (Song et al., 2012; Nguyen et al., 2021, arXiv 2010.15327), so that unrelated maps give 0 and not a number that
    grows with d / n. 1 where one is a rotation and scaling of the other.

    Args:
        maps_rnd: [r, n, d].

    Returns:
        float64 [r, r], symmetric; nan where a map is constant or not finite, and of fewer than 4 inputs.
    """
    if np.shape(maps_rnd)[1] < 4:
        return np.full((len(maps_rnd), len(maps_rnd)), np.nan)
    maps = [one - one.mean(axis=0) for one in np.asarray(maps_rnd, dtype=np.float64)]
    hsic = np.array([[_unbiased_hsic(a, b) for b in maps[: i + 1]] + [0.0] * (len(maps) - i - 1)
                     for i, a in enumerate(maps)])  # fmt: skip
    hsic += np.tril(hsic, -1).T
    own = np.sqrt(np.where(np.diag(hsic) > 0, np.diag(hsic), np.nan))
    return hsic / own[:, None] / own[None, :]


def _unbiased_hsic(a_nd: np.ndarray, b_nd: np.ndarray) -> float:
    """n (n - 3) times the unbiased HSIC of two centered maps under linear kernels, without an n x n matrix.

    With K = a a^T and L = b b^T and the diagonals left out (tilde), it is tr(K~ L~) + (1 K~ 1)(1 L~ 1) / ((n-1)(n-2))
    - 2 / (n - 2) 1 K~ L~ 1. Centered maps have K 1 = 0, hence K~ 1 = -diag(K).
    """
    n = len(a_nd)
    squares_a, squares_b = np.square(a_nd).sum(axis=1), np.square(b_nd).sum(axis=1)
    diagonal = float(squares_a @ squares_b)
    whole = float(np.square(a_nd.T @ b_nd).sum())
    return whole - diagonal + float(squares_a.sum() * squares_b.sum()) / ((n - 1) * (n - 2)) - 2 / (n - 2) * diagonal
