"""What probes leave in folders, found again: numbers by setting, and who is a baseline."""

import os
import re
from pathlib import Path

from dexcore.evaluate.probes import fewshot, retrieval
from dexcore.evaluate.probes.settings import BySetting

MAJORITY = "majority"
HISTOGRAM = "histogram"
RANDOM = "-random"  # the end of the name of an architecture with new weights
_BASELINE = re.compile(rf"(?:{MAJORITY}|(?:{HISTOGRAM}|.*{RANDOM})(?: (?:knn|linear|dense)(?:, drawn)?)?)")


def is_baseline(model: str) -> bool:
    """Whether a name, as scores have it, is that of what a number must beat: it has learned nothing."""
    return _BASELINE.fullmatch(model) is not None


def load_settings(path: str | os.PathLike[str]) -> list[BySetting]:
    """All few-shot and retrieval numbers in a folder and below it, by their paths."""
    folder = Path(path)
    found: list[BySetting] = [fewshot.FewShot.load(file) for file in sorted(folder.rglob(f"{fewshot.FILE}.npz"))]
    return found + [retrieval.Retrieval.load(file) for file in sorted(folder.rglob(f"{retrieval.FILE}.npz"))]
