"""The API pages hold what the packages export."""

import importlib
import re
from pathlib import Path

import pytest

API = Path(__file__).parents[2] / "docs" / "api"


@pytest.mark.parametrize(
    "room",
    [
        "nn",
        "ops",
        "models",
        "data",
        "evaluate",
        "evaluate.embedding",
        "evaluate.modules",
        "evaluate.probes",
        "evaluate.scores",
        "evaluate.tasks",
        "train",
    ],
)
def test_every_exported_name_stands_on_its_page(room):
    package = importlib.import_module(f"dexcore.{room}")
    page = (API / f"{room.split('.')[0]}.md").read_text(encoding="utf-8")
    shown = dict(reversed(path.rsplit(".", 1)) for path in re.findall(r"^::: (\S+)$", page, re.MULTILINE))
    assert set(package.__all__) <= set(shown)
    for name, module in shown.items():
        assert hasattr(importlib.import_module(module), name), f"{module}.{name} is gone"
