"""How images are shown to a model that is measured."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Setting:
    """What a measurement must know of how the model was trained.

    Attributes:
        image_size: side of the model's images, in pixels.
        in_chans: their channels.
        statistics: mean and deviation they are normalized with, by name, as `channel_statistics` knows them.
        seed: keys the masks.
        precision: ``fp32``, ``bf16``, or ``auto``.
        images: most images of a modality, of the training and of the held-out ones each.
        slices: neighbouring slices of a volume that are an image's channels; 1: none are.
    """

    image_size: int
    in_chans: int
    statistics: str
    seed: int
    precision: str
    images: int
    slices: int = 1
