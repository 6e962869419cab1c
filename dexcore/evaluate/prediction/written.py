"""What is written of a prediction: a table, masks, a picture.

predictions.csv         a row an image, and a row a file of several: labels and probabilities, or shares of pixels
NAME_mask.png           indices of classes at the image's own size (of channels bit c); NAME_3_mask.png of frames
NAME_mask.nii.gz        of a NIfTI volume: one volume, with its affine
NAME_picture.png        the image, where the model looked, and which experts took it
"""

import codecs
import csv
import gzip
import io
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from dexcore.evaluate.prediction.files import AskedFile, result_names
from dexcore.evaluate.prediction.predict import Predicted, labels_of, pixels_of
from dexcore.evaluate.scores.predictions import mask_png
from dexcore.evaluate.tasks.places import file_of, parted
from dexcore.files import write_whole
from dexcore.models import TaskDescription
from dexcore.report.prediction import Overlay, prediction_picture

TABLE = "predictions.csv"
_VALUES = {"label": "probability of ", "mask": "share of "}  # what the columns of the classes begin with


def write_prediction(found: Predicted, folder: Path, table: "Table") -> None:
    """Write masks and picture of a file, under names that no other image's results have, and its rows of the table.

    There is no picture where it was not looked at.

    Raises:
        PredictionsError: more than 16 channels.
        OSError: a file cannot be written.
    """
    file = found.file
    name = table.name_of(file)
    rows = _mask_rows(found, folder, name) if file.task.is_segmentation else _label_rows(found)
    for row in rows:
        row["picture"] = ""
    if found.looked is not None:
        rows[0]["picture"] = _picture_name(name)
        write_whole(folder / _picture_name(name), _picture(found))
    table.add(rows)


def _label_rows(found: Predicted) -> list[dict[str, str]]:
    assert found.probabilities is not None
    told = list(zip(found.file.images, found.probabilities, strict=True))
    if len(told) > 1:
        told.insert(0, (found.file.path, found.of_file))
    task = found.file.task
    return [
        {"image": image, "label": ";".join(labels_of(task.kind, task.classes, values))}
        | {_column(task, name): f"{value:.6f}" for name, value in zip(task.classes, values, strict=True)}
        for image, values in told
    ]


def _mask_rows(found: Predicted, folder: Path, name: str) -> list[dict[str, str]]:
    file, task = found.file, found.file.task
    written = _mask_names(file, name)
    if file.is_nifti:
        write_whole(folder / written[0], gzip.compress(file.volume(found.masks).to_bytes(), mtime=0))
    else:
        for image, mask, own in zip(file.images, found.masks, written, strict=True):
            write_whole(folder / own, mask_png(image, mask))
    classes = len(task.classes)
    told = [
        (image, mask, pixels_of(pixels, classes, task.is_multilabel) / pixels.size)
        for image, mask, pixels in zip(file.images, written, found.masks, strict=True)
    ]
    if len(told) > 1:
        told.insert(0, (file.path, written[0] if file.is_nifti else "", found.shares(classes)))
    return [
        {"image": image, "mask": mask}
        | {_column(task, name): f"{value:.6f}" for name, value in zip(task.classes, shares, strict=True)}
        for image, mask, shares in told
    ]


def _mask_names(file: AskedFile, name: str) -> list[str]:
    """The file of each image's mask."""
    if file.is_nifti:
        return [f"{name}_mask.nii.gz"] * len(file)
    if len(file) == 1:
        return [f"{name}_mask.png"]
    places = [parted(image)[1:] for image in file.images]
    return [f"{name}_{inside or ''}{index}_mask.png" for inside, index in places]


def _picture_name(name: str) -> str:
    return f"{name}_picture.png"


def _column(task: TaskDescription, name: str) -> str:
    return _VALUES["mask" if task.is_segmentation else "label"] + name


def _picture(found: Predicted) -> bytes:
    file, task, looked, shown = found.file, found.file.task, found.looked, found.shown
    assert looked is not None
    assert shown is not None
    asking = f"{looked.asking}, block {looked.block}"
    image = file.images[found.pictured]
    title = Path(file.path).name + image.removeprefix(str(file.file)) * (len(file) > 1)
    if not task.is_segmentation:
        assert found.probabilities is not None
        values = found.probabilities[found.pictured]
        label = ", ".join(labels_of(task.kind, task.classes, values)) or "none of the classes"
        bars = list(zip(task.classes, map(float, values), strict=True))
        return prediction_picture(f"{title}: {label}", shown, looked.attention, asking, looked.gates, bars)
    mask = found.masks[found.pictured]
    classes = len(task.classes)
    if task.is_multilabel:
        numbers = range(classes)
        planes = [mask >> channel & 1 == 1 for channel in numbers]
    else:
        numbers = range(1, classes)
        planes = [mask == number for number in numbers]
    present = [(plane, task.classes[number]) for number, plane in zip(numbers, planes, strict=True) if plane.any()]
    overlay = Overlay(
        file.image(image),
        np.stack([plane for plane, _ in present]) if present else np.zeros((0, *mask.shape), bool),
        tuple(name for _, name in present),
    )
    return prediction_picture(title, shown, looked.attention, asking, looked.gates, overlay=overlay)


