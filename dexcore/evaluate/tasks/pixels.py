"""The pixels of a task's images and masks, by the readers of `dexcore.data.readers`.

Images are normalised as a store's would be. Masks stay whole numbers at their own size: nothing is interpolated,
windowed or rounded.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from dexcore.data.assemble.intensity import UnitsError, method_for
from dexcore.data.assemble.read import planes
from dexcore.data.assemble.slices import plane_spacing, slices
from dexcore.data.modality import Modality
from dexcore.data.normalize import Levels, limits, window
from dexcore.data.readers import Scan, UnreadableFileError, read_file
from dexcore.data.readers.kind import Kind, file_kind
from dexcore.data.readers.scan import unreadable
from dexcore.data.record import AXES
from dexcore.data.sources.recipe import Units
from dexcore.evaluate.tasks.places import located
from dexcore.evaluate.tasks.spec import MaskValues
from dexcore.extras import require

_OPEN = 2  # files whose pixels stay in memory: a volume and its mask are read slice after slice


class PixelsError(ValueError):
    """An image or a mask is not what the task says; the message names the file."""


@dataclass
class Opened:
    """A file that was read: a scan, and its values of black and white by normalization."""

    path: Path
    scan: Scan
    levels: dict[str, Levels] = field(default_factory=dict)


@dataclass(frozen=True)
class Plane:
    """One 2-D image as it was read.

    Attributes:
        opened: its file.
        pixels: [height, width] or [height, width, 3].
        spacing: mm between rows and between columns.
    """

    opened: Opened
    pixels: np.ndarray
    spacing: tuple[float, float] | None


def read_plane(path: str) -> Plane:
    """Read one image; its path may end in its place in the file (`places`).

    Raises:
        PixelsError: the file is missing or cannot be read, or holds no such place, or several without a place.
    """
    file, inside, index = located(path)
    opened = _open(file, inside if inside not in (None, *AXES) else None, index)
    scan = opened.scan
    if scan.layout == "volume":
        return _slice(opened, inside, index)
    if inside is not None and inside in AXES:
        raise PixelsError(f"{file}: holds pictures and no volume, {path!r} asks for a slice of one")
    if opened.path != file:  # one image of an array
        index = None
    numbers = list(scan.frames or range(len(scan.held)))
    if index is None and len(numbers) > 1:
        raise PixelsError(f"{file}: holds {len(numbers)} images, expected one, or its number as {path}#0")
    if index is not None and index not in numbers:
        raise PixelsError(f"{file}: holds no image number {index}, it holds {len(numbers)}")
    image = np.asarray(scan.held[0 if index is None else numbers.index(index)])
    if image.ndim == 3 and (image == image[..., :1]).all():
        image = image[..., 0]  # gray, in three channels
    spacing = (scan.spacing[0], scan.spacing[1]) if scan.spacing else None
    return Plane(opened, image, spacing)


def places_in(path: Path, axis: int | None = None) -> list[tuple[str, tuple[float, float] | None]]:
    """The places of all images in a file ("" where it is one), and mm between the rows and columns of each.

    Raises:
        PixelsError: it cannot be read.
    """
    scan = _open(path, None, None).scan
    return [(place, spacing) for place, _, spacing in planes(scan, None if axis is None else (axis,))]


def _slice(opened: Opened, inside: str | None, index: int | None) -> Plane:
    shape = opened.scan.held.shape
    if inside is None or index is None:
        if 1 not in shape:
            raise PixelsError(f"{opened.path}: is a volume of {shape}, expected a slice, as #axial=12")
        inside, index = AXES[shape.index(1)], 0
    axis = AXES.index(inside)
    if index >= shape[axis]:
        raise PixelsError(f"{opened.path}: has {shape[axis]} {inside} slices, none of number {index}")
    plane = next(islice(slices(opened.scan.held, axis), index, None))
    return Plane(opened, np.ascontiguousarray(plane), plane_spacing(opened.scan.spacing, axis))


def _open(file: Path, array: str | None, index: int | None) -> Opened:
    try:
        stat = file.stat()
        key = (file, stat.st_size, stat.st_mtime_ns)
        return _of_array(*key, array, index or 0) if array else _of_file(*key)
    except OSError as error:
        raise PixelsError(f"{file}: {error.strerror or error}") from error
    except UnreadableFileError as error:
        raise PixelsError(str(error)) from error


@lru_cache(_OPEN)
def _of_file(file: Path, size: int, changed: int) -> Opened:
    return Opened(file, read_file(file))


def _of_array(file: Path, size: int, changed: int, name: str, index: int) -> Opened:
    stack = _array(file, size, changed, name)
    if stack.ndim not in (3, 4) or stack.dtype != np.uint8 or (stack.ndim == 4 and stack.shape[3] != 3):
        raise PixelsError(f"{file}: {name} is {stack.dtype} {stack.shape}, expected uint8 images, gray or RGB")
    if index >= len(stack):
        raise PixelsError(f"{file}: {name} holds {len(stack)} images, none of number {index}")
    return Opened(Path(f"{file}#{name}={index}"), Scan(stack[index : index + 1], "frames", (0.0, 255.0), (0,)))


@lru_cache(2)
def _array(file: Path, size: int, changed: int, name: str) -> np.ndarray:
    with unreadable(file), np.load(file, allow_pickle=False) as arrays:
        if name not in arrays:
            raise KeyError(f"no array {name}, it holds {', '.join(arrays)}")
        return arrays[name]


def read_labels(path: str, colours: bool = False) -> np.ndarray:
    """The values of a mask as they are stored: whole numbers [height, width], or colours uint8 [height, width, 3].

    Of a PNG with a palette these are the palette's indices, unless ``colours`` are wanted. Floats that are whole
    numbers are taken as such.

    Raises:
        PixelsError: as `read_plane`, or the values are no whole numbers from 0.
    """
    file, inside, index = located(path)
    indices = _palette_indices(file) if inside is None and index is None and not colours else None
    values = read_plane(path).pixels if indices is None else indices
    if values.dtype.kind == "f":
        whole = values.astype(np.int64)
        if not (whole == values).all():
            raise PixelsError(f"{file}: holds {values[whole != values].flat[0]}, expected whole numbers: is it a mask?")
        values = whole
    if values.size and values.min() < 0:
        raise PixelsError(f"{file}: holds {values.min()}, expected whole numbers from 0")
    return values


def _palette_indices(file: Path) -> np.ndarray | None:
    try:
        if file_kind(file) is not Kind.PNG:
            return None
        with open(file, "rb") as head:
            if head.read(26)[25] != 3:  # its colour type: a palette
                return None
        with unreadable(file), require("PIL.Image", "train").open(file, formats=["PNG"]) as image:
            return np.array(image)
    except OSError as error:
        raise PixelsError(f"{file}: {error.strerror or error}") from error
    except UnreadableFileError as error:
        raise PixelsError(str(error)) from error


def geometry_problem(image: str, mask: str) -> str:
    """What of a mask's place in space is not the image's; empty where they agree, or nobody states it.

    Of two NIfTI files the affines are compared, to a thousandth of a voxel's size; of others the spacing.
    """
    one, two = (located(path)[0] for path in (image, mask))
    if file_kind(one) is Kind.NIFTI and file_kind(two) is Kind.NIFTI:
        nibabel = require("nibabel", "data")
        try:
            with unreadable(two):
                affines = [nibabel.load(file).affine for file in (one, two)]
        except UnreadableFileError as error:
            return f"{two}: its affine cannot be compared with that of {one}: {error.reason}"
        size = np.linalg.norm(affines[0][:3, :3], axis=0).min()
        if not np.allclose(affines[0], affines[1], rtol=0, atol=1e-3 * size):
            worst = np.abs(affines[0] - affines[1]).max()
            return f"{two}: its affine is not that of {one}, they differ by up to {worst:.4g}"
        return ""
    here, there = (read_plane(path).spacing for path in (image, mask))
    if here and there and not np.allclose(here, there, rtol=1e-3):
        return f"{two}: its spacing is {there}, that of {one} is {here}"
    return ""


def to_classes(values: np.ndarray, mapping: MaskValues | None, classes: int, ignore: int | None) -> np.ndarray:
    """The indices of classes, [height, width], of what a mask holds.

    Args:
        values: as `read_labels` gives them.
        mapping: what they stand for; None: they are the indices.
        classes: how many there are.
        ignore: the value of pixels that do not count.

    Returns:
        The smallest unsigned type that holds all classes and ``ignore``.

    Raises:
        PixelsError: a value that stands for nothing; without the name of the file.
    """
    kind = np.min_scalar_type(max(classes - 1, ignore or 0))
    if mapping is not None and mapping.colours:
        return _from_colours(values, mapping, kind)
    if values.ndim == 3:
        raise PixelsError("holds colours, expected whole numbers, or mask_values with colours")
    found = np.unique(values)
    targets = np.full(len(found), -1, np.int64)
    if mapping is None:
        own = (found < classes) | (found == ignore)
        targets[own] = found[own]
        known = f"0 to {classes - 1}{'' if ignore is None else f', or {ignore} to ignore'}"
    else:
        for low, high, target in mapping.ranges:
            targets[(found >= low) & (found <= high)] = target
        known = ", ".join(f"{low}" if low == high else f"{low}-{high}" for low, high, _ in mapping.ranges)
    unknown = found[targets < 0]
    if unknown.size:
        more = f" and {unknown.size - 1} more" if unknown.size > 1 else ""
        raise PixelsError(f"holds the value {unknown[0]}{more}, which stands for no class: expected {known}")
    return targets[np.searchsorted(found, values)].astype(kind)


def _from_colours(values: np.ndarray, mapping: MaskValues, kind: Any) -> np.ndarray:
    if values.ndim == 2:
        values = np.repeat(values[..., None], 3, axis=2)  # gray ones
    packed = values.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
    out = np.full(packed.shape, -1, np.int64)
    for (red, green, blue), target in mapping.colours.items():
        out[packed == red << 16 | green << 8 | blue] = target
    if (out < 0).any():
        raise PixelsError(f"holds the colour #{packed[out < 0].flat[0]:06x}, which stands for no class")
    return out.astype(kind)


def normalised(
    plane: Plane,
    modality: Modality,
    wanted: str | None,
    units: Units | None,
    declared: Levels | None,
) -> tuple[np.ndarray, str]:
    """An image in [0, 1], float32, and the normalization that brought it there: over its whole file, as a store's.

    Args:
        plane: the image.
        modality: of it.
        wanted: the normalization; None: by modality.
        units: of a file that does not say them.
        declared: the values of black and white. Pixels beyond them are refused.

    Raises:
        PixelsError: pixels beyond the declared range; units that the normalization is not for; or black and white that
            nobody states, where the normalization needs them.
    """
    opened, scan = plane.opened, plane.opened.scan
    try:
        method = method_for(modality, scan, wanted, units)
    except UnitsError as error:
        raise PixelsError(f"{opened.path}: {error}") from error
    if declared is not None:
        low, high = plane.pixels.min().item(), plane.pixels.max().item()
        if low < declared[0] or high > declared[1]:
            held = low if low < declared[0] else high
            raise PixelsError(f"{opened.path}: holds {held:g}, the task's range is {declared[0]:g} to {declared[1]:g}")
    if method == "div255":
        levels = declared or scan.levels
        if levels is None and scan.held.dtype != np.uint8:
            raise PixelsError(
                f"{opened.path}: holds {scan.held.dtype} values, and nobody states which are black and white: "
                "expected range in the task's YAML, as range: [0, 1]"
            )
        return window(plane.pixels, levels or (0.0, 255.0)), method
    if method not in opened.levels:
        opened.levels[method] = limits(scan.held, method, scan.levels)
    return window(plane.pixels, opened.levels[method]), method
