"""What probes leave in folders, found again: numbers by setting."""

import os
from pathlib import Path

from dexcore.evaluate.probes import fewshot, retrieval
from dexcore.evaluate.probes.settings import BySetting


def load_settings(path: str | os.PathLike[str]) -> list[BySetting]:
    """All few-shot and retrieval numbers in a folder and below it, by their paths."""
    folder = Path(path)
    found: list[BySetting] = [fewshot.FewShot.load(file) for file in sorted(folder.rglob(f"{fewshot.FILE}.npz"))]
    return found + [retrieval.Retrieval.load(file) for file in sorted(folder.rglob(f"{retrieval.FILE}.npz"))]
