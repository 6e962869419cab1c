"""From stored pixels to the network's input: crop, resize, flip, rotation; for evaluation the centre square.

The recipe is the paper's (see `augment`), as one warp: every output pixel is read once, bilinearly, from the crop.
Where that shrinks, the crop's pixels are first averaged over an output pixel's area, so that nothing aliases.

The paper resizes by area interpolation (OpenCV's INTER_AREA). A shrink by ``s`` here, if nothing is rotated, is that up
to a share of d / (2 s) of an output pixel's weight, along each axis, which lies on neighbouring pixels; d is how far
``s`` is from the nearest odd number. So it is the same at 3 and 5, and furthest, a quarter, at 2. INTER_AREA itself
takes about twice as long, and has no rotation.
"""

import math
from typing import NamedTuple

import numpy as np
import torch

from dexcore.checks import check_kind, check_number, check_whole
from dexcore.extras import require

MIN_AREA = 0.2  # the smallest crop's share of the image
MIN_OUTPUT_SHARE = 0.5  # a crop has at least this share of the output's pixels
ASPECT = (3 / 4, 4 / 3)  # width over height, log-uniform
CROP_TRIES = 10
MIN_CROP_MEAN = 0.05  # a darker crop is a failed try: mostly air
FLIP_PROBABILITY = 0.5
ROTATION_PROBABILITY = 0.5
MAX_ROTATION = 15.0  # degrees
MAX_SIZE = 32766  # pixels a side: OpenCV 4 rotates no larger image
# Mean and standard deviation of the channels, by name. "gray" treats all channels alike: under ImageNet's a gray
# image gets channels that differ by a constant, which then makes up most of a dark patch's normalized target.
CHANNEL_STATISTICS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "gray": ((0.45, 0.45, 0.45), (0.225, 0.225, 0.225)),
}

_LARGEST = {np.dtype(np.uint8): 255.0, np.dtype(np.uint16): 65535.0, np.dtype(np.float32): 1.0}  # what 1 is stored as


