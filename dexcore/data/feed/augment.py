"""From stored pixels to the network's input in training: a random crop, resized, flipped, rotated.

The recipe is the paper's (see `Augmentation`), as one warp (`dexcore.view`). The paper resizes by area interpolation
(OpenCV's INTER_AREA); the warp's difference from it is told there.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from dexcore import view
from dexcore.checks import check_kind, check_number
from dexcore.extras import require
from dexcore.view import LARGEST, Box, center_square, check_view, resample

MIN_AREA = 0.2  # the smallest crop's share of the image
MIN_OUTPUT_SHARE = 0.5  # a crop has at least this share of the output's pixels
ASPECT = (3 / 4, 4 / 3)  # width over height, log-uniform
CROP_TRIES = 10
MIN_CROP_MEAN = 0.05  # a darker crop is a failed try: mostly air
ROTATION_PROBABILITY = 0.5
# Mean and standard deviation of the channels, by name. "gray" treats all channels alike: under ImageNet's a gray
# image gets channels that differ by a constant, which then makes up most of a dark patch's normalized target.
CHANNEL_STATISTICS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "gray": ((0.45, 0.45, 0.45), (0.225, 0.225, 0.225)),
}


@dataclass(frozen=True)
class Augmentation:
    """How images are changed at random; the defaults are the paper's.

    Attributes:
        min_area: the smallest crop's share of the image's area, above 0 and at most 1.
        flip: how often left and right are mirrored, 0 to 1.
        rotation: the largest angle, degrees; half of the images are rotated.
        intensity: s in [0, 4]: every pixel x in [0, 1] becomes x to the power of exp(u), u uniform in [-s, s]. Black
            and white stay; 0, the paper's, leaves all as it is.

    Raises:
        TypeError, ValueError: one is no number, or out of its range.
    """

    min_area: float = MIN_AREA
    flip: float = 0.5
    rotation: float = 15.0
    intensity: float = 0.0

    def __post_init__(self) -> None:
        check_number("min_area", self.min_area, "above 0 and at most 1", lambda x: 0 < x <= 1)
        check_number("flip", self.flip, "from 0 to 1", lambda x: 0 <= x <= 1)
        check_number("rotation", self.rotation, "from 0 to 180 degrees", lambda x: 0 <= x <= 180)
        check_number("intensity", self.intensity, "from 0 to 4", lambda x: 0 <= x <= 4)


PAPER = Augmentation()


class Draw(NamedTuple):
    """What `augment` does to an image: crop to ``box``, resize, ``flip``, rotate by ``angle`` degrees, and raise to
    the power of ``gamma``.
    """

    box: Box
    flip: bool
    angle: float
    gamma: float = 1.0


def augment(image: np.ndarray, size: int, rng: np.random.Generator, settings: Augmentation = PAPER) -> np.ndarray:
    """Crop at random, resize, flip, rotate and change the intensity.

    Args:
        image: uint8, uint16 or float32 in [0, 1], [H, W] or [H, W, C]. Values are not checked, which would take
            a pass over the image: what is outside [0, 1], or NaN, gives such pixels.
        size: of the output, pixels, from 1 to ``view.MAX_SIZE``.
        rng: where the draws come from (`draw`); the result is a function of its state.
        settings: how much of what.

    Returns:
        float32 in [0, 1] (roundings may add 1e-6), [size, size] or [size, size, C].

    Raises:
        TypeError: ``size`` is no whole number, ``rng`` no generator, or ``settings`` no `Augmentation`.
        ValueError: ``image`` is no array of these types and shapes, or ``size`` is out of its range.
    """
    box, flip, angle, gamma = draw(image, size, rng, settings)
    square = resample(image, box, size, flip, angle)
    return square if gamma == 1 else np.clip(square, 0, 1, out=square) ** np.float32(gamma)


def draw(image: np.ndarray, size: int, rng: np.random.Generator, settings: Augmentation = PAPER) -> Draw:
    """Draw what `augment` does to an image.

    The crop's share of the area is uniform in [``min_area``, 1], the lower end raised to half the output's area;
    its aspect is log-uniform. After ten failed tries (it does not fit, or is darker than ``MIN_CROP_MEAN``),
    and for images smaller than half the output, it is the centre square. Then a horizontal flip, a rotation with
    probability 0.5, and a change of intensity; what a rotation brings in from outside the crop is 0.

    Args and raises as for `augment`.
    """
    check_view(image, size)
    check_kind("rng", rng, np.random.Generator, "a numpy.random.Generator")
    check_kind("settings", settings, Augmentation, "an Augmentation")
    box = _draw_box(image, size, rng, settings.min_area)
    flip, rotation, turn = rng.random(3).tolist()
    angle = (2 * turn - 1) * settings.rotation if rotation < ROTATION_PROBABILITY else 0.0
    gamma = math.exp(rng.uniform(-settings.intensity, settings.intensity)) if settings.intensity else 1.0
    return Draw(box, flip < settings.flip, angle, gamma)


def channel_statistics(name: str, channels: int = 3) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, by a name in ``CHANNEL_STATISTICS``; of another number of channels
    than three each is the average of the three, as timm does.
    """
    mean, std = CHANNEL_STATISTICS[name]
    if channels == len(mean):
        return mean, std
    return (sum(mean) / len(mean),) * channels, (sum(std) / len(std),) * channels


def to_tensor(
    image: np.ndarray, statistics: str = "imagenet", channels: int = 3, out: torch.Tensor | None = None
) -> torch.Tensor:
    """`dexcore.view.to_tensor` with statistics by their name in ``CHANNEL_STATISTICS``, to a number of channels.

    Raises:
        ValueError: the image is none, there are no such statistics, or ``out`` is of another shape or dtype.
    """
    if statistics not in list(CHANNEL_STATISTICS):  # a list: also what cannot be hashed is compared
        raise ValueError(f"statistics is {statistics!r}, expected one of {', '.join(CHANNEL_STATISTICS)}")
    return view.to_tensor(image, *channel_statistics(statistics, channels), out)


def _draw_box(image: np.ndarray, size: int, rng: np.random.Generator, min_area: float) -> Box:
    height, width = image.shape[:2]
    smallest = max(min_area, MIN_OUTPUT_SHARE * size * size / (height * width))
    if smallest <= 1:
        for _ in range(CROP_TRIES):
            share, slant, down, across = rng.random(4).tolist()
            area = (smallest + share * (1 - smallest)) * height * width
            aspect = ASPECT[0] * (ASPECT[1] / ASPECT[0]) ** slant
            box_height, box_width = round((area / aspect) ** 0.5), round((area * aspect) ** 0.5)
            if box_height > height or box_width > width:
                continue
            top, left = int(down * (height - box_height + 1)), int(across * (width - box_width + 1))
            box = Box(top, left, box_height, box_width)
            if not _is_dark(image, box):
                return box
    return center_square(height, width)


def _is_dark(image: np.ndarray, box: Box) -> bool:
    """Whether a crop's mean is below ``MIN_CROP_MEAN``."""
    cv2 = require("cv2", "train")
    crop = image[box.top : box.top + box.height, box.left : box.left + box.width]
    if crop.ndim == 3 and crop.shape[2] > 4:  # OpenCV sums no more channels
        crop = crop.reshape(len(crop), -1)
    least = MIN_CROP_MEAN * LARGEST[image.dtype] * crop.size
    # No pixel is negative: where every fourth row alone makes up the sum that all should have, the others are not read.
    return sum(cv2.sumElems(crop[::4])) < least and sum(cv2.sumElems(crop)) < least
