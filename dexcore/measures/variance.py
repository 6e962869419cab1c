"""The share of a variance that predictions explain."""

import numpy as np
import numpy.typing as npt

from dexcore.measures.ratio import ratio


def share_explained(squared_error: npt.ArrayLike, total: npt.ArrayLike) -> np.ndarray:
    """1 - sums of squared errors / sums of squares, float64 of their shape; nan where there is none to explain."""
    return 1 - ratio(np.asarray(squared_error, np.float64), np.asarray(total, np.float64))
