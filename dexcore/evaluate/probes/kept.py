"""What probes leave in folders, found again: numbers by setting, and who is a baseline."""

import os
from pathlib import Path

from dexcore.evaluate.probes import fewshot, retrieval
from dexcore.evaluate.probes.settings import BySetting
from dexcore.evaluate.scores.baselines import HISTOGRAM, MAJORITY, RANDOM, is_baseline

__all__ = ["HISTOGRAM", "MAJORITY", "RANDOM", "is_baseline", "load_settings"]


def load_settings(path: str | os.PathLike[str]) -> list[BySetting]:
    """All few-shot and retrieval numbers in a folder and below it, by their paths."""
    folder = Path(path)
    found: list[BySetting] = [fewshot.FewShot.load(file) for file in sorted(folder.rglob(f"{fewshot.FILE}.npz"))]
    return found + [retrieval.Retrieval.load(file) for file in sorted(folder.rglob(f"{retrieval.FILE}.npz"))]
