"""Single cases as small pictures: image, reference, prediction; or image, label, probabilities."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from dexcore.data.assemble.examples import picture
from dexcore.extras import require
from dexcore.report.html import strip, tile

# Of classes: bright, to be told apart on gray, on tissue and on each other.
COLORS = (
    "#18d0e6", "#ffb000", "#ff4fa3", "#7be04b", "#a58bff", "#ff6b3d", "#ffe14d", "#4f9dff", "#d0d0d0", "#00c08b",
)  # fmt: skip
_SIDE = 224  # pixels of a picture's longer side
_FILLED = 0.4  # how much of a mask's color covers the image


@dataclass(frozen=True, eq=False)
class Case:
    """A case to look at.

    Attributes:
        name: of the case.
        group: the rule that chose it.
        lines: what is said below it, the first in the text's color.
        image: float32 in [0, 1], [height, width] or [height, width, 3].
        reference, predicted: bool [classes, height, width]; None of a classification.
    """

    name: str
    group: str
    lines: tuple[str, ...]
    image: np.ndarray
    reference: np.ndarray | None = None
    predicted: np.ndarray | None = None


def class_color(number: int) -> str:
    """The color of a class of masks, the same in every picture of a task."""
    return COLORS[number % len(COLORS)]


def case_strips(cases: Sequence[Case], classes: Sequence[str]) -> Iterator[str]:
    """The pictures by rule, as HTML; ``classes`` are those of the masks, in their order."""
    if any(case.reference is not None for case in cases):
        marks = "".join(
            f'<span><i style="background:{class_color(number)}"></i>{escape(name)}</span>'
            for number, name in enumerate(classes)
        )
        yield f'<p class="keys">{marks}</p>'
        yield '<p class="quiet">Each from left to right: image, reference, prediction.</p>'
    for group in dict.fromkeys(case.group for case in cases):
        yield f'<p class="quiet">{escape(group)}</p>'
        yield strip(_tile(case) for case in cases if case.group == group)


def _tile(case: Case) -> str:
    shown = _enlarged(case.image)
    if case.reference is None or case.predicted is None:
        return tile(case.name, [picture(shown, _SIDE)], case.lines)
    panels = [shown, *(_covered(shown, mask) for mask in (case.reference, case.predicted))]
    return tile(case.name, [picture(panel, _SIDE) for panel in panels], case.lines)


def _enlarged(image: np.ndarray) -> np.ndarray:
    """RGB at the size that is shown, float32 in [0, 1]."""
    cv2 = require("cv2", "train")
    image = np.nan_to_num(image.astype(np.float32)).clip(0, 1)
    image = np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image
    scale = _SIDE / max(image.shape[:2])
    size = tuple(max(1, round(side * scale)) for side in image.shape[1::-1])
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)).clip(
        0, 1
    )


def _covered(image: np.ndarray, mask_chw: np.ndarray) -> np.ndarray:
    """The image under the colors of a mask's classes, which are outlined."""
    cv2 = require("cv2", "train")
    shown = image.copy()
    for number, mask in enumerate(mask_chw):
        large = cv2.resize(mask.astype(np.float32), image.shape[1::-1], interpolation=cv2.INTER_LINEAR) >= 0.5
        if mask.any() and not large.any():  # smaller than a pixel of the picture
            large = cv2.resize(mask.astype(np.float32), image.shape[1::-1], interpolation=cv2.INTER_AREA) > 0
        color = np.array([int(class_color(number)[at : at + 2], 16) / 255 for at in (1, 3, 5)], np.float32)
        inner = cv2.erode(large.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        shown[inner] = (1 - _FILLED) * shown[inner] + _FILLED * color
        shown[large & ~inner] = color
    return shown
