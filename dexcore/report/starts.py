"""When and how a run was begun and resumed: starts.jsonl, read."""

import json
from pathlib import Path
from typing import Any

from dexcore.report.files import STARTS_FILE


def read_starts(folder: Path) -> list[dict[str, Any]]:
    """The lines that a trainer wrote, the first start first; those that are damaged are left out."""
    try:
        lines = (folder / STARTS_FILE).read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, UnicodeDecodeError):
        return []
    found = []
    for line in lines:
        try:
            start = json.loads(line)
        except ValueError:
            continue
        if isinstance(start, dict):
            found.append(start)
    return found
