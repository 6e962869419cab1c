"""The claims of a method as numbers that can refute them: what is measured of a model, and how it is judged."""

from dexcore.evaluate.claims.effects import Asked, findings, measured, remedied, smallest_effects
from dexcore.evaluate.claims.numbers import Measured, Number, mean_number

__all__ = ["Asked", "Measured", "Number", "findings", "mean_number", "measured", "remedied", "smallest_effects"]
