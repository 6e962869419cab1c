"""The likeness of feature maps: linear centered kernel alignment (CKA).

Axes: r maps, n rows (images or tokens), d width.
"""

import numpy as np


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
