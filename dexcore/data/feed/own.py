"""Images of the user's own, from any torch Dataset, as the trainer takes them."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np

from dexcore.data.record import Split
from dexcore.view import as_pixels

_NAMELESS = "images"  # the one modality of a data set that names none


class OwnImages:
    """A torch Dataset of images, with what a run asks of a store.

    An item is an image: an array ([H, W] or [H, W, C]), a tensor ([H, W] or [C, H, W]) or a PIL image, of 8 or 16
    unsigned bits or floats in [0, 1]; or a tuple that begins with one (labels are not looked at), or a dict with one
    under ``image``. The data set may say more, in attributes with an entry an item:

    - ``modality``: names, for balanced sampling and for the report; without it all are of one, "images", and the report
      leaves out what compares modalities;
    - ``split``: "train" or "heldout"; without it nothing is held out;
    - ``group``: patient, volume or file; without it every item is a group of its own.

    Args:
        dataset: map-style. A run is resumed with the same one: its class, length and these attributes are compared,
            and its ``fingerprint`` where it has one, not its pixels.
        channels: that images may have beside 1 and 3.

    Raises:
        TypeError: it is no map-style data set.
        ValueError: it is empty, or an attribute is not as above.
    """

    normalization_name = "as given"
    slices = 1  # an item's channels are its own

    def __init__(self, dataset: Any, channels: int = 3) -> None:
        if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
            raise TypeError(
                f"dataset must be a map-style torch Dataset, with __len__ and __getitem__, got {type(dataset).__name__}"
            )
        if not len(dataset):
            raise ValueError("dataset must hold at least one image, got none")
        self.dataset, self.channels = dataset, channels
        self.name = type(dataset).__name__
        modality = self._attribute("modality", _NAMELESS)
        self.modality_names: tuple[str, ...] = tuple(sorted(set(modality)))
        self.modality = np.array([self.modality_names.index(name) for name in modality])
        self.split = self._attribute("split", "train")
        unknown = set(self.split) - set(get_args(Split))
        if unknown:
            raise ValueError(f"dataset.split holds {min(unknown)!r}, expected {' or '.join(get_args(Split))}")
        self.group = self._attribute("group", None)
        self.source = self._filled(self.name)
        self.normalization = self._filled(self.normalization_name)
        self.synthetic = np.zeros(len(self), bool)
        self.fingerprint = self._fingerprint()

    def __len__(self) -> int:
        return len(self.dataset)

    def item(self, index: int) -> Any:
        """Give the image of an item as the data set gives it."""
        item = self.dataset[index]
        if isinstance(item, Mapping):
            if "image" not in item:
                raise TypeError(f"item {index} of {self.name} is a dict without an entry 'image'")
            return item["image"]
        return item[0] if isinstance(item, tuple | list) and item else item

    def read(self, index: int) -> np.ndarray:
        """Give one image as `dexcore.view.warp` takes it.

        Raises:
            TypeError, ValueError: it is none; the message names the item.
        """
        try:
            return as_pixels(self.item(index), self.channels)
        except (TypeError, ValueError) as error:
            raise type(error)(f"item {index} of {self.name}: {error}") from error

    def indices(self, split: Split) -> np.ndarray:
        """Give the images of a split, int64, ascending."""
        return np.flatnonzero(self.split == split)

    def _attribute(self, name: str, default: str | None) -> np.ndarray:
        """The texts of an attribute, objects [n]; ``default``, or the item's number, where there is none."""
        values: Sequence[Any] | None = getattr(self.dataset, name, None)
        if values is None:
            return np.array([str(i) for i in range(len(self))], object) if default is None else self._filled(default)
        found = [str(value) for value in values]
        if len(found) != len(self):
            raise ValueError(f"dataset.{name} has {len(found)} entries, expected {len(self)}, one an item")
        return np.array(found, object)

    def _filled(self, text: str) -> np.ndarray:
        return np.full(len(self), text, object)

    def _fingerprint(self) -> str:
        told = [self.name, str(getattr(self.dataset, "fingerprint", "")), self.modality_names]
        digest = hashlib.sha256(json.dumps(told).encode())
        digest.update(self.modality.tobytes())
        digest.update(json.dumps([self.split.tolist(), self.group.tolist()]).encode())
        return digest.hexdigest()
