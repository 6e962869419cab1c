"""Whether a model is made of modules: what experts are for, and what a modality loses without them.

Each measure stands beside its control; each number has an interval over cases.
"""

from dexcore.evaluate.modules.conflict import fold_gradients, shared_weights
from dexcore.evaluate.modules.extraction import extract
from dexcore.evaluate.modules.forwards import Collected, collect, masked_losses
from dexcore.evaluate.modules.knockout import knock_out, shares_of
from dexcore.evaluate.modules.routing import RoutingMeasures, histograms, measure_routing, routing_masses, untrained
from dexcore.evaluate.modules.sample import Sample, Samples, setting_of, take_samples
from dexcore.evaluate.modules.shared import SharedSpace, measure_shared_space

__all__ = [
    "Collected",
    "RoutingMeasures",
    "Sample",
    "Samples",
    "SharedSpace",
    "collect",
    "extract",
    "fold_gradients",
    "histograms",
    "knock_out",
    "masked_losses",
    "measure_routing",
    "measure_shared_space",
    "routing_masses",
    "setting_of",
    "shared_weights",
    "shares_of",
    "take_samples",
    "untrained",
]
