"""What a model learned: how it reconstructs, what its features and experts are like, its worth on tasks with labels.

What `__all__` names is imported from here when first asked for: a run that reconstructs needs no tasks.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dexcore.evaluate.embedding import (
        Features,
        FeatureTable,
        Preprocessing,
        features,
        features_by_mode,
        open_model,
    )
    from dexcore.evaluate.finetuning import FinetuneConfig, RunResult, finetune
    from dexcore.evaluate.probes import few_shot, knn_probe, linear_probe
    from dexcore.evaluate.scores import Predictions, Scores, compare, over_seeds, score
    from dexcore.evaluate.tasks import Task

__all__ = [
    "FeatureTable",
    "Features",
    "FinetuneConfig",
    "Predictions",
    "Preprocessing",
    "RunResult",
    "Scores",
    "Task",
    "compare",
    "features",
    "features_by_mode",
    "few_shot",
    "finetune",
    "knn_probe",
    "linear_probe",
    "open_model",
    "over_seeds",
    "score",
]

_HOMES = {
    "embedding": ("FeatureTable", "Features", "Preprocessing", "features", "features_by_mode", "open_model"),
    "finetuning": ("FinetuneConfig", "RunResult", "finetune"),
    "probes": ("few_shot", "knn_probe", "linear_probe"),
    "scores": ("Predictions", "Scores", "compare", "over_seeds", "score"),
    "tasks": ("Task",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
