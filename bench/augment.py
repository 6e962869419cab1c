"""Augmentation on one thread: images per second of one warp, and of crop, resize, flip and rotation each on its own.

    python -m bench.augment

    dexcore         dexcore.data.feed.augment: one filter and one warp
    published       the published loader's way: the image to float32, crop, resize by INTER_AREA, flip, warpAffine
    opencv          the same steps, but the crop alone to float32: as fast as they get one by one
    torchvision     transforms.v2 on tensors: resized_crop (antialias), horizontal_flip, rotate, to float32; on uint8
                    as it comes, on uint16 after the change to float32, since resize refuses uint16

From 512 x 640, as stores hold them, to 256 x 256. All make the same draws, the crop's tries included, and give float32
in [0, 1]. The least to move is the crop, read, and the output, written.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch

from bench.command import Ceilings, Goal, Line, Options, Refused, judged, run, table_row
from bench.contenders import WrongResultError
from bench.timing import interleaved, machine
from dexcore.data.feed.augment import Draw, augment, draw
from dexcore.data.feed.keyed import Stream, generator
from dexcore.extras import require

SPEEDUP = 2.0  # the goal, over the published and over torchvision's steps
_SHAPE, _SIZE, _IMAGES = (512, 640), 256, 32
_SEED = 133  # by which half of the images are flipped, half are rotated, and a quarter is both
_CASES: dict[str, tuple[type[np.unsignedinteger[Any]], int]] = {
    "gray": (np.uint8, 1),
    "gray, 16 bit": (np.uint16, 1),
    "RGB": (np.uint8, 3),
}
# Of values from 0 to 1, away from the output's border: filters of different widths, roundings to 8 bit.
_BOUND = 0.03

Augmentation = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]


def scene(x: np.ndarray, y: np.ndarray, channel: int) -> np.ndarray:
    """A smooth picture in [0.1, 0.9] without symmetry, as a formula: what is at pixel coordinates (x, y)."""
    return 0.5 + 0.2 * (np.sin(x / 9 + channel) + np.cos(y / 13 - x / 31))


def make_image(kind: str) -> np.ndarray:
    """The scene as a store holds it."""
    dtype, channels = _CASES[kind]
    y, x = np.mgrid[: _SHAPE[0], : _SHAPE[1]]
    planes = [scene(x, y, channel) for channel in range(channels)]
    pixels = np.round(np.stack(planes, axis=-1) * np.iinfo(dtype).max).astype(dtype)
    return pixels if channels > 1 else pixels[..., 0]


def expected(drawn: Draw, channels: int) -> np.ndarray:
    """The scene itself at the output's pixels, [size, size, channels]: no pixel is interpolated."""
    rows, columns = np.mgrid[:_SIZE, :_SIZE] - (_SIZE - 1) / 2
    turned = (columns + 1j * rows) * np.exp(1j * np.radians(drawn.angle))
    box = drawn.box
    x = box.left + (box.width - 1) / 2 + (-1 if drawn.flip else 1) * turned.real * box.width / _SIZE
    y = box.top + (box.height - 1) / 2 + turned.imag * box.height / _SIZE
    return np.stack([scene(x, y, channel) for channel in range(channels)], axis=-1)


def published_chain(image: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    image = image.astype(np.float32) / np.float32(np.iinfo(image.dtype).max)
    (top, left, height, width), flip, angle, _ = draw(image, size, rng)
    return _resize_flip_rotate(image[top : top + height, left : left + width], size, flip, angle)


def opencv_chain(image: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    (top, left, height, width), flip, angle, _ = draw(image, size, rng)
    crop = image[top : top + height, left : left + width].astype(np.float32)
    crop /= np.float32(np.iinfo(image.dtype).max)
    return _resize_flip_rotate(crop, size, flip, angle)


def _resize_flip_rotate(crop: np.ndarray, size: int, flip: bool, angle: float) -> np.ndarray:
    cv2 = require("cv2", "train")
    square = cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA)
    if flip:
        square = cv2.flip(square, 1)
    if angle:
        matrix = cv2.getRotationMatrix2D(((size - 1) / 2, (size - 1) / 2), angle, 1)
        square = cv2.warpAffine(square, matrix, (size, size), flags=cv2.INTER_LINEAR)
    return square


def torchvision_chain(image: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    transforms = require("torchvision.transforms.v2.functional", "dev")
    modes = require("torchvision.transforms", "dev").InterpolationMode
    box, flip, angle, _ = draw(image, size, rng)
    tensor = torch.from_numpy(image)
    tensor = tensor[None] if image.ndim == 2 else tensor.permute(2, 0, 1)
    if image.dtype == np.uint16:
        tensor = transforms.to_dtype(transforms.crop(tensor, *box), torch.float32, scale=True)
        square = transforms.resize(tensor, [size, size], antialias=True)
    else:
        square = transforms.resized_crop(tensor, *box, [size, size], antialias=True)
    if flip:
        square = transforms.horizontal_flip(square)
    if angle:
        square = transforms.rotate(square, angle, interpolation=modes.BILINEAR)
    square = transforms.to_dtype(square, torch.float32, scale=True)
    return (square[0] if image.ndim == 2 else square.permute(1, 2, 0)).numpy()


CONTENDERS: dict[str, Augmentation] = {
    "dexcore": augment,
    "published": published_chain,
    "opencv": opencv_chain,
    "torchvision": torchvision_chain,
}


@contextmanager
def one_thread() -> Iterator[None]:
    """A data loader's worker has one thread; so have OpenCV and PyTorch in here."""
    cv2 = require("cv2", "train")
    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])


