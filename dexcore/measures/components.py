"""Principal components.

Axes: n rows (images or tokens), d width, c components.
"""

import numpy as np


def principal_components(
    features_nd: np.ndarray, components: int, of: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Project onto the directions of largest variance.

    Rows that are not finite take no part and become nan. A component's sign, which is free, makes its largest
    weight positive, so that two builds agree.

    Args:
        of: the directions are those of the first ``of`` rows; None: of all.

    Returns:
        float64 [n, components], and each component's share of the variance, float64 [components]; zeros where
        there is no variance or no further component.
    """
    features = np.asarray(features_nd, dtype=np.float64)
    finite = np.asarray(np.isfinite(features).all(axis=1))
    projected = np.full((len(features), components), np.nan)
    shares = np.zeros(components)
    if not finite[:of].any():
        return projected, shares
    own = int(finite[:of].sum())
    centered = features[finite] - features[finite][:own].mean(axis=0)
    values, vectors = np.linalg.eigh(centered[:own].T @ centered[:own])
    values, vectors = values[::-1][:components].clip(min=0), vectors[:, ::-1][:, :components]
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(vectors.shape[1])])
    found = vectors.shape[1]
    projected[finite] = 0.0
    projected[finite, :found] = centered @ vectors
    total = np.square(centered[:own]).sum()
    if total > 0:
        shares[:found] = values / total
    return projected, shares
