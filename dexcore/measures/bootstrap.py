"""The bootstrap: cases drawn with replacement.

Axes: g groups (case, file, volume, patient), d draws.
"""

import numpy as np

DRAWS = 2000


def draws(stratum_g: np.ndarray, seed: int = 0) -> np.ndarray:
    """How often each group is drawn, float64 [d, g]; of each stratum as many as it has."""
    random = np.random.default_rng(seed)
    weight_dg = np.zeros((DRAWS, len(stratum_g)))
    for stratum in np.unique(stratum_g):
        own = np.flatnonzero(stratum_g == stratum)
        weight_dg[:, own] = random.multinomial(len(own), np.full(len(own), 1 / len(own)), size=DRAWS)
    return weight_dg
