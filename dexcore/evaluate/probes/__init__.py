"""Probes: what frozen features are worth on a task, by what little is trained on them."""

from dexcore.evaluate.probes.fewshot import FewShot, FewShotPredictions, compare_few_shot, few_shot, score_few_shot
from dexcore.evaluate.probes.knn import knn_probe
from dexcore.evaluate.probes.linear import linear_probe
from dexcore.evaluate.probes.retrieval import Retrieval, Retrieved, class_retrieval, retrieve
from dexcore.evaluate.probes.splits import Probed

__all__ = [
    "FewShot",
    "FewShotPredictions",
    "Probed",
    "Retrieval",
    "Retrieved",
    "class_retrieval",
    "compare_few_shot",
    "few_shot",
    "knn_probe",
    "linear_probe",
    "retrieve",
    "score_few_shot",
]
