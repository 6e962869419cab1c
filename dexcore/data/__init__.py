"""Medical Vision Universe: its sources, and images from a file to a training batch.

A file's way: `readers` -> `assemble` (by what `sources` says of it) -> `store` -> `feed`; `synthetic` makes images of
its own. Of them `feed` alone needs PyTorch, and is imported when it is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dexcore.data.build import build_store
from dexcore.data.modality import SOURCES, Modality, Source
from dexcore.data.synthetic import SyntheticMVU

if TYPE_CHECKING:
    from dexcore.data.feed.dataset import MVUDataset, open_mvu

__all__ = ["SOURCES", "MVUDataset", "Modality", "Source", "SyntheticMVU", "build_store", "open_mvu"]


def __getattr__(name: str) -> Any:
    if name in ("MVUDataset", "open_mvu"):
        return getattr(import_module("dexcore.data.feed.dataset"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
