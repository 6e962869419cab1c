"""From stored pixels to the network's input in training: a random crop, resized, flipped, rotated.

The recipe is the paper's (see `augment`), as one warp (`dexcore.view`). The paper resizes by area interpolation
(OpenCV's INTER_AREA); the warp's difference from it is told there.
"""

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
FLIP_PROBABILITY = 0.5
ROTATION_PROBABILITY = 0.5
MAX_ROTATION = 15.0  # degrees
# Mean and standard deviation of the channels, by name. "gray" treats all channels alike: under ImageNet's a gray
# image gets channels that differ by a constant, which then makes up most of a dark patch's normalized target.
CHANNEL_STATISTICS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "gray": ((0.45, 0.45, 0.45), (0.225, 0.225, 0.225)),
}


class Draw(NamedTuple):
    """What `augment` does to an image: crop to ``box``, resize, ``flip``, rotate by ``angle`` degrees."""

    box: Box
    flip: bool
    angle: float


def augment(image: np.ndarray, size: int, rng: np.random.Generator, min_area: float = MIN_AREA) -> np.ndarray:
    """Crop at random, resize, flip and rotate as the paper's pre-training does.

    Args:
        image: uint8, uint16 or float32 in [0, 1], [H, W] or [H, W, 3]. Values are not checked, which would take
            a pass over the image: what is outside [0, 1], or NaN, gives such pixels.
        size: of the output, pixels, from 1 to ``view.MAX_SIZE``.
        rng: where the draws come from (`draw`); the result is a function of its state.
        min_area: the smallest crop's share of the image's area.

    Returns:
        float32 in [0, 1] (roundings may add 1e-6), [size, size] or [size, size, 3].

    Raises:
        TypeError: ``size`` is no whole number, ``rng`` no generator, or ``min_area`` no number.
        ValueError: ``image`` is no array of these types and shapes, or ``size`` or ``min_area`` is out of its range.
    """
    box, flip, angle = draw(image, size, rng, min_area)
    return resample(image, box, size, flip, angle)


def draw(image: np.ndarray, size: int, rng: np.random.Generator, min_area: float = MIN_AREA) -> Draw:
    """Draw what `augment` does to an image.

    The crop's share of the area is uniform in [``min_area``, 1], the lower end raised to half the output's area;
    its aspect is log-uniform. After ten failed tries (it does not fit, or is darker than ``MIN_CROP_MEAN``),
    and for images smaller than half the output, it is the centre square. Then a horizontal flip and a
    rotation by up to 15 degrees, each with probability 0.5; what a rotation brings in from outside the crop
    is 0.

    Args and raises as for `augment`.
    """
    check_view(image, size)
    check_kind("rng", rng, np.random.Generator, "a numpy.random.Generator")
    check_number("min_area", min_area, "above 0 and at most 1", lambda x: 0 < x <= 1)
    box = _draw_box(image, size, rng, min_area)
    flip, rotation, turn = rng.random(3).tolist()
    angle = (2 * turn - 1) * MAX_ROTATION if rotation < ROTATION_PROBABILITY else 0.0
    return Draw(box, flip < FLIP_PROBABILITY, angle)


def to_tensor(image: np.ndarray, statistics: str = "imagenet") -> torch.Tensor:
    """`dexcore.view.to_tensor` with statistics by their name in ``CHANNEL_STATISTICS``.

    Raises:
        ValueError: the image is none, or there are no such statistics.
    """
    if statistics not in list(CHANNEL_STATISTICS):  # a list: also what cannot be hashed is compared
        raise ValueError(f"statistics is {statistics!r}, expected one of {', '.join(CHANNEL_STATISTICS)}")
    return view.to_tensor(image, *CHANNEL_STATISTICS[statistics])


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
    least = MIN_CROP_MEAN * LARGEST[image.dtype] * crop.size
    # No pixel is negative: where every fourth row alone makes up the sum that all should have, the others are not read.
    return sum(cv2.sumElems(crop[::4])) < least and sum(cv2.sumElems(crop)) < least
