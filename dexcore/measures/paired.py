"""Statistics of paired differences over several tasks."""

from collections.abc import Sequence

import numpy as np

from dexcore.extras import require


def wilcoxon(difference_n: np.ndarray) -> float:
    """The p-value of the signed-rank test, two-sided; nan where no pair differs.

    Raises:
        MissingExtraError: SciPy is not installed.
    """
    differs = difference_n[np.isfinite(difference_n) & (difference_n != 0)]
    if not len(differs):
        return float("nan")
    return float(require("scipy.stats", "eval").wilcoxon(differs).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted by Holm's step-down method; nan takes no part and stays."""
    adjusted = np.full(len(p_values), np.nan)
    known = [index for index in np.argsort(p_values, kind="stable") if np.isfinite(p_values[index])]
    reached = 0.0
    for rank, index in enumerate(known):
        reached = max(reached, min(1.0, (len(known) - rank) * p_values[index]))
        adjusted[index] = reached
    return adjusted.tolist()
