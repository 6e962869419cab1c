"""Probes: what frozen features are worth on a task, by what little is trained on them."""

from dexcore.evaluate.probes.knn import knn_probe
from dexcore.evaluate.probes.linear import linear_probe
from dexcore.evaluate.probes.splits import Probed

__all__ = ["Probed", "knn_probe", "linear_probe"]
