"""What a model learned: how it reconstructs, what its features and experts are like, its worth on tasks with labels.

What `__all__` names is imported from here when first asked for: a run that reconstructs needs no tasks.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dexcore.evaluate.probes import few_shot, knn_probe, linear_probe
    from dexcore.evaluate.scores import Predictions, Scores, compare, over_seeds, score
    from dexcore.evaluate.tasks import Task

__all__ = [
    "Predictions",
    "Scores",
    "Task",
    "compare",
    "few_shot",
    "knn_probe",
    "linear_probe",
    "over_seeds",
    "score",
]

_HOMES = {"Task": "tasks", "few_shot": "probes", "knn_probe": "probes", "linear_probe": "probes"}  # others: scores


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'scores')}"), name)
