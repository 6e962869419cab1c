"""DICOM files grouped into series, and series into volumes: by unique identifiers and positions, never by names."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from dexcore.data.readers.dicom import Frames, finish, read_frames
from dexcore.data.readers.dicom_file import naming
from dexcore.data.readers.dicom_geometry import Place
from dexcore.data.readers.dicom_header import Header, read_header
from dexcore.data.readers.gray_stack import GrayStack
from dexcore.data.readers.scan import RefusedError, Scan, check_size

MIN_SLICES = 3  # with two, nothing shows whether the distance between slices is regular
_SAME_POSITION = 0.01  # of the distance between slices
_STEP_TOLERANCE = 0.05  # of the distance between slices: writers round positions
_SHEAR_TOLERANCE = 0.05  # sideways, of the way along the normal: more is a tilted gantry
_SPACING_TOLERANCE = 1e-3  # of the distance between pixels
_DIRECTION_TOLERANCE = 1e-3  # of direction cosines within a series


@dataclass(frozen=True)
class Series:
    """Files that belong together.

    Attributes:
        paths: in the order of positions where it is a volume, else of instance numbers.
        volume: whether the files (or the frames of the one file) are the slices of one regular volume.
        reason: why it is no volume; empty where it is one.
    """

    paths: tuple[str, ...]
    volume: bool
    reason: str = ""


@dataclass(frozen=True)
class _Stack:
    """Slices in order: ``order`` sorts them along ``normal``, ``step`` mm apart."""

    order: tuple[int, ...]
    orientation: tuple[float, ...]
    step: float


def group_series(headers: Mapping[str, Header]) -> list[Series]:
    """Group the headers of images (others are left out) by series; a file of several frames is one of its own.

    Copies of an instance (one object in two folders) go into a series of copies, so that both stay volumes.

    Args:
        headers: by path.

    Returns:
        in the order in which the first file of each was given.
    """
    groups: dict[tuple[str | int | None, ...], list[str]] = {}
    copies: Counter[tuple[str | None, ...]] = Counter()
    for path, header in headers.items():
        if not header.is_image:
            continue
        alone = header.series is None or header.frames > 1
        instance = (header.study, header.series, header.instance or path)
        groups.setdefault((*instance[:2], path if alone else None, copies[instance]), []).append(path)
        copies[instance] += 1
    return [_series(paths, headers) for paths in groups.values()]


def _series(paths: Sequence[str], headers: Mapping[str, Header]) -> Series:
    members = [headers[path] for path in paths]
    try:
        stack = _stack(members)
    except RefusedError as error:
        by_number = sorted(paths, key=lambda path: (headers[path].number is None, headers[path].number or 0))
        return Series(tuple(by_number), False, str(error))
    if len(paths) == 1:
        return Series(tuple(paths), True)
    return Series(tuple(paths[index] for index in stack.order), True)


def _stack(headers: Sequence[Header]) -> _Stack:
    """The order and distance of slices.

    Raises:
        RefusedError: they are no volume, and why.
    """
    if len(headers) == 1 and headers[0].frames > 1:
        places: Sequence[Place] = headers[0].frame_places
        if not places:
            raise RefusedError("the frames have no positions")
    else:
        if len(headers) < MIN_SLICES:
            raise RefusedError(f"{len(headers)} slices, a volume has at least {MIN_SLICES}")
        for what in ("rows", "columns", "frame_of_reference"):
            values = {getattr(header, what) for header in headers}
            if len(values) > 1:
                raise RefusedError(f"the slices differ in {what.replace('_', ' ')}")
        places = [Place(h.position, h.orientation) for h in headers if h.position and h.orientation]
        if len(places) < len(headers):
            raise RefusedError(f"{len(headers) - len(places)} of {len(headers)} slices have no position")
    spacings = [header.spacing for header in headers if header.spacing]
    if len(spacings) < len(headers):
        raise RefusedError("the distance between pixels is missing")
    if np.ptp(spacings, axis=0).max() > _SPACING_TOLERANCE * np.min(spacings):
        raise RefusedError("the slices differ in spacing")
    return _regular(places)


def _regular(places: Sequence[Place]) -> _Stack:
    if len(places) < MIN_SLICES:
        raise RefusedError(f"{len(places)} slices, a volume has at least {MIN_SLICES}")
    orientations = np.array([place.orientation for place in places])
    if np.ptp(orientations, axis=0).max() > _DIRECTION_TOLERANCE:
        raise RefusedError("the slices differ in orientation")
    normal = np.cross(orientations[0, :3], orientations[0, 3:])
    positions = np.array([place.position for place in places])
    distances = positions @ normal
    order = np.argsort(distances, kind="stable")
    steps = np.diff(distances[order])
    step = float(np.median(steps))
    if steps.min() <= _SAME_POSITION * max(step, float(steps.max())):
        raise RefusedError("several slices at one position (time points, echoes)")
    if np.abs(steps - step).max() > _STEP_TOLERANCE * step:
        raise RefusedError(f"slices {steps.min():.3g} to {steps.max():.3g} mm apart, expected one distance")
    way = positions[order[-1]] - positions[order[0]]
    sideways = np.linalg.norm(way - normal * (way @ normal))
    if sideways > _SHEAR_TOLERANCE * abs(way @ normal):
        raise RefusedError("the slices are shifted against each other (a tilted gantry)")
    mean = float(distances[order[-1]] - distances[order[0]]) / (len(places) - 1)
    return _Stack(tuple(int(index) for index in order), tuple(orientations[0]), mean)


def _canonical(stack: _Stack) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Which of (slice, row, column) goes along x, y, z, and which must be turned to run right, front, head."""
    column, row = np.array(stack.orientation[:3]), np.array(stack.orientation[3:])
    to_right_front_head = np.array([-1, -1, 1])  # DICOM's axes run left, back, head
    directions = np.stack([np.cross(column, row), row, column]) * to_right_front_head
    axes = max(permutations(range(3)), key=lambda order: sum(abs(directions[order[axis], axis]) for axis in range(3)))
    return axes, tuple(bool(directions[axes[axis], axis] < 0) for axis in range(3))


def read_series(paths: Sequence[str | os.PathLike[str]]) -> Scan:
    """Read the files of one series, in any order, or one file of several frames, as a volume.

    Oblique slices go along the nearest axes. The frames are read one by one into one array.

    Returns:
        A scan of layout "volume": [x, y, z], int16 or uint16 where all values are such whole numbers, else float32;
        with spacing.

    Raises:
        UnreadableFileError: a file cannot be read (named), or the files are no volume (the first is named).
    """
    headers = [read_header(path) for path in paths]
    with naming(paths[0]):
        stack = _stack(headers)
        rows, columns = headers[0].rows or 0, headers[0].columns or 0
        check_size(rows, columns, len(stack.order))
        frames = Frames(GrayStack(len(stack.order), rows, columns))
        if len(paths) == 1:
            read_frames(paths[0], frames, {index: slot for slot, index in enumerate(stack.order)})
    if len(paths) > 1:
        for slot, index in enumerate(stack.order):
            with naming(paths[index]):
                read_frames(paths[index], frames, {0: slot})
    with naming(paths[0]):
        finish(frames)
    axes, turned = _canonical(stack)
    volume = frames.stack.whole_pixels().transpose(axes)[tuple(slice(None, None, -1 if turn else 1) for turn in turned)]
    spacing = (stack.step, *(headers[0].spacing or ()))
    return Scan(
        volume,
        "volume",
        frames.levels,
        None,
        frames.metadata,
        tuple(spacing[axis] for axis in axes),
        frames.units,
    )
