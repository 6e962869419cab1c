"""NumPy arrays: ``.npy``, and ``.npz`` that holds one image or one stack of images. Nothing is unpickled."""

import os
import re
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from dexcore.data.readers.scan import RefusedError, Scan, check_ratio, check_size, make_finite, native

# What arrays of images are called in .npz and HDF5 files; two of them in one file are one too many.
_NAMES_OF_ONE = {"image", "img", "data", "volume", "vol", "scan", "pixels", "x"}
IMAGE_NAMES = _NAMES_OF_ONE | {"images", "imgs", "volumes", "scans", "slices", "frames"}
_MASK = re.compile(r"mask|(?<!un)label|seg|annot|(^|_)gt(_|$)", re.IGNORECASE)
_NUMBERED = re.compile(r"(.*?)(\d+)")


def read_numpy(path: str | os.PathLike[str], every: int = 1) -> Scan:
    """Read a ``.npy`` array: [height, width] or [height, width, 3], or a stack of either.

    Three axes of which the last is 3 are one RGB image; an axis of 1 behind all others is left out.

    Raises:
        RefusedError: a broken header, another shape or dtype, or over a limit.
        ValueError: the header claims more than the file holds, or the array holds Python objects.
    """
    with open(path, "rb") as file:
        _npy_header(file)
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    count, height, width, channels = array_layout(array.shape, array.dtype)
    frames = range(0, count, every)
    check_size(height, width, len(frames), channels)
    if every == 1:
        # Pages of a map would stand in memory beside what is copied from them.
        del array
        array = np.load(path, allow_pickle=False)
    return array_scan(_every(array.reshape((count, height, width, channels)), every), frames)


def read_npz(path: str | os.PathLike[str], every: int = 1) -> Scan:
    """Read the image, or the stack of images, of a ``.npz`` file.

    It is the only array that can be one; else the only one with a name of images (``image``, ``data``, ...); else all,
    where they are one stack: ``arr_0``, ``arr_1``, ... (any name that ends in a number) of one shape and dtype.

    Raises:
        RefusedError: no such array, or several; over a limit; compressed by more than images are.
        Exception: zipfile, zlib and numpy raise many more on broken files.
    """
    with zipfile.ZipFile(path) as archive:
        shapes = {}
        for member in archive.infolist():
            if not member.filename.endswith(".npy") or member.compress_type not in (
                zipfile.ZIP_STORED,
                zipfile.ZIP_DEFLATED,
            ):
                continue
            with archive.open(member) as file:
                shapes[member.filename.removesuffix(".npy")] = _npy_header(file)
        names = choose_array(shapes)
        shape, dtype = shapes[names[0]]
        count, height, width, channels = array_layout(shape if len(names) == 1 else (len(names), *shape), dtype)
        frames = range(0, count, every)
        check_size(height, width, len(frames) if len(names) > 1 else count, channels)
        stack = np.empty((len(frames), *shape), dtype) if len(names) > 1 else np.empty(0)
        for index, name in enumerate(names[::every]):
            member = archive.getinfo(f"{name}.npy")
            check_ratio(member.file_size, member.compress_size)
            nbytes = int(np.prod(shape, dtype=object)) * dtype.itemsize
            if nbytes > member.file_size:
                raise RefusedError(f"{name} claims {nbytes} bytes, the archive holds {member.file_size} of it")
            with archive.open(member) as file:
                array = np.lib.format.read_array(file, allow_pickle=False)
            if len(names) == 1:
                stack = _every(array.reshape((count, height, width, channels)), every)
            else:
                stack[index] = array
    return array_scan(stack.reshape((len(frames), height, width, channels)), frames)


def _every(stack: np.ndarray, every: int) -> np.ndarray:
    """One image in so many, without the others in memory."""
    return stack if every == 1 else stack[::every].copy(order="K")


