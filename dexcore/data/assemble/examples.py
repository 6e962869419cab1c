"""Small pictures for the page of a store: of each source a few images that were kept, and of each reason some that were
dropped. They are drawn by the hashes of their paths: neither the order of the work nor its cut into tasks decides.
"""

import base64
import hashlib
from bisect import insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from dexcore.data.assemble.reasons import category
from dexcore.data.assemble.slices import acquired_axis, slices
from dexcore.data.readers.scan import Scan
from dexcore.extras import require

KEPT = 12  # a source
DROPPED = 3  # a source and reason
_SIDE = 128  # pixels, of a picture's longer side
_QUALITY = 85  # of JPEG; as PNG a page of many sources would be large


@dataclass(frozen=True)
class Example:
    """One image that is shown.

    Attributes:
        path: of the image, as it stands in the store.
        modality: of the image.
        reason: why it was dropped, or what else there is to say of it; "" of those that were simply kept.
        kept: whether the image is in the store.
        pictures: JPEG as base64: of the image and, if it is a copy, of what it is a copy of.
    """

    path: str
    modality: str
    reason: str
    kept: bool
    pictures: tuple[str, ...]

    def is_sound(self) -> bool:
        """Whether every attribute, read from a file, is of its type."""
        pictures = self.pictures
        return (
            all(isinstance(text, str) for text in (self.path, self.modality, self.reason))
            and isinstance(self.kept, bool)
            and isinstance(pictures, list | tuple)
            and all(isinstance(picture, str) for picture in pictures)
        )

    @property
    def category(self) -> str:
        """The reason, as it is counted."""
        return category(self.reason)


class Drawn:
    """Of each reason the examples with the smallest hashes of their paths, so many that there are `DROPPED` of each."""

    def __init__(self) -> None:
        self._found: dict[tuple[bool, str], list[tuple[bytes, Example]]] = {}

    def wants(self, path: str, reason: str, kept: bool = False) -> bool:
        """Whether an example would be taken: others need not be made."""
        found = self._found.get((kept, category(reason)), [])
        return len(found) < DROPPED or _rank(path) < found[-1][0]

    def add(self, example: Example) -> None:
        """Take an example, and leave out the one that it replaces."""
        if self.wants(example.path, example.reason, example.kept):
            found = self._found.setdefault((example.kept, example.category), [])
            insort(found, (_rank(example.path), example), key=lambda entry: entry[0])
            del found[DROPPED:]

    def __iter__(self) -> Iterator[Example]:
        """The examples, by reason and path."""
        yield from (
            example
            for _, found in sorted(self._found.items())
            for example in sorted((example for _, example in found), key=lambda example: example.path)
        )


def smallest(paths: Iterable[str]) -> list[str]:
    """Those of so many paths that `Drawn` would keep."""
    return sorted(sorted(paths, key=_rank)[:DROPPED])


def _rank(path: str) -> bytes:
    return hashlib.sha256(path.encode()).digest()


def picture(image: np.ndarray, side: int = _SIDE) -> str:
    """An image, small, as base64 of a JPEG file without metadata.

    Args:
        image: [height, width] or [height, width, 3] (RGB); integers of their whole range, or floats in [0, 1].
        side: pixels that the longer one has at most.
    """
    cv2 = require("cv2", "train")
    whole = np.iinfo(image.dtype).max if image.dtype.kind == "u" else 1
    height, width = image.shape[:2]
    scale = side / max(height, width)
    small = np.nan_to_num(image.astype(np.float32) / np.float32(whole)).clip(0, 1)
    if scale < 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        small = cv2.resize(small, size, interpolation=cv2.INTER_AREA)
    pixels = np.rint(small * 255).astype(np.uint8)
    _, data = cv2.imencode(".jpg", pixels[..., ::-1] if pixels.ndim == 3 else pixels, [1, _QUALITY])
    return base64.b64encode(data.tobytes()).decode("ascii")


def middle(scan: Scan) -> np.ndarray:
    """The middle image of what is no image to train on, its values stretched to [0, 1]: float32."""
    if scan.layout == "volume":
        axis = acquired_axis(scan.spacing)
        image = next(islice(slices(scan.held, axis), scan.held.shape[axis] // 2, None))
    else:
        image = scan.held[len(scan.held) // 2]
    image = np.asarray(image).astype(np.float32)
    low, high = float(image.min()), float(image.max())
    return (image - low) / max(high - low, 1e-6)