def _images(options: Options) -> int:
    return 8 if options.quick else _IMAGES


def _rng(key: int) -> np.random.Generator:
    return generator(_SEED, 0, key, Stream.AUGMENT)


def check(options: Options) -> Refused:
    """Hold every contender to the scene, on the disc that no rotation brings the crop's border into."""
    rows, columns = np.mgrid[:_SIZE, :_SIZE] - (_SIZE - 1) / 2
    disc = np.hypot(rows, columns) < _SIZE / 2 - 2
    with one_thread():
        for kind, (_, channels) in _CASES.items():
            image = make_image(kind)
            for key in range(_images(options)):
                truth = expected(draw(image, _SIZE, _rng(key)), channels)
                for name, call in CONTENDERS.items():
                    found = call(image, _SIZE, _rng(key))
                    error = float(np.abs(found.reshape(truth.shape) - truth)[disc].max())
                    if found.dtype != np.float32 or not error <= _BOUND:
                        raise WrongResultError(
                            f"augment, {name}, {kind}: {found.dtype}, {error:.2g} off, allowed float32, {_BOUND}"
                        )
    return {}


def measure(options: Options, ceilings: Ceilings, refused: Refused) -> list[Line]:
    """A table a kind of image. Every call augments the same images, by the same keys."""
    count, lines = _images(options), []
    copy = ceilings[options.dtypes[0]]["copy_gbs"] if not options.on_gpu else None
    for kind, (dtype, channels) in _CASES.items():
        image = make_image(kind)

        def augment_all(call: Augmentation, image: np.ndarray = image) -> None:
            for key in range(count):
                call(image, _SIZE, _rng(key))

        boxes = [draw(image, _SIZE, _rng(key)).box for key in range(count)]
        pixels = sum(box.height * box.width for box in boxes) / count
        moved = channels * (pixels * image.itemsize + _SIZE**2 * 4)
        with one_thread():
            times = interleaved(
                {name: partial(augment_all, call) for name, call in CONTENDERS.items()}, options.seconds
            )
            about = machine() | {name: require(name, "dev").__version__ for name in ("cv2", "torchvision")}
        print(f"{kind}, {_SHAPE[0]} x {_SHAPE[1]} to {_SIZE}, an image: at least {moved / 1e6:.2f} MB")
        print(table_row("", "ms", "p20", "p80", "images/s", "x publ."))
        for name, time in times.items():
            each = {key: seconds / count for key, seconds in vars(time).items()}
            speedup = times["published"].median / time.median
            cells = [f"{seconds * 1e3:.3f}" for seconds in each.values()]
            print(table_row(name, *cells, f"{1 / each['median']:.0f}", f"{speedup:.2f}"), flush=True)
            line: Line = {"bench": "augment", **about, "kind": kind, "dtype": np.dtype(dtype).name}
            line |= {"height": _SHAPE[0], "width": _SHAPE[1], "size": _SIZE, "contender": name, **each}
            line |= {"images_per_second": 1 / each["median"], "speedup": speedup, "bytes": round(moved)}
            if copy is not None:
                line |= {"copy_share": moved / each["median"] / 1e9 / copy, "copy_gbs": copy}
            if name == "dexcore":
                line |= judged(
                    *(
                        Goal(f"times the images per second of {chain}", times[chain].median / time.median, SPEEDUP)
                        for chain in ("published", "torchvision")
                    )
                )
            lines.append(line)
    return lines


if __name__ == "__main__":
    run(__doc__, {"augment": sys.modules[__name__]})