class Box(NamedTuple):
    """A crop: rows ``top`` to ``top + height``, columns ``left`` to ``left + width``."""

    top: int
    left: int
    height: int
    width: int


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
        size: of the output, pixels, from 1 to ``MAX_SIZE``.
        rng: where the draws come from (`draw`); the result is a function of its state.
        min_area: the smallest crop's share of the image's area.

    Returns:
        float32 in [0, 1] (roundings may add 1e-6), [size, size] or [size, size, 3].

    Raises:
        TypeError: ``size`` is no whole number, ``rng`` no generator, or ``min_area`` no number.
        ValueError: ``image`` is no array of these types and shapes, or ``size`` or ``min_area`` is out of its range.
    """
    return _warp(image, size, draw(image, size, rng, min_area))


def draw(image: np.ndarray, size: int, rng: np.random.Generator, min_area: float = MIN_AREA) -> Draw:
    """Draw what `augment` does to an image.

    The crop's share of the area is uniform in [``min_area``, 1], the lower end raised to half the output's area;
    its aspect is log-uniform. After ten failed tries (it does not fit, or is darker than ``MIN_CROP_MEAN``),
    and for images smaller than half the output, it is the centre square. Then a horizontal flip and a
    rotation by up to 15 degrees, each with probability 0.5; what a rotation brings in from outside the crop
    is 0.

    Args and raises as for `augment`.
    """
    _check(image, size)
    check_kind("rng", rng, np.random.Generator, "a numpy.random.Generator")
    check_number("min_area", min_area, "above 0 and at most 1", lambda x: 0 < x <= 1)
    box = _draw_box(image, size, rng, min_area)
    flip, rotation, turn = rng.random(3).tolist()
    angle = (2 * turn - 1) * MAX_ROTATION if rotation < ROTATION_PROBABILITY else 0.0
    return Draw(box, flip < FLIP_PROBABILITY, angle)


def center(image: np.ndarray, size: int) -> np.ndarray:
    """Give the centre square, resized: what `augment` gives without its draws.

    Args, result and raises as for `augment`.
    """
    _check(image, size)
    return _warp(image, size, Draw(_center_square(*image.shape[:2]), False, 0.0))


def to_tensor(image: np.ndarray, statistics: str = "imagenet") -> torch.Tensor:
    """Normalize the channels.

    Args:
        image: float32 in [0, 1], [S, S] (repeated for the three channels) or [S, S, 3].
        statistics: a name in ``CHANNEL_STATISTICS``.

    Returns:
        float32 [3, S, S].

    Raises:
        ValueError: the image is none, or there are no such statistics.
    """
    _check_image(image)
    if image.dtype != np.float32:
        raise ValueError(f"image has dtype {image.dtype}, expected float32 in [0, 1]")
    if statistics not in list(CHANNEL_STATISTICS):  # a list: also what cannot be hashed is compared
        raise ValueError(f"statistics is {statistics!r}, expected one of {', '.join(CHANNEL_STATISTICS)}")
    tensor = np.empty((3, *image.shape[:2]), np.float32)
    # Channel by channel: numpy is several times slower over an image whose channels lie innermost.
    for channel, (plane, mean, std) in enumerate(zip(tensor, *CHANNEL_STATISTICS[statistics], strict=True)):
        np.subtract(image if image.ndim == 2 else image[..., channel], np.float32(mean), out=plane)
        plane /= np.float32(std)
    return torch.from_numpy(tensor)


def warp(image: np.ndarray, box: Box, size: int, flip: bool = False, angle: float = 0.0) -> np.ndarray:
    """Resize a crop to a square, flip it horizontally, rotate it about its centre, all at once.

    Args:
        image: as for `augment`.
        box: the crop, inside the image.
        size: of the output, pixels, from 1 to ``MAX_SIZE``.
        flip: mirror left and right.
        angle: degrees, counter-clockwise as one sees it, after the flip.

    Returns:
        float32 in [0, 1] (roundings may add 1e-6), [size, size] or [size, size, 3].

    Raises:
        TypeError: ``size`` is no whole number, ``box`` no `Box`, ``flip`` no bool, or ``angle`` no number.
        ValueError: ``image`` is no array of these types and shapes, ``box`` lies not inside it, or ``size`` or
            ``angle`` is out of its range.
    """
    _check(image, size)
    check_kind("box", box, Box, "a Box")
    check_kind("flip", flip, bool | np.bool_, "a bool")
    check_number("angle", angle, "finite", math.isfinite)
    height, width = image.shape[:2]
    if not all(isinstance(each, int | np.integer) for each in box):
        raise TypeError(f"box must be of whole numbers, got {box}")
    if not (0 <= box.top < box.top + box.height <= height and 0 <= box.left < box.left + box.width <= width):
        raise ValueError(f"{box} lies not inside the image of {height} x {width}")
    return _warp(image, size, Draw(box, flip, angle))


def _warp(image: np.ndarray, size: int, drawn: Draw) -> np.ndarray:
    box, flip, angle = drawn
    cv2 = require("cv2", "train")
    crop = image[box.top : box.top + box.height, box.left : box.left + box.width]
    filtered = None
    if crop.dtype == np.uint16:
        crop = filtered = crop.astype(np.float32)  # OpenCV filters uint8 to float32 faster than this, uint16 slower
    # One pass converts, scales to [0, 1] and averages.
    across, down = _area_weights(box.width / size), _area_weights(box.height / size) / _LARGEST[image.dtype]
    crop = cv2.sepFilter2D(crop, cv2.CV_32F, across, down, dst=filtered, borderType=cv2.BORDER_REPLICATE)
    if angle:
        matrix = _output_to_crop(box, size, flip, angle)
        square = cv2.warpAffine(crop, matrix, (size, size), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    else:
        # The same map, without a rotation: OpenCV does it row by row.
        square = cv2.resize(crop, (size, size), interpolation=cv2.INTER_LINEAR)
        if flip:
            cv2.flip(square, 1, dst=square)
    return square


def _area_weights(shrink: float) -> np.ndarray:
    """Weights of the pixels about one, by how much of each a box of width ``shrink`` covers; sum 1.

    ``shrink`` 2 gives 1/4, 1/2, 1/4; 3 a third each. One pixel at least: nothing is averaged where a crop grows.
    """
    if shrink <= 1:
        return np.ones(1, np.float32)
    reach = math.ceil((shrink - 1) / 2)
    end = (shrink - (2 * reach - 1)) / 2 / shrink
    return np.array([end, *[1 / shrink] * (2 * reach - 1), end], np.float32)


def _output_to_crop(box: Box, size: int, flip: bool, angle: float) -> np.ndarray:
    """Give the affine map [2, 3] from output to crop pixels (x, y), both counted at pixel centres."""
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    across, down = (-1 if flip else 1) * box.width / size, box.height / size
    # The y axis points down: turning the picture counter-clockwise reads from a point turned clockwise.
    linear = ((across * cosine, -across * sine), (down * sine, down * cosine))
    middle = (size - 1) / 2
    centers = ((box.width - 1) / 2, (box.height - 1) / 2)
    return np.array([(*row, center - sum(row) * middle) for row, center in zip(linear, centers, strict=True)])


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
    return _center_square(height, width)


def _center_square(height: int, width: int) -> Box:
    side = min(height, width)
    return Box((height - side) // 2, (width - side) // 2, side, side)


def _is_dark(image: np.ndarray, box: Box) -> bool:
    """Whether a crop's mean is below ``MIN_CROP_MEAN``."""
    cv2 = require("cv2", "train")
    crop = image[box.top : box.top + box.height, box.left : box.left + box.width]
    least = MIN_CROP_MEAN * _LARGEST[image.dtype] * crop.size
    # No pixel is negative: where every fourth row alone makes up the sum that all should have, the others are not read.
    return sum(cv2.sumElems(crop[::4])) < least and sum(cv2.sumElems(crop)) < least


def _check(image: np.ndarray, size: int) -> None:
    _check_image(image)
    check_whole("size", size, 1, MAX_SIZE)


def _check_image(image: np.ndarray) -> None:
    if not isinstance(image, np.ndarray):
        raise ValueError(f"image is a {type(image).__name__}, expected a numpy array")
    if image.dtype not in _LARGEST:
        raise ValueError(f"image has dtype {image.dtype}, expected uint8, uint16, or float32 in [0, 1]")
    if not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)) or not image.size:
        raise ValueError(f"image has shape {image.shape}, expected [H, W] or [H, W, 3], and no side of 0")
