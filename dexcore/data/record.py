"""What travels from a reader to the store: one 2-D image and what is known about it."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from dexcore.data.modality import Modality

Split = Literal["train", "heldout"]
AXES = ("sagittal", "coronal", "axial")  # the planes across x, y and z
# The path of a slice: its volume, the axis across which that was cut, and the slice's place in it.
SLICE_PATH = rf"(?s)^(?P<volume>.*)#(?P<axis>{'|'.join(AXES)})=(?P<place>\d{{1,9}})$"


def slice_place(axis: int, index: int) -> str:
    """The end of a slice's path: ``#axial=12``."""
    return f"#{AXES[axis]}={index}"


@dataclass(frozen=True)
class ImageRecord:
    """One normalised 2-D image.

    Attributes:
        image: float32 in [0, 1], [height, width] for gray or [height, width, 3] for RGB.
        modality: one of the ten of MVU.
        source: the name of the data source, for example ``ChestX-ray8``.
        anatomy: the body part, in the words of mvu_sources.csv.
        normalization: how ``image`` came to lie in [0, 1] (method: `dexcore.data.normalize`).
        group: patient, volume, video or file: what must never be torn between splits.
        path: where the image came from, for people; with ``#frame`` or ``#axis=index`` for a slice.
        synthetic: made by `SyntheticMVU`, not by a scanner or a camera.
        split: training or held out.
        spacing: mm between the pixels of ``image``, which are square; None where it is not known.
        burned_in: whether text is burned into the pixels, where the file says so; else None.
    """

    image: np.ndarray
    modality: Modality
    source: str
    anatomy: str
    normalization: str
    group: str
    path: str
    synthetic: bool = False
    split: Split = "train"
    spacing: float | None = None
    burned_in: bool | None = None
