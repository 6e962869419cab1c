"""HDF5 files that hold one image, or one stack of images: fastMRI's, h5py's and MATLAB's (7.3) plain datasets."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from dexcore.checks import check_whole
from dexcore.data.readers.arrays import array_layout, array_scan, choose_array
from dexcore.data.readers.scan import RATIO_FROM_BYTES, RefusedError, Scan, check_ratio, check_size, unreadable
from dexcore.extras import require

_MAX_OBJECTS = 10_000
_MAX_DEPTH = 16
_MAX_VALUES = 10_000_000
_MAX_CHUNK_BYTES = 1 << 29
# Built into HDF5 and h5py; for others HDF5 would load a plugin.
_FILTERS = {1: "deflate", 2: "shuffle", 3: "fletcher32", 4: "szip", 5: "nbit", 6: "scaleoffset", 32000: "lzf"}
_FASTMRI = ("reconstruction_rss", "reconstruction_esc")  # two ways to reconstruct the same slices


def read_hdf5(path: str | os.PathLike[str], every: int = 1) -> Scan:
    """Read the one dataset that is an image or a stack of images, as `read_npz` chooses among arrays.

    Of a file of fastMRI that is the root-sum-of-squares reconstruction, else the emulated single coil. Links to other
    places and files are not followed.

    Args:
        path: the file.
        every: read one image in this many; the others are not decompressed where they lie in chunks of their own.

    Returns:
        A scan of layout "frames".

    Raises:
        RefusedError: no such dataset, or several; stored in other files or through filters that are not HDF5's own;
            larger than the file can hold; over a limit.
        Exception: h5py raises OSError, KeyError and others on broken files.
    """
    with _opened(path, None) as dataset:
        order = _order(dataset)
        count, height, width, channels = array_layout(tuple(dataset.shape[axis] for axis in order), dataset.dtype)
        frames = range(0, count, every)
        check_size(height, width, len(frames), channels)
        check_ratio(len(frames) * height * width * channels * dataset.dtype.itemsize, dataset.id.get_storage_size())
        pixels = dataset[::every] if count > 1 else dataset[()]
    return array_scan(pixels.transpose(order).reshape((len(frames), height, width, channels)), frames)


def iterate_hdf5(
    path: str | os.PathLike[str], name: str | None = None, every: int = 1
) -> Iterator[tuple[int, np.ndarray]]:
    """Give one image in ``every`` of a dataset, with one image in memory: a stack that no `Scan` can hold.

    Args:
        path: the file.
        name: the dataset's path in the file; without it, the one that `read_hdf5` reads.
        every: give one image in this many.

    Yields:
        the image's number; [height, width] or [height, width, 3] in the file's type.

    Raises:
        UnreadableFileError: as `read_hdf5`, also after images that were sound.
        MissingExtraError: h5py is not installed.
        ValueError: ``every`` is less than 1.
    """
    check_whole("every", every, 1)
    images = _images(path, name, every)
    while True:
        with unreadable(path):
            found = next(images, None)
        if found is None:
            return
        yield found


def hdf5_values(path: str | os.PathLike[str], name: str) -> list[str]:
    """The texts or numbers of a dataset of one axis: what a file says about each of its images.

    Raises:
        UnreadableFileError: no such dataset, or of another kind; over a limit; stored elsewhere.
        MissingExtraError: h5py is not installed.
    """
    h5py = require("h5py", "data")
    with unreadable(path), open(path, "rb") as handle, h5py.File(handle, "r") as file:
        dataset = _linked(h5py, file, name)
        if len(dataset.shape or ()) != 1 or dataset.shape[0] > _MAX_VALUES or dataset.dtype.kind not in "iufSO":
            raise RefusedError(f"dataset {name} is no list of at most {_MAX_VALUES} texts or numbers")
        _check_storage(h5py, dataset, held=os.path.getsize(path))
        if dataset.dtype.kind in "SO":
            if h5py.check_string_dtype(dataset.dtype) is None:
                raise RefusedError(f"dataset {name} holds neither texts nor numbers")
            return [text.decode("utf-8", "surrogateescape") for text in dataset[()]]
        return [str(number) for number in dataset[()]]


def _images(path: str | os.PathLike[str], name: str | None, every: int) -> Iterator[tuple[int, np.ndarray]]:
    with _opened(path, name) as dataset:
        order = _order(dataset)
        count, height, width, channels = array_layout(tuple(dataset.shape[axis] for axis in order), dataset.dtype)
        check_size(height, width, channels=channels)
        for index in range(0, count, every):
            pixels = dataset[index : index + 1] if count > 1 else dataset[()]
            yield index, array_scan(pixels.transpose(order).reshape((1, height, width, channels)), range(1)).pixels[0]


@contextmanager
def _opened(path: str | os.PathLike[str], name: str | None) -> Iterator[Any]:
    """The dataset of images, after all was checked but the size of what is read of it."""
    h5py = require("h5py", "data")
    with open(path, "rb") as handle, h5py.File(handle, "r") as file:
        dataset = _chosen(h5py, file) if name is None else _linked(h5py, file, name)
        _check_storage(h5py, dataset, held=os.path.getsize(path))
        yield dataset


def _chosen(h5py: Any, file: Any) -> Any:
    datasets = _datasets(h5py, file)
    shapes = {name: (dataset.shape, dataset.dtype) for name, dataset in datasets.items() if dataset.shape is not None}
    if not shapes:
        raise RefusedError("no dataset of numbers in it; links to other places and files are not followed")
    reconstructions = [name for name in _FASTMRI if name in shapes]
    names = reconstructions[:1] or choose_array(shapes)
    if len(names) > 1:
        raise RefusedError(f"{len(names)} datasets can be images, expected one or a stack in one")
    return datasets[names[0]]


def _linked(h5py: Any, file: Any, name: str) -> Any:
    """A dataset by its path, through hard links alone."""
    item = file
    for part in name.strip("/").split("/"):
        link = item.get(part, getlink=True) if isinstance(item, h5py.Group) and part not in ("", ".", "..") else None
        if not isinstance(link, h5py.HardLink):
            raise RefusedError(f"no dataset {name} in it; links to other places and files are not followed")
        item = item[part]
    if not isinstance(item, h5py.Dataset):
        raise RefusedError(f"{name} is no dataset")
    return item


def _datasets(h5py: Any, file: Any) -> dict[str, Any]:
    """All numeric datasets by their paths, through hard links alone, each object once."""
    found: dict[str, Any] = {}
    seen: set[int] = set()
    groups = [("", file)]
    while groups:
        prefix, group = groups.pop()
        for name in group:
            if len(seen) > _MAX_OBJECTS:
                raise RefusedError(f"more than {_MAX_OBJECTS} objects, expected one dataset of images")
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                continue
            item = group[name]
            address = h5py.h5o.get_info(item.id).addr
            if address in seen:
                continue
            seen.add(address)
            if isinstance(item, h5py.Group):
                if prefix.count("/") < _MAX_DEPTH:
                    groups.append((f"{prefix}{name}/", item))
            elif isinstance(item, h5py.Dataset) and _is_numeric(h5py, item):
                found[f"{prefix}{name}"] = item
    return found


def _is_numeric(h5py: Any, dataset: Any) -> bool:
    """Text, references and compounds have types whose NumPy form is built from the file: they are not looked at."""
    return dataset.id.get_type().get_class() in (h5py.h5t.INTEGER, h5py.h5t.FLOAT, h5py.h5t.ENUM)


def _order(dataset: Any) -> tuple[int, ...]:
    """The axes as NumPy's users lay them. MATLAB's rows, its first axis, come last: [images, colour, width, height]."""
    axes = len(dataset.shape)
    if "MATLAB_class" not in dataset.attrs:
        return tuple(range(axes))
    if axes == 4 or (axes == 3 and dataset.shape[0] != 3):
        return (0, *range(axes - 1, 0, -1))
    return tuple(range(axes - 1, -1, -1))


def _check_storage(h5py: Any, dataset: Any, held: int) -> None:
    if dataset.is_virtual or dataset.external:
        raise RefusedError("its numbers lie in other files, expected them inside")
    properties = dataset.id.get_create_plist()
    for number in range(properties.get_nfilters()):
        code = properties.get_filter(number)[0]
        if code not in _FILTERS:
            raise RefusedError(f"stored through filter {code}, expected HDF5's own: {', '.join(_FILTERS.values())}")
    stored = dataset.id.get_storage_size()
    if stored > held:
        raise RefusedError(f"the dataset claims {stored} bytes, the file holds {held}")
    if not stored:
        raise RefusedError("a dataset that was never written")
    declared = math.prod(dataset.shape) * dataset.dtype.itemsize
    chunk = math.prod(dataset.chunks or (0,)) * dataset.dtype.itemsize  # HDF5 takes memory for a whole one
    if chunk > min(max(RATIO_FROM_BYTES, 2 * declared), _MAX_CHUNK_BYTES):
        raise RefusedError(f"chunks of {chunk} bytes for {declared} bytes of pixels")