def holds_predictions(folder: Path) -> bool:
    """Whether a folder holds the table of earlier predictions, of whatever task; it is known by its columns."""
    path = folder / TABLE
    try:
        if not path.is_file():
            return False
        with open(path, newline="", encoding="utf-8") as file:
            columns = next(csv.reader(file), [])
    except (OSError, ValueError, csv.Error):  # no text of ours
        return False
    if len(columns) < 4 or columns[0] != "image" or columns[1] not in _VALUES or columns[-1] != "picture":
        return False
    return all(column.startswith(_VALUES[columns[1]]) for column in columns[2:-1])


class Table:
    """The table of a folder; rows of earlier calls stay, but for those of the same images.

    It knows which files are whose: an image is known by its path as it was given. Rows are appended to the file, which
    is written anew only where earlier ones go. A kill meanwhile may leave a part of the last line, which is dropped
    when the table is opened again.

    Args:
        path: of the CSV, which may be there.
        task: of the model.

    Raises:
        ValueError: the table that is there is another task's.
    """

    def __init__(self, path: Path, task: TaskDescription) -> None:
        self.path = path
        self._columns = ["image", "mask" if task.is_segmentation else "label"]
        self._columns += [*(_column(task, name) for name in task.classes), "picture"]
        self._rows: dict[str, dict[str, str]] = {}
        # Bytes of the file where it holds exactly these rows, and more may be appended.
        self._size: int | None = None
        if path.exists():
            content = path.read_bytes()
            self._rows = {row["image"]: row for row in self._read(content)}
            if self._text(self._rows.values(), header=True) == content:
                self._size = len(content)
        self._know_all()

    def _read(self, content: bytes) -> list[dict[str, str]]:
        text, used = codecs.utf_8_decode(content)  # but for a part of a character at the end
        reader = csv.DictReader(io.StringIO(text, newline=""))
        if reader.fieldnames != self._columns:
            raise ValueError(
                f"{self.path} is of another task, with the columns {', '.join(reader.fieldnames or ())}: "
                "pass another --out"
            )
        rows = list(reader)
        if rows and (used < len(content) or not _is_complete(rows[-1], text.endswith(("\n", "\r")))):
            rows.pop()
        return rows

    def name_of(self, file: AskedFile) -> str:
        """A name for a file's results, under which nothing lies that is another file's."""
        own = {file_of(file.path)}
        names = [
            name
            for name in result_names(file.path)
            if all(
                self._owners.get(one.casefold(), own) <= own for one in (*_mask_names(file, name), _picture_name(name))
            )
        ]
        return names[0]  # the last of them has the whole path in it

    def add(self, rows: Sequence[dict[str, str]]) -> None:
        """Write it with more rows.

        Raises:
            OSError: it cannot be written.
        """
        new = {row["image"]: row for row in rows}
        more = self._text(new.values())
        masks = {row["mask"] for row in rows if row.get("mask")}
        if new.keys().isdisjoint(self._rows) and masks.isdisjoint(self._masks):
            self._rows |= new
            self._know(new)
        else:
            # An earlier row goes too where its mask was written over: the same volume's, cut across another axis.
            kept = {one: row for one, row in self._rows.items() if one not in new and row.get("mask") not in masks}
            self._rows = kept | new
            self._know_all()
            self._size = None
        size, self._size = self._size, None  # until it is written
        if size is not None and self.path.is_file() and self.path.stat().st_size == size:
            _append(self.path, more, size)
            self._size = size + len(more)
        else:
            content = self._text(self._rows.values(), header=True)
            write_whole(self.path, content)
            self._size = len(content)

    def _know_all(self) -> None:
        # By name of a result, in small letters: the files whose it is. And the masks, as they are written.
        self._owners: defaultdict[str, set[str]] = defaultdict(set)
        self._masks: set[str] = set()
        self._know(self._rows)

    def _know(self, rows: dict[str, dict[str, str]]) -> None:
        for image, row in rows.items():
            for written in (row.get("mask"), row["picture"]):
                if written:
                    self._owners[written.casefold()].add(file_of(image))
            if row.get("mask"):
                self._masks.add(row["mask"])

    def _text(self, rows: Iterable[dict[str, str]], header: bool = False) -> bytes:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns, lineterminator="\n")
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().encode()


def _is_complete(last: dict[str, str], ended: bool) -> bool:
    """Whether the last row of a table is all there: a kill may leave a part, an editor a row whose line has no end."""
    if None in last.values():
        return False
    return ended or not last["picture"] or last["picture"].endswith(_picture_name(""))


def _append(path: Path, content: bytes, size: int) -> None:
    """Append to a file of ``size`` bytes; where that fails it is left as it was."""
    try:
        with open(path, "ab") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException as error:
        with suppress(OSError):  # must not hide the error that led here
            os.truncate(path, size)
        if isinstance(error, OSError):  # a full disk does not say which file it was
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
