"""The share of a variance that predictions explain."""

import math


def share_explained(squared_error: float, total: float) -> float:
    """1 - sum of squared errors / sum of squares; nan where there is no variance to explain."""
    return 1 - squared_error / total if total > 0 else math.nan
