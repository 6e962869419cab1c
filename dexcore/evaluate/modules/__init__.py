"""Whether a model is made of modules: what experts are for, and what a modality loses without them.

Each measure stands beside its control; each number has an interval over cases.
"""

from dexcore.evaluate.modules.forwards import Collected, collect, masked_losses
from dexcore.evaluate.modules.knockout import knock_out, shares_of
from dexcore.evaluate.modules.sample import Sample, Samples, setting_of, take_samples

__all__ = [
    "Collected",
    "Sample",
    "Samples",
    "collect",
    "knock_out",
    "masked_losses",
    "setting_of",
    "shares_of",
    "take_samples",
]
