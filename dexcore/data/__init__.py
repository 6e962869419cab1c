"""Medical Vision Universe: its sources, and images from a file to a training batch.

A file's way: `readers` -> `normalize` -> `slices` -> `filter` -> `store` -> `order` -> `augment`.
"""

from dexcore.data.dataset import MVUDataset, open_mvu
from dexcore.data.modality import SOURCES, Modality, Source
from dexcore.data.synthetic import SyntheticMVU

__all__ = ["SOURCES", "MVUDataset", "Modality", "Source", "SyntheticMVU", "open_mvu"]
