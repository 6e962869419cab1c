"""Principal components.

Axes: n rows (images or tokens), d width, c components.
"""

import numpy as np


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
