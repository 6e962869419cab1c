"""What a reader gives, the one error it raises, and the sizes above which it refuses."""

import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from dexcore.data.coded import Coded, Pixels
from dexcore.extras import MissingExtraError

# Ours, against files that claim (or inflate to) more than any scanner or camera gives.
MAX_FRAME_PIXELS = 1 << 26  # one 2-D image: 67 megapixels; mammograms have 25
MAX_SCAN_VALUES = 1 << 29  # all that is read of one file: 512 x 512 x 2048 voxels, 2 GiB as float32
MAX_INFLATED_BYTES = 1 << 28  # a deflated DICOM data set
# Deflate shrinks zeros to a thousandth, images hardly ever to a hundredth. Small files are not worth a question.
MAX_RATIO = 200
RATIO_FROM_BYTES = 1 << 26


class UnreadableFileError(ValueError):
    """A file cannot be read as an image.

    Attributes:
        path: the file.
        reason: what is wrong with it, or what was expected.
    """

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        super().__init__(f"{os.fspath(path)}: {reason}")
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[type["UnreadableFileError"], tuple[str | os.PathLike[str], str]]:
        return type(self), (self.path, self.reason)  # it travels between processes


class RefusedError(Exception):
    """Raised inside a reader with the reason alone; `read_file` adds the path."""


@contextmanager
def unreadable(path: str | os.PathLike[str]) -> Iterator[None]:
    """Whatever goes wrong while a file is read becomes an UnreadableFileError with its path and reason.

    Only what says that this installation, not the file, lacks something stays as it is (MissingExtraError). What the
    libraries warn about meanwhile is either read well all the same or raised as an error.
    """
    try:
        with _quiet():
            yield
    except (MissingExtraError, UnreadableFileError):
        raise
    except RefusedError as error:
        raise UnreadableFileError(path, str(error)) from error
    except Exception as error:  # the libraries raise whatever a broken file makes them stumble over
        raise UnreadableFileError(path, f"{type(error).__name__}: {error}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("pydicom", "nibabel.global", "tifffile", "PIL")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@dataclass(frozen=True)
class Scan:
    """The raw pixels of one file.

    Attributes:
        held: the pixels, or codes of them at half the size (`dexcore.data.coded`), of which `numpy.asarray` makes the
            pixels of any part.
        layout: "frames" for an image, a video or a stack of slices; "volume" for a volume that can be cut
            along three axes.
        levels: the pixel values that stand for black and white, from the file's window or its stored bits;
            None where the file does not say (floats).
        frames: the number in the file of each entry of the first axis (None for a volume).
        metadata: what the file says about itself, under DICOM's keywords (``Modality``, ``PatientID``, ...).
        spacing: mm between pixels: (between rows, between columns) for frames, along (x, y, z) for a volume; a file
            that knows the ratio alone gives it with the smaller side as 1. None where the file does not say.
        units: what the values measure, "HU" or "SUV"; None for other units and where the file does not say.
        volumes: how many volumes the file holds, of which this is one (time points, diffusion directions).
    """

    held: Pixels
    layout: Literal["frames", "volume"]
    levels: tuple[float, float] | None = None
    frames: tuple[int, ...] | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    spacing: tuple[float, ...] | None = None
    units: Literal["HU", "SUV"] | None = None
    volumes: int = 1

    @property
    def pixels(self) -> np.ndarray:
        """All pixels, any integer or float dtype, finite; from then on codes are kept no more.

        [frames, height, width], [frames, height, width, 3] (RGB), or, where ``layout`` is "volume", [x, y, z] with x to
        the patient's right, y to the front, z to the head.
        """
        return self.held.widened() if isinstance(self.held, Coded) else self.held


def check_size(height: int, width: int, frames: int = 1, channels: int = 1) -> None:
    """Refuse what is empty or larger than the limits above, before memory is taken for it.

    Raises:
        RefusedError: with the size and the limit.
    """
    shape = f"{frames} x {height} x {width} x {channels}"
    if min(height, width, frames, channels) < 1:
        raise RefusedError(f"{shape} (frames, height, width, channels) holds no pixel")
    if height * width > MAX_FRAME_PIXELS:
        raise RefusedError(f"{height} x {width} pixels, expected at most {MAX_FRAME_PIXELS}")
    if frames * height * width * channels > MAX_SCAN_VALUES:
        raise RefusedError(f"{shape} values, expected at most {MAX_SCAN_VALUES}")


def check_ratio(inflated: int, compressed: int) -> None:
    """Refuse a bomb: what is large, and was compressed by more than images are.

    Raises:
        RefusedError: with both sizes.
    """
    if inflated > RATIO_FROM_BYTES and inflated > MAX_RATIO * compressed:
        raise RefusedError(f"{compressed} bytes that inflate to {inflated}, expected at most {MAX_RATIO} times as many")


def native(pixels: np.ndarray) -> np.ndarray:
    """The same numbers in this machine's byte order; turned where they lie if they can be written to."""
    order = pixels.dtype.newbyteorder("=")
    if pixels.dtype == order or not pixels.flags.writeable:
        return pixels.astype(order, copy=False)
    return pixels.byteswap(inplace=True).view(order)


def make_finite(pixels: np.ndarray) -> np.ndarray:
    """Put the smallest finite value for NaN (outside the field of view) and -inf, the largest for +inf.

    Args:
        pixels: changed in place where it can be written to, one entry of the first axis after the other: large volumes
            need no second copy.

    Raises:
        RefusedError: no value is finite.
    """
    if not np.issubdtype(pixels.dtype, np.floating):
        return pixels
    low, high, broken = np.inf, -np.inf, []
    for number, part in enumerate(pixels):
        finite = np.isfinite(part)
        if not finite.all():
            broken.append(number)
            part = part[finite]
        if part.size:
            low, high = min(low, part.min()), max(high, part.max())
    if low > high:
        raise RefusedError("no pixel is finite")
    if broken and not pixels.flags.writeable:
        pixels = pixels.copy()
    for number in broken:
        pixels[number] = np.nan_to_num(pixels[number], nan=low, neginf=low, posinf=high)
    return pixels
