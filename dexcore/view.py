"""From stored pixels to the network's input: a crop, resized to a square, its channels normalized.

What shrinks is first averaged over an output pixel's area, so that nothing aliases, and then read bilinearly. A shrink
by ``s`` is, if nothing is rotated, OpenCV's INTER_AREA up to a share of d / (2 s) of an output pixel's weight, along
each axis, which lies on neighbouring pixels; d is how far ``s`` is from the nearest odd number. So it is the same at 3
and 5, and furthest, a quarter, at 2. INTER_AREA itself takes about twice as long, and has no rotation.

It stands below models and data: training images are warped here (`dexcore.data.feed.augment`), evaluation images
(`evaluation_view`), and what a saved model is asked about (its ``preprocess``).
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from dexcore.checks import check_kind, check_number, check_whole
from dexcore.extras import require

MAX_SIZE = 32766  # pixels a side: OpenCV 4 rotates no larger image

LARGEST = {np.dtype(np.uint8): 255.0, np.dtype(np.uint16): 65535.0, np.dtype(np.float32): 1.0}  # what 1 is stored as


_ROUNDINGS = 1e-4  # how far beyond [0, 1] a resized image may lie
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # of red, green and blue: ITU-R BT.601, as Pillow and OpenCV


class Box(NamedTuple):
    """A crop: rows ``top`` to ``top + height``, columns ``left`` to ``left + width``."""

    top: int
    left: int
    height: int
    width: int


def evaluation_view(image: np.ndarray, size: int, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """What an evaluation shows the network: the centre square, resized, its channels normalized.

    Args:
        image: as for `warp`.
        size: of the output, pixels, from 1 to ``MAX_SIZE``.
        mean: of each channel, in units of [0, 1].
        std: standard deviation of each channel.

    Returns:
        float32 [C, size, size], a channel a number in ``mean``.

    Raises:
        TypeError, ValueError: as for `warp`.
    """
    check_image(image)
    _check_channels(image, len(mean))
    return to_tensor(center(image, size), mean, std)


def as_pixels(image: Any, channels: int = 3) -> np.ndarray:
    """Give an image as `warp` takes it.

    Args:
        image: an array, [H, W] or [H, W, C]; a tensor, [H, W] or [C, H, W]; or a PIL image. Whole numbers of 8 or 16
            unsigned bits, or floats in [0, 1].
        channels: that it may have beside 1 and 3.

    Raises:
        TypeError: it is none of these.
        ValueError: it has other axes or channels, another type, or floats outside [0, 1].
    """
    shape = " x ".join(map(str, getattr(image, "shape", ())))
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        image = (image.float() if image.is_floating_point() else image).numpy()
        if image.ndim == 3:
            image = np.ascontiguousarray(np.moveaxis(image, 0, -1))
        layout = "[H, W] or [C, H, W] (a tensor's channels come first, an array's last)"
    elif isinstance(image, np.ndarray):
        layout = "[H, W] or [H, W, C] (an array's channels come last, a tensor's first)"
    elif type(image).__module__.startswith("PIL."):
        image = _of_pillow(image)
        layout = "gray or RGB"
    else:
        raise TypeError(f"image must be a numpy array, a tensor or a PIL image, got {type(image).__name__}")
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, channels)) or not image.size:
        numbers = "1 or 3" if channels in (1, 3) else f"1, 3 or {channels}"
        raise ValueError(f"image must be {layout} with {numbers} channels, got {shape}")
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[..., 0]
    if image.dtype.kind == "f":
        image = image.astype(np.float32, copy=False)
        if not (image.min() >= -_ROUNDINGS and image.max() <= 1 + _ROUNDINGS):
            raise ValueError(f"image must lie in [0, 1], got {image.min()} to {image.max()}")
    check_image(image)
    return image


def _of_pillow(image: Any) -> np.ndarray:
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)
    if image.mode in ("L", "RGB", "F"):
        return np.array(image)
    return np.array(image.convert("L" if image.mode in ("1", "LA") else "RGB"))


def center(image: np.ndarray, size: int) -> np.ndarray:
    """Give the centre square, resized: without a draw.

    Args, result and raises as for `warp`.
    """
    check_view(image, size)
    return resample(image, center_square(*image.shape[:2]), size)


def to_tensor(
    image: np.ndarray, mean: Sequence[float], std: Sequence[float], out: torch.Tensor | None = None
) -> torch.Tensor:
    """Normalize the channels.

    Args:
        image: float32 in [0, 1], [S, S] (repeated for all channels) or [S, S, C]; RGB becomes gray where ``mean`` is
            of one channel (luma, ITU-R BT.601).
        mean: of each channel.
        std: standard deviation of each channel.
        out: where the result is written, a CPU tensor of its shape and dtype; new memory without it.

    Returns:
        float32 [C, S, S], a channel a number in ``mean``.

    Raises:
        ValueError: the image is none, or has other channels than ``mean``; ``out`` is of another shape or dtype.
    """
    check_image(image)
    if image.dtype != np.float32:
        raise ValueError(f"image has dtype {image.dtype}, expected float32 in [0, 1]")
    _check_channels(image, len(mean))
    if image.ndim == 3 and len(mean) == 1:
        image = image @ LUMA if image.shape[2] == 3 else image[..., 0]
    shape = (len(mean), *image.shape[:2])
    if out is None:
        out = torch.empty(shape)
    elif out.shape != shape or out.dtype != torch.float32:
        raise ValueError(f"out is {out.dtype} {list(out.shape)}, expected float32 {list(shape)}")
    # Channel by channel: numpy is several times slower over an image whose channels lie innermost.
    for channel, (plane, level, deviation) in enumerate(zip(out.numpy(), mean, std, strict=True)):
        np.subtract(image if image.ndim == 2 else image[..., channel], np.float32(level), out=plane)
        plane /= np.float32(deviation)
    return out


def warp(image: np.ndarray, box: Box, size: int, flip: bool = False, angle: float = 0.0) -> np.ndarray:
    """Resize a crop to a square, flip it horizontally, rotate it about its centre, all at once.

    Args:
        image: uint8, uint16 or float32 in [0, 1], [H, W] or [H, W, C]. Values are not checked, which would take
            a pass over the image: what is outside [0, 1], or NaN, gives such pixels.
        box: the crop, inside the image.
        size: of the output, pixels, from 1 to ``MAX_SIZE``.
        flip: mirror left and right.
        angle: degrees, counter-clockwise as one sees it, after the flip.

    Returns:
        float32 in [0, 1] (roundings may add 1e-6), [size, size] or [size, size, C].

    Raises:
        TypeError: ``size`` is no whole number, ``box`` no `Box`, ``flip`` no bool, or ``angle`` no number.
        ValueError: ``image`` is no array of these types and shapes, ``box`` lies not inside it, or ``size`` or
            ``angle`` is out of its range.
    """
    check_view(image, size)
    check_kind("box", box, Box, "a Box")
    check_kind("flip", flip, bool | np.bool_, "a bool")
    check_number("angle", angle, "finite", math.isfinite)
    height, width = image.shape[:2]
    if not all(isinstance(each, int | np.integer) for each in box):
        raise TypeError(f"box must be of whole numbers, got {box}")
    if not (0 <= box.top < box.top + box.height <= height and 0 <= box.left < box.left + box.width <= width):
        raise ValueError(f"{box} lies not inside the image of {height} x {width}")
    return resample(image, box, size, flip, angle)


def resample(image: np.ndarray, box: Box, size: int, flip: bool = False, angle: float = 0.0) -> np.ndarray:
    """`warp` without its checks."""
    if image.ndim == 3 and image.shape[2] != 3:  # OpenCV warps no more than 4 channels at once, and drops a single axis
        planes = [resample(plane, box, size, flip, angle) for plane in np.moveaxis(image, 2, 0)]
        return np.stack(planes, axis=2)
    cv2 = require("cv2", "train")
    crop = image[box.top : box.top + box.height, box.left : box.left + box.width]
    filtered = None
    if crop.dtype == np.uint16:
        # OpenCV filters uint8 to float32 faster than this, uint16 slower.
        crop = filtered = crop.astype(np.float32, order="C")
    # One pass converts, scales to [0, 1] and averages.
    across, down = _area_weights(box.width / size), _area_weights(box.height / size) / LARGEST[image.dtype]
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


def resample_labels(
    labels: np.ndarray, box: Box, size: int, flip: bool = False, angle: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """What `resample` does to an image, to its labels: each output pixel takes the nearest one, and none is mixed.

    Args:
        labels: whole numbers or bools, [..., H, W].
        box, size, flip, angle: as for `warp`.

    Returns:
        [..., size, size] of the same type, and where they are of the crop, bool [size, size]: what a rotation brings in
        from outside it has the label of its edge.
    """
    matrix = _output_to_crop(box, size, flip, angle)
    places = np.arange(size)
    column, row = (a * places[None, :] + b * places[:, None] + c for a, b, c in matrix)
    column, row = (np.floor(place + 0.5).astype(np.int64) for place in (column, row))
    inside = (row >= 0) & (row < box.height) & (column >= 0) & (column < box.width)
    row, column = row.clip(0, box.height - 1) + box.top, column.clip(0, box.width - 1) + box.left
    return labels[..., row, column], inside


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


def center_square(height: int, width: int) -> Box:
    """Give the largest square in the middle of an image."""
    side = min(height, width)
    return Box((height - side) // 2, (width - side) // 2, side, side)


def check_view(image: np.ndarray, size: int) -> None:
    """Raise TypeError or ValueError for what `warp` does not take."""
    check_image(image)
    check_whole("size", size, 1, MAX_SIZE)


def _check_channels(image: np.ndarray, expected: int) -> None:
    if image.ndim == 3 and image.shape[2] != expected and (image.shape[2], expected) != (3, 1):
        raise ValueError(f"image has {image.shape[2]} channels, expected {expected}, as mean and std have")


def check_image(image: np.ndarray) -> None:
    """Raise ValueError unless ``image`` is uint8, uint16 or float32, [H, W] or [H, W, C]."""
    if not isinstance(image, np.ndarray):
        raise ValueError(f"image is a {type(image).__name__}, expected a numpy array")
    if image.dtype not in LARGEST:
        raise ValueError(f"image has dtype {image.dtype}, expected uint8, uint16, or float32 in [0, 1]")
    if image.ndim not in (2, 3) or not image.size:
        raise ValueError(f"image has shape {image.shape}, expected [H, W] or [H, W, C], and no side of 0")
