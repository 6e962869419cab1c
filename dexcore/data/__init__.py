"""Medical Vision Universe: its sources, and images from a file to a training batch.

A file's way: `readers` -> `assemble` (by what `sources` says of it) -> `store` -> `feed`; `synthetic` makes images of
its own.
"""

from dexcore.data.build import build_store
from dexcore.data.feed.dataset import MVUDataset, open_mvu
from dexcore.data.modality import SOURCES, Modality, Source
from dexcore.data.synthetic import SyntheticMVU

__all__ = ["SOURCES", "MVUDataset", "Modality", "Source", "SyntheticMVU", "build_store", "open_mvu"]
