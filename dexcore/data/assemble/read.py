"""One task of a build: files in, rows of a store out, and for all else the reason.

read -> normalise -> slice -> filter -> hash and encode, an image at a time; a fault ends at its file's border.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dexcore.data.assemble.discover import ARCHIVES, Item
from dexcore.data.assemble.drawn import draw
from dexcore.data.assemble.examples import Drawn, Example, middle, picture
from dexcore.data.assemble.filter import MIN_SIDE, reject_reason
from dexcore.data.assemble.hand import Hand
from dexcore.data.assemble.inside import items_inside
from dexcore.data.assemble.intensity import UnitsError, method_for
from dexcore.data.assemble.masks import looks_like_labels
from dexcore.data.assemble.options import Settings
from dexcore.data.assemble.reasons import Reject, reason_of
from dexcore.data.assemble.slices import acquired_axis, plane_spacing, slices, square
from dexcore.data.assemble.split import UnplacedError
from dexcore.data.assemble.walk import Found
from dexcore.data.modality import Modality
from dexcore.data.normalize import limits, window
from dexcore.data.readers import Scan, UnreadableFileError, read_file
from dexcore.data.readers.arrays import array_scan
from dexcore.data.readers.hdf5 import hdf5_values, iterate_hdf5
from dexcore.data.readers.kind import Kind
from dexcore.data.readers.series import read_series
from dexcore.data.readers.slide import iterate_tiles
from dexcore.data.readers.video import iterate_video
from dexcore.data.record import ImageRecord, slice_place
from dexcore.data.sources.recipe import InFile, Recipe
from dexcore.data.store.manifest import Row, schema
from dexcore.data.store.row import encode_row
from dexcore.data.store.write import BATCH_ROWS
from dexcore.extras import require
from dexcore.files import write_whole

_BATCH_BYTES = 2 << 20  # of rows that wait beside a volume in memory
VIDEO_EVERY = 30  # videos keep one frame in 30 (method, section 6)
_PIECEWISE = (Kind.VIDEO, Kind.SLIDE)  # frames and tiles, never all at once; none of them is a mask
_BURNED_IN = "text is burned in, as its header says"
# Of these, a DICOM file of several frames is a video.
_MOVING = (Modality.ULTRASOUND, Modality.ENDOSCOPY, Modality.XRAY)


@dataclass(frozen=True)
class Task:
    """Items that are read one after the other, and where their rows go: ``target`` + ``.arrow`` and ``.json``.

    ``folder`` is where their source begins, below the folder that is built.
    """

    settings: Settings
    recipe: Recipe
    folder: str
    items: Sequence[Item]
    target: str


def build_task(task: Task, hand: Hand) -> None:
    """Read a task's items; its two files appear when all is done, the rows before the outcome.

    Raises:
        OSError: the files cannot be written.
    """
    writer = _RowsFile(Path(f"{task.target}.arrow"))
    rejects: list[Reject] = []
    drawn = Drawn()
    try:
        for index, item in enumerate(task.items):
            dead = hand.take(index, item.size)
            if dead is not None:
                if item.dropped:
                    continue
                rejects.append(Reject(task.settings.shown(item.files[0].path), dead))
                continue
            for result in _records(task, item, hand):
                if isinstance(result, Reject):
                    _draw_example(drawn, result, item.modality)
                    if not item.dropped:
                        rejects.append(replace(result, image=None))
                else:
                    writer.add(encode_row(result, task.settings.max_side) | {"kind": item.kind.value})
            hand.drop()
        size = writer.close()
    finally:
        writer.discard()
    outcome = {
        "size": size,
        "rejects": [(reject.path, reject.reason) for reject in rejects],
        "examples": [asdict(example) for example in drawn],
    }
    write_whole(Path(f"{task.target}.json"), json.dumps(outcome).encode())


def _draw_example(drawn: Drawn, reject: Reject, modality: Modality | None) -> None:
    if reject.image is not None and drawn.wants(reject.path, reject.reason):
        drawn.add(Example(reject.path, modality or "", reject.reason, False, (picture(reject.image),)))


def task_schema() -> Any:
    """The Arrow schema of a task's rows: a store's, and the kind of the file."""
    pa = require("pyarrow", "train")
    return schema().append(pa.field("kind", pa.string()))


class _RowsFile:
    """The rows of a task: written to a temporary name, renamed when whole."""

    def __init__(self, path: Path) -> None:
        self._pa = require("pyarrow", "train")
        self._path, self._temporary = path, path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._schema = task_schema()
        self._file = open(self._temporary, "wb")  # noqa: SIM115  closed by `close` or `discard`
        self._stream = self._pa.ipc.new_stream(self._file, self._schema)
        self._rows: list[Row] = []
        self._bytes = 0

    def add(self, row: Row) -> None:
        self._rows.append(row)
        self._bytes += len(row["image"]["bytes"])
        if len(self._rows) >= BATCH_ROWS or self._bytes >= _BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        self._stream.write_batch(self._pa.RecordBatch.from_pylist(self._rows, schema=self._schema))
        self._rows, self._bytes = [], 0

    def close(self) -> int:
        """Bring the file to the disk, and give its size in bytes."""
        if self._rows:
            self._flush()
        self._stream.close()
        with self._file as file:
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        os.replace(self._temporary, self._path)
        return size

    def discard(self) -> None:
        """Leave nothing of a file that was not brought to its end."""
        with suppress(OSError):
            self._file.close()
        self._temporary.unlink(missing_ok=True)


def _records(task: Task, item: Item, hand: Hand) -> Iterator[ImageRecord | Reject]:
    """The images of an item, or why there are none."""
    settings, path = task.settings, item.files[0].path
    if item.kind is Kind.SYNTHETIC:
        yield draw(task.recipe, item)
        return
    if settings.drop_burned_in and item.burned_in:
        yield Reject(settings.shown(path), _BURNED_IN)
        return
    if _changed(settings.root, item.files):
        yield Reject(settings.shown(path), "changed since it was found")
        return
    if item.dropped:
        # Its fault is none of the build's.
        with suppress(Exception):
            scan = read_file(Path(settings.root) / path)
            yield Reject(settings.shown(path), item.dropped, middle(scan))
        return
    if item.kind in ARCHIVES:
        yield from _inside(task, item, hand)
    else:
        yield from _read(task, item, [Path(settings.root) / file.path for file in item.files], hand)
    if _changed(settings.root, item.files):
        yield Reject(settings.shown(path), "changed while it was read")


def _inside(task: Task, archive: Item, hand: Hand) -> Iterator[ImageRecord | Reject]:
    """The images of an archive."""
    settings = task.settings
    try:
        for found in items_inside(task.recipe, task.folder, settings, archive, hand):
            if isinstance(found, Reject):
                yield found
            elif settings.drop_burned_in and found[0].burned_in:
                yield Reject(settings.shown(found[0].files[0].path), _BURNED_IN)
            else:
                yield from _read(task, *found, hand)
    except Exception as error:  # as below
        yield Reject(settings.shown(archive.files[0].path), reason_of(error, archive.kind, settings.hash_paths))


def _read(task: Task, item: Item, paths: Sequence[Path], hand: Hand) -> Iterator[ImageRecord | Reject]:
    """The images of an item whose files lie at ``paths``."""
    try:
        for scan, place, told in _scans(task, item, paths):
            hand.drop()
            try:
                placed = _placed(item, told)
            except UnplacedError as error:
                yield Reject(task.settings.shown(item.files[0].path) + place, str(error))
            else:
                yield from _cut(task, placed, scan, place)
            hand.again()
    except Exception as error:  # a file must not end the build, whatever it makes the libraries stumble over
        if len(paths) > 1 and isinstance(error, UnreadableFileError):
            # One bad file must not cost a whole volume.
            for file, path in zip(item.files, paths, strict=True):
                yield from _read(task, replace(item, files=(file,), volume=False), [path], hand)
            return
        shown = task.settings.shown(item.files[0].path)
        yield Reject(shown, reason_of(error, item.kind, task.settings.hash_paths))


def _placed(item: Item, told: str) -> Item:
    """An item whose group and split are those of one image of its file."""
    if item.place is None:
        return item
    group, split = item.place(told)
    return replace(item, group=group, split=split)


def _changed(root: str, files: Sequence[Found]) -> bool:
    for file in files:
        try:
            now = os.stat(Path(root) / file.path)
        except OSError:
            return True
        if (now.st_size, now.st_mtime_ns) != (file.size, file.mtime_ns):
            return True
    return False


def _scans(task: Task, item: Item, paths: Sequence[Path]) -> Iterator[tuple[Scan, str, str]]:
    """What is read of an item, its place in the file where there are several, and what the file says of it."""
    recipe = task.recipe
    if item.volume:
        yield read_series(paths), "", ""
        return
    [path] = paths
    moving = item.kind is Kind.VIDEO or (item.kind is Kind.DICOM and item.modality in _MOVING)
    every = recipe.every or task.settings.every or (VIDEO_EVERY if moving else 1)
    if item.kind is Kind.VIDEO:  # an hour of surgery does not fit into memory
        for scan in iterate_video(path, every):
            yield replace(scan, frames=None), f"#{(scan.frames or (0,))[0]}", ""
        return
    if recipe.array is not None and item.kind is Kind.HDF5:
        told = hdf5_values(path, recipe.group.array) if isinstance(recipe.group, InFile) else []
        for index, image in iterate_hdf5(path, recipe.array, every):
            one = array_scan(image.reshape(1, *image.shape[:2], -1), range(1))
            yield one, f"#{index}", told[index] if index < len(told) else ""
        return
    if item.kind is Kind.SLIDE:
        for name, tile in iterate_tiles(path, recipe.mpp):
            yield Scan(tile[None], "frames", (0.0, 255.0), spacing=(recipe.mpp / 1000,) * 2), f"#{name}", ""
        return
    number = 0 if isinstance(recipe.volume, str) else recipe.volume
    scan = read_file(path, every, number)
    yield scan, f"#{number}" if number else "", ""
    if recipe.volume == "all":
        volumes = scan.volumes
        del scan  # it is large
        for number in range(1, volumes):
            yield read_file(path, every, number), f"#{number}", ""


def _cut(task: Task, item: Item, scan: Scan, place: str) -> Iterator[ImageRecord | Reject]:
    """The 2-D images of a scan."""
    settings, recipe = task.settings, task.recipe
    shown = settings.shown(item.files[0].path) + place
    assert item.modality is not None
    labels = looks_like_labels(scan.held, item.named_mask) if item.kind not in _PIECEWISE else None
    if labels is not None:
        yield Reject(shown, labels, middle(scan))
        return
    try:
        method = method_for(item.modality, scan, recipe.normalization, recipe.units)
    except UnitsError as error:
        yield Reject(shown, str(error))
        return
    levels = limits(scan.held, method, scan.levels)
    least = recipe.min_side or settings.min_side or MIN_SIDE
    for where, raw, spacing in planes(scan, recipe.axes):
        try:
            image, size = square(window(raw, levels), spacing)
        except ValueError as error:
            yield Reject(shown + where, str(error))
            continue
        reason = reject_reason(image, item.modality, least)
        if reason is not None:
            yield Reject(shown + where, reason, image)
            continue
        yield ImageRecord(
            image=image,
            modality=item.modality,
            source=recipe.name,
            anatomy=item.anatomy,
            normalization=method,
            group=item.group,
            path=shown + where,
            split=item.split,
            spacing=size,
            burned_in=item.burned_in,
        )


def planes(
    scan: Scan, axes: Sequence[int] | None = None
) -> Iterator[tuple[str, np.ndarray, tuple[float, float] | None]]:
    """Each 2-D image as it was read, with its place in the file and the spacing of its rows and columns.

    Volumes are cut across ``axes``; without any, across the axis of their acquisition.
    """
    if scan.layout == "volume":
        for axis in axes or (acquired_axis(scan.spacing),):
            spacing = plane_spacing(scan.spacing, axis)
            for index, plane in enumerate(slices(scan.held, axis)):
                yield slice_place(axis, index), np.ascontiguousarray(plane), spacing
        return
    frames = scan.frames or range(len(scan.held))
    spacing = (scan.spacing[0], scan.spacing[1]) if scan.spacing else None
    for index, image in zip(frames, map(np.asarray, scan.held), strict=True):
        gray = image.ndim == 3 and (image == image[..., :1]).all()
        yield f"#{index}" if len(frames) > 1 or index else "", image[..., 0].copy() if gray else image, spacing