def _npy_header(file: Any) -> tuple[tuple[int, ...], np.dtype]:
    try:
        major, _ = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    except (ValueError, TypeError, SyntaxError, LookupError, AttributeError, RecursionError):
        # NumPy repeats the words of the header, and they may be a patient's name.
        raise RefusedError("the header of a .npy array that is broken") from None
    return shape, dtype


def choose_array(shapes: Mapping[str, tuple[tuple[int, ...], np.dtype]]) -> list[str]:
    """The name of the one array that is an image or a stack of images, or the names that together are a stack.

    Args:
        shapes: shape and dtype by name; what stands behind the last "/" counts as the name.

    Raises:
        RefusedError: there is none, or more than one.
    """
    images = {name: held for name, held in shapes.items() if _is_image(name, *held)}
    if len(images) > 1:
        named = [name for name in images if name.rpartition("/")[2].lower() in IMAGE_NAMES]
        stack = _one_stack(images)
        if stack and not named:
            return list(stack)
        if len(named) == 1:
            return named
    if len(images) == 1:
        return list(images)
    found = ", ".join(f"{name} {shape} {dtype.name}" for name, (shape, dtype) in list(shapes.items())[:10])
    raise RefusedError(
        f"{len(images)} of {len(shapes)} arrays can be images ({found}), "
        "expected one, or one that is called image or data"
    )


def _is_image(name: str, shape: tuple[int, ...], dtype: np.dtype) -> bool:
    if _MASK.search(name.rpartition("/")[2]) or dtype.kind not in "biuf" or not 2 <= len(shape) <= 4:
        return False
    return 0 not in shape and sorted(shape)[-2] > 4  # no matrix of an affine map


def _one_stack(
    images: Mapping[str, tuple[tuple[int, ...], np.dtype]],
) -> dict[str, tuple[tuple[int, ...], np.dtype]] | None:
    """All, in the order of their numbers, if their names differ in these alone and they are images of one kind."""
    parts = {name: _NUMBERED.fullmatch(name) for name in images}
    stems = {part and part[1] for part in parts.values()}
    if len(stems) > 1 or None in stems or len(set(images.values())) > 1 or len(next(iter(images.values()))[0]) != 2:
        return None
    numbers = {name: int(part[2]) for name, part in parts.items() if part}
    return {name: images[name] for name in sorted(numbers, key=numbers.__getitem__)}


def array_layout(shape: tuple[int, ...], dtype: np.dtype) -> tuple[int, int, int, int]:
    """(images, height, width, channels) of an array: gray or RGB, one image or a stack.

    Raises:
        RefusedError: it is none of these.
    """
    if dtype.kind not in "biuf":  # the name alone: a record's fields are words of the file
        raise RefusedError(f"an array of {dtype.name}, expected integers or floats")
    channels = 3 if len(shape) in (3, 4) and shape[-1] == 3 else 1
    if len(shape) in (3, 4) and shape[-1] in (2, 4):
        raise RefusedError(f"an array of shape {shape}, {shape[-1]} channels, expected gray or RGB")
    axes = shape[:-1] if len(shape) in (3, 4) and shape[-1] in (1, 3) else shape
    if len(axes) not in (2, 3):
        raise RefusedError(f"an array of shape {shape}, expected one image or a stack of them")
    count, height, width = axes if len(axes) == 3 else (1, *axes)
    return count, height, width, channels


def array_scan(stack: np.ndarray, frames: range, spacing: tuple[float, ...] | None = None) -> Scan:
    """The scan of [images, height, width, channels]; 8 and 16 bits say what is white, wider numbers do not.

    The scan takes the array over: what must be changed in it is changed in place.
    """
    stack = stack[..., 0] if stack.shape[3] == 1 else stack
    if stack.dtype.kind == "b":
        pixels = stack.astype(np.uint8)
    else:
        pixels = make_finite(native(stack))
    levels = None
    if stack.dtype.kind == "b":
        levels = (0.0, 1.0)
    elif pixels.dtype in (np.uint8, np.uint16):
        levels = (0.0, float(np.iinfo(pixels.dtype).max))
    return Scan(pixels, "frames", levels, tuple(frames), spacing=spacing)
