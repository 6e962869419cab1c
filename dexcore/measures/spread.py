"""Which of many are looked at."""

import numpy as np


def evenly(values: np.ndarray, most: int) -> np.ndarray:
    """Up to ``most`` of the values, evenly spread, the first and the last among them; in their order."""
    return values[np.unique(np.linspace(0, len(values) - 1, most).round().astype(int))] if len(values) else values
