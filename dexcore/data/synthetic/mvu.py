"""SyntheticMVU: images of all ten modalities, made by simple imaging physics.

A class label that is shared across modalities (the kind and number of lesions) lets one tell what a model
learned of modality from what it learned of meaning.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dexcore.checks import check_whole
from dexcore.data.modality import Modality
from dexcore.data.normalize import normalize
from dexcore.data.record import ImageRecord, Split
from dexcore.data.synthetic.phantoms.ct import draw_ct
from dexcore.data.synthetic.phantoms.endoscopy import draw_endoscopy
from dexcore.data.synthetic.phantoms.fundus import draw_fundus
from dexcore.data.synthetic.phantoms.lesions import LABELS, Lesion, draw_lesions
from dexcore.data.synthetic.phantoms.mr import draw_mr
from dexcore.data.synthetic.phantoms.oct import draw_oct
from dexcore.data.synthetic.phantoms.pathology import draw_pathology
from dexcore.data.synthetic.phantoms.pet import draw_pet
from dexcore.data.synthetic.phantoms.photo import draw_photo
from dexcore.data.synthetic.phantoms.ultrasound import draw_ultrasound
from dexcore.data.synthetic.phantoms.xray import draw_xray

_MIN_SIZE, _MAX_SIZE = 32, 1 << 14
_SOURCE = "SyntheticMVU"
_NAME = re.compile(rf"{_SOURCE}/seed=(\d+)/[^/]+/(\d+)")  # what `record` calls an image

Draw = Callable[[np.random.Generator, list[Lesion], int], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class _Scene:
    """How a modality is made: its drawing gives raw pixels and mask, its normalization brings them to [0,
    1]."""

    draw: Draw
    normalization: str
    anatomy: str


_SCENES = {
    Modality.CT: _Scene(draw_ct, "hu_window", "trunk"),
    Modality.PET: _Scene(draw_pet, "percentile_zscore_minmax", "whole body"),
    Modality.MR: _Scene(draw_mr, "percentile_minmax", "brain"),
    Modality.XRAY: _Scene(draw_xray, "div255", "chest"),
    Modality.ULTRASOUND: _Scene(draw_ultrasound, "div255", "liver"),
    Modality.FUNDUS: _Scene(draw_fundus, "div255", "eye"),
    Modality.OCT: _Scene(draw_oct, "div255", "eye"),
    Modality.PATHOLOGY: _Scene(draw_pathology, "div255", "glands"),
    Modality.ENDOSCOPY: _Scene(draw_endoscopy, "div255", "stomach and intestines"),
    Modality.PHOTO: _Scene(draw_photo, "div255", "skin"),
}


@dataclass(frozen=True)
class SyntheticSample:
    """One generated image.

    Attributes:
        image: float32 in [0, 1], normalized as the modality is in MVU; [size, size, 3] (RGB) for fundus,
            pathology, endoscopy and photo, [size, size] for the others.
        modality: what it imitates.
        label: an index of `SyntheticMVU.labels`.
        mask: bool [size, size], where the lesions are.
    """

    image: np.ndarray
    modality: Modality
    label: int
    mask: np.ndarray


class SyntheticMVU:
    """An endless data set of generated images; image ``index`` depends on (seed, index, size) alone.

    Modalities take turns: image ``index`` is of ``modalities[index % len(modalities)]``.

    Args:
        modalities: which, in which order; all ten without it.
        size: side of the images, pixels.
        seed: 0 to 2**64 - 1.

    Raises:
        TypeError: size or seed is no whole number.
        ValueError: a modality that cannot be drawn, none at all, or a size or seed out of range.
    """

    labels: tuple[str, ...] = LABELS

    def __init__(self, modalities: Sequence[Modality] | None = None, size: int = 256, seed: int = 0) -> None:
        self.modalities = tuple(_SCENES) if modalities is None else tuple(modalities)
        unknown = [str(modality) for modality in self.modalities if modality not in _SCENES]
        if unknown or not self.modalities:
            expected = ", ".join(_SCENES)
            raise ValueError(f"modalities is {list(map(str, self.modalities))}, expected at least one of {expected}")
        check_whole("size", size, _MIN_SIZE, _MAX_SIZE)
        check_whole("seed", seed, 0, 2**64 - 1)
        self.size = size
        self.seed = seed

    def sample(self, index: int) -> SyntheticSample:
        """Image number ``index``.

        Raises:
            TypeError: ``index`` is no whole number.
            ValueError: ``index`` is outside 0 to 2**64 - 1.
        """
        check_whole("index", index, 0, 2**64 - 1)
        modality = Modality(self.modalities[index % len(self.modalities)])
        scene = _SCENES[modality]
        rng, label = _begin(self.seed, index)
        raw, mask = scene.draw(rng, draw_lesions(rng, label), self.size)
        return SyntheticSample(normalize(raw, scene.normalization), modality, label, mask)

    def record(self, index: int, split: Split = "train") -> ImageRecord:
        """Image number ``index`` for a store, marked as synthetic; each is a group of its own."""
        sample = self.sample(index)
        scene = _SCENES[sample.modality]
        name = f"{_SOURCE}/seed={self.seed}/{sample.modality}/{index}"
        return ImageRecord(
            image=sample.image,
            modality=sample.modality,
            source=_SOURCE,
            anatomy=scene.anatomy,
            normalization=scene.normalization,
            group=name,
            path=name,
            synthetic=True,
            split=split,
        )


def stored_label(source: str, group: str) -> int | None:
    """The label of an image that `SyntheticMVU.record` gave to a store, from its ``source`` and ``group`` there.

    A store has no column for labels, which real sources do not have. None for an image of any other origin.
    """
    match = _NAME.fullmatch(group)
    if source != _SOURCE or match is None:
        return None
    seed, index = map(int, match.groups())
    return _begin(seed, index)[1] if max(seed, index) < 1 << 64 else None


def _begin(seed: int, index: int) -> tuple[np.random.Generator, int]:
    """The draws of an image, and its label, which is the first of them."""
    rng = np.random.Generator(np.random.Philox(key=np.array([seed, index], np.uint64)))
    return rng, int(rng.integers(len(LABELS)))
