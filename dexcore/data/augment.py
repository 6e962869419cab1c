"""From stored pixels to the network's input: crop, resize, flip, rotation; for evaluation the centre square.

The recipe is the paper's (see `augment`). Shrinking averages areas, so nothing aliases; enlarging, flip and
rotation are one bilinear warp of the result.
"""

from typing import NamedTuple

import numpy as np
import torch

from dexcore.extras import require

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


class Box(NamedTuple):
    """A crop: rows ``top`` to ``top + height``, columns ``left`` to ``left + width``."""

    top: int
    left: int
    height: int
    width: int


def augment(image: np.ndarray, size: int, rng: np.random.Generator, min_area: float = MIN_AREA) -> np.ndarray:
    """Crop at random, resize, flip and rotate as the paper's pre-training does.

    The crop's share of the area is uniform in [``min_area``, 1], the lower end raised to half the output's area;
    its aspect is log-uniform. After ten failed tries (it does not fit, or is darker than ``MIN_CROP_MEAN``),
    and for images smaller than half the output, it is the centre square. Then a horizontal flip and a
    rotation by up to 15 degrees, each with probability 0.5; what a rotation brings in from outside the crop
    is 0.

    Args:
        image: uint8, uint16 or float32 in [0, 1], [H, W] or [H, W, 3].
        size: of the output, pixels.
        rng: where the draws come from; the result is a function of its state.
        min_area: the smallest crop's share of the image's area.

    Returns:
        float32 in [0, 1], [size, size] or [size, size, 3].
    """
    box = _draw_box(image, size, rng, min_area)
    flip = bool(rng.random() < FLIP_PROBABILITY)
    rotate = rng.random() < ROTATION_PROBABILITY
    angle = rng.uniform(-MAX_ROTATION, MAX_ROTATION) if rotate else 0.0
    return warp(image, box, size, flip=flip, angle=angle)


def center(image: np.ndarray, size: int) -> np.ndarray:
    """Give the centre square, resized: what `augment` gives without its draws."""
    return warp(image, _center_square(*image.shape[:2]), size)


def to_tensor(image: np.ndarray, statistics: str = "imagenet") -> torch.Tensor:
    """Normalize the channels.

    Args:
        image: float32 in [0, 1], [S, S] (repeated for the three channels) or [S, S, 3].
        statistics: a name in ``CHANNEL_STATISTICS``.

    Returns:
        float32 [3, S, S].
    """
    mean, std = np.array(CHANNEL_STATISTICS[statistics], np.float32)[:, :, None, None]
    channels = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray((channels - mean) / std))


def warp(image: np.ndarray, box: Box, size: int, flip: bool = False, angle: float = 0.0) -> np.ndarray:
    """Resize a crop to a square, flip it horizontally, rotate it about its centre.

    Args:
        image: as for `augment`.
        box: the crop.
        size: of the output, pixels.
        flip: mirror left and right.
        angle: degrees, counter-clockwise as one sees it, after the flip.

    Returns:
        float32 in [0, 1], [size, size] or [size, size, 3].
    """
    cv2 = require("cv2", "train")
    crop = image[box.top : box.top + box.height, box.left : box.left + box.width].astype(np.float32)
    # First what shrinks: OpenCV averages areas only when neither axis grows.
    reduced = (min(box.width, size), min(box.height, size))
    if reduced != (box.width, box.height):
        crop = cv2.resize(crop, reduced, interpolation=cv2.INTER_AREA)
    if angle:
        matrix = _output_to_crop(reduced, size, flip, angle)
        crop = cv2.warpAffine(crop, matrix, (size, size), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    else:
        if reduced != (size, size):
            crop = cv2.resize(crop, (size, size), interpolation=cv2.INTER_LINEAR)
        if flip:
            crop = crop[:, ::-1]
    if image.dtype.kind == "u":
        crop = crop * np.float32(1 / np.iinfo(image.dtype).max)
    # Averages and interpolations stay in range but for roundings.
    return np.clip(crop, 0.0, 1.0)


def _output_to_crop(reduced: tuple[int, int], size: int, flip: bool, angle: float) -> np.ndarray:
    """Give the affine map [2, 3] from output to crop pixels (x, y), both counted at pixel centres."""
    width, height = reduced
    radians = np.deg2rad(angle)
    # The y axis points down: turning the picture counter-clockwise reads from a point turned clockwise.
    rotation = np.array([[np.cos(radians), -np.sin(radians)], [np.sin(radians), np.cos(radians)]])
    scale = np.array([(-1.0 if flip else 1.0) * width / size, height / size])
    linear = scale[:, None] * rotation
    crop_center = np.array([(width - 1) / 2, (height - 1) / 2])
    offset = crop_center - linear @ np.full(2, (size - 1) / 2)
    return np.column_stack([linear, offset])


def _draw_box(image: np.ndarray, size: int, rng: np.random.Generator, min_area: float) -> Box:
    height, width = image.shape[:2]
    smallest = max(min_area, MIN_OUTPUT_SHARE * size * size / (height * width))
    if smallest <= 1:
        for _ in range(CROP_TRIES):
            area = rng.uniform(smallest, 1) * height * width
            aspect = np.exp(rng.uniform(*np.log(ASPECT)))
            box_width, box_height = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
            if box_width > width or box_height > height:
                continue
            top = int(rng.integers(height - box_height + 1))
            left = int(rng.integers(width - box_width + 1))
            box = Box(top, left, box_height, box_width)
            if _mean(image, box) >= MIN_CROP_MEAN:
                return box
    return _center_square(height, width)


def _center_square(height: int, width: int) -> Box:
    side = min(height, width)
    return Box((height - side) // 2, (width - side) // 2, side, side)


def _mean(image: np.ndarray, box: Box) -> float:
    """Mean of a crop, in [0, 1]."""
    cv2 = require("cv2", "train")
    crop = image[box.top : box.top + box.height, box.left : box.left + box.width]
    channels = 1 if image.ndim == 2 else image.shape[2]
    largest = np.iinfo(image.dtype).max if image.dtype.kind == "u" else 1.0
    return sum(cv2.mean(crop)[:channels]) / channels / largest
