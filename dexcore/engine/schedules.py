"""Formulas of values that change from step to step."""

import math


def half_cosine(start: float, end: float, progress: float) -> float:
    """From ``start`` at progress 0 to ``end`` at progress 1, flat at both ends."""
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * progress))


def learning_rate(step: int, total_steps: int, warmup_steps: int, peak: float, floor: float = 0.0) -> float:
    """Linear warm-up to ``peak`` at step ``warmup_steps``, then a half cosine to ``floor`` at
    ``total_steps``.

    The first step already moves: step s of the warm-up has ``peak * (s + 1) / (warmup_steps + 1)``.
    """
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    return half_cosine(peak, floor, (step - warmup_steps) / (total_steps - warmup_steps))
