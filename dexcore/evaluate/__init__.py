"""What a model learned: how it reconstructs, what its features and experts are like, its worth on tasks with labels.

`Task`, `Predictions`, `Scores`, `score`, `compare` and `over_seeds` are imported from here when first asked for: a run
that reconstructs needs no tasks.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dexcore.evaluate.scores import Predictions, Scores, compare, over_seeds, score
    from dexcore.evaluate.tasks import Task

__all__ = ["Predictions", "Scores", "Task", "compare", "over_seeds", "score"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{'tasks' if name == 'Task' else 'scores'}"), name)
