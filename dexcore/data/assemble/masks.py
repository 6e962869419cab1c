"""Masks and label maps, told from images by their names, by the image that they lie beside, and by their values."""

import re
from collections.abc import Iterable

import numpy as np

from dexcore.data.assemble.split import names_in, stem
from dexcore.data.coded import Pixels

_LONG = ("masks?", "segm", "segmentations?", "labels?", "labelmaps?", "labelst[rs]", "groundtruth", "annotations?")
_SHORT = ("segs?", "gt", "rois?", "contours?")  # in a folder's name they may be a part of the data set's
_TOKEN = re.compile(rf"(?<![a-z])(?:{'|'.join(_LONG + _SHORT)})(?![a-z])")
_FOLDER_TOKEN = re.compile(rf"(?<![a-z])(?:{'|'.join(_LONG)})(?![a-z])|^[^a-z]*(?:{'|'.join(_SHORT)})[^a-z]*$")
_IMAGE_TOKEN = re.compile(r"(?<![a-z])(?:image|images|img|imgs|scan|orig|original|he)(?![a-z])")
_NUMBERED = re.compile(r"_0000$|(?<=mask)[ _]?\d+$")
_MOST_NAMESAKES = 64  # that are compared with one another
_SAMPLE = 1 << 16  # values that are looked at first
MOST_LABELS = 32  # distinct values of what is named like a mask
MOST_PLAIN_LABELS = 8  # and of what is not


def named_like_a_mask(path: str) -> bool:
    """Whether a file's name, or that of a folder above it, has a word for masks in it."""
    *folders, name = names_in(path.lower())
    return bool(_TOKEN.search(name)) or any(_FOLDER_TOKEN.search(folder) for folder in folders)


def paired_masks(paths: Iterable[str]) -> set[str]:
    """Those that are named like masks and have an image of the same name, but for such words, among the others.

    Folders that both lie in say nothing: a whole data set may be called after its masks.
    """
    namesakes: dict[str, list[str]] = {}
    for path in paths:
        name = stem(names_in(path)[-1]).lower()
        key = re.sub(r"[^a-z0-9]+", "", _IMAGE_TOKEN.sub("", _TOKEN.sub("", _NUMBERED.sub("", name))))
        namesakes.setdefault(key, []).append(path)
    masks: set[str] = set()
    for found in namesakes.values():
        candidates = [path for path in found if named_like_a_mask(path)]
        if not candidates or len(found) == 1:
            continue
        if len(found) > _MOST_NAMESAKES:
            masks.update(candidates if len(candidates) < len(found) else ())
            continue
        masks.update(path for path in candidates if any(_is_mask_of(path, image) for image in found))
    return masks


def _is_mask_of(mask: str, image: str) -> bool:
    """Whether the words for masks in one path are not in the other, below the folder that both lie in."""
    parts, others = names_in(mask), names_in(image)
    common = 0
    while common < min(len(parts), len(others)) - 1 and parts[common] == others[common]:
        common += 1
    return named_like_a_mask("/".join(parts[common:])) and not named_like_a_mask("/".join(others[common:]))


def looks_like_labels(pixels: Pixels, named: bool) -> str | None:
    """Why the values are those of a mask or label map, in words; None where they are an image's.

    Args:
        pixels: as read, [..., height, width] or with 3 channels.
        named: its name speaks for a mask: then up to `MOST_LABELS` whole values or colours, and two blurred levels (a
            mask that went through JPEG), are enough; else two values, or at most `MOST_PLAIN_LABELS` that count from 0.
    """
    color = pixels.ndim == 4
    step = max(1, int((pixels.size / _SAMPLE) ** (1 / 3)))
    sample = np.asarray(pixels[::step, ::step, ::step])  # a view: a volume is large, and its axes may lie in any order
    most = MOST_LABELS if named else MOST_PLAIN_LABELS
    distinct = _distinct([sample], most, color)
    if len(distinct) <= most:
        distinct = _distinct(pixels, most, color)
    if 1 < len(distinct) <= most and np.all(distinct == np.floor(distinct)):
        if len(distinct) == 2:
            return "a mask: it has two values"
        if named or (not color and distinct[0] >= 0 and distinct[-1] < MOST_LABELS):
            return f"a label map: it has {len(distinct)} values"
    if named and pixels.dtype == np.uint8 and np.mean((sample < 24) | (sample > 231)) > 0.98:
        return "a mask: nearly all its values are black or white"
    return None


def _distinct(pieces: Iterable[Pixels], most: int, color: bool) -> np.ndarray:
    """The distinct values of arrays, or some more than ``most``; piece by piece, for memory's sake."""
    found: np.ndarray | None = None
    for piece in map(np.asarray, pieces):
        values = np.unique(piece.reshape(-1, piece.shape[-1]) if color else piece, axis=0 if color else None)
        found = values if found is None else np.unique(np.concatenate([found, values]), axis=0 if color else None)
        if len(found) > most:
            break
    assert found is not None
    return found
