"""Records for tests of the store: noise, so that no two images are alike."""

from collections.abc import Iterable, Iterator

import numpy as np

from dexcore.data.modality import Modality
from dexcore.data.record import ImageRecord

_KINDS = [
    (Modality.CT, "Scanner", "hu_window", (40, 48)),
    (Modality.FUNDUS, "Camera", "div255", (36, 44, 3)),
    (Modality.ULTRASOUND, "Probe", "div255", (32, 64)),
]


def made_records(count: int, seed: int = 0) -> Iterator[ImageRecord]:
    """Give CT (16 bit), fundus (RGB) and ultrasound (8 bit) in turn; two a group, every fifth held out."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        modality, source, normalization, shape = _KINDS[index % 3]
        yield ImageRecord(
            image=0.2 + 0.6 * rng.random(shape, dtype=np.float32),
            modality=modality,
            source=source,
            anatomy="knee",
            normalization=normalization,
            group=f"patient-{index // 2}",
            path=f"somewhere/{index}.dcm",
            synthetic=index % 3 == 2,
            split="heldout" if index % 5 == 4 else "train",
        )


def as_stored(records: Iterable[ImageRecord]) -> list[ImageRecord]:
    """The records in the order of a store's rows."""
    return sorted(records, key=lambda record: record.source)
