"""Saved predictions become numbers with intervals: no model, no torch."""

from dexcore.evaluate.scores.across import Table, compare_tasks, load_scores, table
from dexcore.evaluate.scores.compare import Comparison, compare
from dexcore.evaluate.scores.predictions import Predictions, PredictionsError, write_mask
from dexcore.evaluate.scores.score import Scores, score
from dexcore.evaluate.scores.seeds import SeedSpread, over_seeds

__all__ = [
    "Comparison",
    "Predictions",
    "PredictionsError",
    "Scores",
    "SeedSpread",
    "Table",
    "compare",
    "compare_tasks",
    "load_scores",
    "over_seeds",
    "score",
    "table",
    "write_mask",
]
