"""The images on which modules are measured: of each modality as many, evenly spread over its cases."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from dexcore.checks import check_whole
from dexcore.data.feed.augment import CHANNEL_STATISTICS, channel_statistics
from dexcore.data.feed.pretrain_view import Images
from dexcore.data.store.manifest import ImageDecodeError, StoreError
from dexcore.data.synthetic import stored_label
from dexcore.evaluate.embedding.view import AREA, declared_preprocessing
from dexcore.evaluate.reconstruct import Batch, batches
from dexcore.evaluate.setting import Setting
from dexcore.measures.spread import evenly
from dexcore.models import MaskedAutoencoder
from dexcore.models.inputs import slices_of

IMAGES = 64  # of a modality and a split


@dataclass(frozen=True, eq=False)
class Sample:
    """Images of one split of a store.

    Attributes:
        images: the store's.
        rows: int64 [n], its rows.
        modalities: names of the m modalities.
        label_n: int64 [n], the modality of each image, an index of ``modalities``.
        case_n: int64 [n], its case: patient, volume, video or file, within source and modality.
        label_g: int64 [g], the modality of each of g cases.
    """

    images: Images
    rows: np.ndarray
    modalities: tuple[str, ...]
    label_n: np.ndarray
    case_n: np.ndarray
    label_g: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def of(self, places: np.ndarray) -> "Sample":
        """Some of the images; cases keep their numbers."""
        return replace(self, rows=self.rows[places], label_n=self.label_n[places], case_n=self.case_n[places])

    def batches(self, model: MaskedAutoencoder, setting: Setting) -> Iterator[tuple[np.ndarray, Batch]]:
        """The images as the model takes them, each with the same mask whenever it comes; and their places."""
        done = 0
        for batch in batches(self.images, self.rows, model, setting):
            places = done + np.arange(len(batch.sample_id))
            done += len(places)
            yield places, batch

    def sums(self, values_n: np.ndarray) -> np.ndarray:
        """The sum over each case's images, float64 [g, ...]."""
        total = np.zeros((len(self.label_g), *values_n.shape[1:]))
        np.add.at(total, self.case_n, values_n)
        return total

    def classes(self) -> np.ndarray:
        """What an image shows, int64 [n]; -1 where nobody knows. Known of SyntheticMVU alone."""
        own = zip(self.images.source[self.rows], self.images.group[self.rows], strict=True)
        found = [stored_label(source, group) for source, group in own]
        return np.array([-1 if label is None else label for label in found], dtype=np.int64)


class Samples(NamedTuple):
    """Images of both splits, of the same modalities."""

    train: Sample
    heldout: Sample


def take_samples(images: Images, most: int = IMAGES) -> Samples:
    """Up to ``most`` images of a modality and split, evenly spread in the store; nothing is drawn.

    A modality without images of both splits is left out, and so are images that cannot be decoded.

    Raises:
        StoreError: fewer than two modalities are left: nothing can be compared.
    """
    check_whole("most", most, 1)
    names = images.modality_names
    found = {
        split: [_readable(images, evenly(np.flatnonzero((images.split == split) & (images.modality == m)), most))
                for m in range(len(names))]
        for split in ("train", "heldout")
    }  # fmt: skip
    both = [m for m in range(len(names)) if len(found["train"][m]) and len(found["heldout"][m])]
    if len(both) < 2:
        told = ", ".join(names[m] for m in both) or "no modality"
        raise StoreError(f"{images.name}: {told} with training and held-out images, expected two modalities at least")
    return Samples(*(_sample(images, [found[split][m] for m in both], both) for split in ("train", "heldout")))


def _readable(images: Images, rows: np.ndarray) -> np.ndarray:
    found = []
    for row in rows.tolist():
        try:
            images.read(row)
        except ImageDecodeError:
            continue
        found.append(row)
    return np.array(found, dtype=np.int64)


def _sample(images: Images, rows: list[np.ndarray], modalities: list[int]) -> Sample:
    label_n = np.repeat(np.arange(len(rows)), [len(own) for own in rows])
    row_n = np.concatenate(rows)
    keys = list(zip(label_n.tolist(), images.source[row_n], images.group[row_n], strict=True))
    places: dict[tuple[int, str, str], int] = {}
    case_n = np.array([places.setdefault(key, len(places)) for key in keys], dtype=np.int64)
    label_g = np.array([label for label, _, _ in places], dtype=np.int64)
    return Sample(images, row_n, tuple(images.modality_names[m] for m in modalities), label_n, case_n, label_g)


def setting_of(model: MaskedAutoencoder, precision: str = "fp32", seed: int = 0) -> Setting:
    """How a saved model is shown images: as it says itself.

    Raises:
        FeaturesError: it does not say it.
        ValueError: it says something else than a run of dexcore's does.
    """
    view = declared_preprocessing(model.encoder)
    channels = len(view.mean)
    for name in CHANNEL_STATISTICS:
        known = zip((view.mean, view.std), channel_statistics(name, channels), strict=True)
        if view.interpolation == AREA and all(np.allclose(one, other) for one, other in known):
            return Setting(view.size[0], channels, name, seed, precision, IMAGES, slices_of(model.encoder))
    raise ValueError(
        f"the model expects {view.interpolation} with mean {view.mean} and deviation {view.std}, expected area with "
        f"those of {' or '.join(CHANNEL_STATISTICS)}, as pre-training shows its images"
    )
