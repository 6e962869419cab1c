"""The table of a task: CSV or Parquet, a row an image.

    image        path below the task's root, or, as "./a.png", beside the YAML; one of several in a file as
                 "scan.nii.gz#axial=12", "clip.tif#3", "breastmnist.npz#train_images=12"
    label        a class's name or index; of several classes names with ";" between them
    mask         path of the mask, written as the image's; of several channels columns mask_NAME, empty where absent
    split        train, val or test
    case         patient, volume or video: what is independent
    volume, slice           the volume that the image was cut from, and its place there (default: from the path)
    spacing_y, spacing_x    mm between rows, and between columns
    weight       of the image in a mean (default: 1)
    modality     where the YAML says `modality: column`
    seen         exact or near: `dexcore eval check --store STORE --mark` found the image in a store

Other columns are left alone.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from dexcore.data.modality import Modality
from dexcore.evaluate.tasks.places import slice_of
from dexcore.evaluate.tasks.spec import Spec, TaskError
from dexcore.extras import require
from dexcore.files import write_whole

SplitName = Literal["train", "val", "test"]
SPLITS: tuple[SplitName, ...] = get_args(SplitName)
MASK = "mask_"  # the beginning of a channel's column
SEEN = ("", "near", "exact")  # the stronger one later

Cells = dict[str, str]


@dataclass(frozen=True)
class Row:
    """An image of a task: all that the table says of it but its label.

    Attributes:
        image: its path below the task's root, with its place in the file; no two rows have the same.
        split: "train", "val" or "test".
        case: what is independent: a patient, a volume or a video.
        modality: of the image.
        line: in the table, from 1; the header is line 1.
        volume, slice: what it was cut from, and where; None of a picture.
        spacing: mm between rows and between columns.
        weight: in a mean.
        seen: "exact" or "near" where the image was found in a store.
    """

    image: str
    split: str
    case: str
    modality: Modality
    line: int
    volume: str | None = None
    slice: int | None = None
    spacing: tuple[float, float] | None = None
    weight: float = 1.0
    seen: str = ""


def read_table(path: Path) -> list[tuple[int, Cells]]:
    """The rows of a CSV or Parquet file with their lines, all cells as texts without blanks at their ends.

    Raises:
        TaskError: it cannot be read, has no row, a column twice, or a row of another length.
    """
    try:
        return _parquet(path) if path.suffix == ".parquet" else _csv(path)
    except OSError as error:
        raise TaskError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise TaskError(f"{path}: is no UTF-8 text") from error


def _csv(path: Path) -> list[tuple[int, Cells]]:
    lines = csv.reader(io.StringIO(path.read_bytes().decode("utf-8-sig"), newline=""))
    try:
        columns = [name.strip() for name in next(lines, [])]
        twice = [name for name in columns if columns.count(name) > 1]
        if twice:
            raise TaskError(f"{path}, line 1: the column {twice[0]!r} stands there twice")
        rows = []
        for cells in lines:
            if not any(cells):
                continue
            if len(cells) != len(columns):
                raise TaskError(f"{path}, line {lines.line_num}: {len(cells)} cells, expected {len(columns)}")
            rows.append((lines.line_num, dict(zip(columns, map(str.strip, cells), strict=True))))
    except csv.Error as error:
        raise TaskError(f"{path}, line {lines.line_num}: is no CSV: {error}") from error
    if not rows:
        raise TaskError(f"{path}: holds no row, expected a header and a row an image")
    return rows


def _parquet(path: Path) -> list[tuple[int, Cells]]:
    pa = require("pyarrow", "train")
    try:
        table = require("pyarrow.parquet", "train").read_table(path)
    except pa.ArrowException as error:
        raise TaskError(f"{path}: is no Parquet file: {error}") from error
    rows = [
        (line, {name: "" if value is None else str(value).strip() for name, value in row.items()})
        for line, row in enumerate(table.to_pylist(), 2)
    ]
    if not rows:
        raise TaskError(f"{path}: holds no row, expected a row an image")
    return rows


def write_column(path: Path, name: str, rows: Sequence[Cells]) -> None:
    """Write one column of a table, whole or not at all: of Parquet the others keep their types.

    Args:
        path: of the table.
        name: of the column; a new one becomes the last.
        rows: all of the table, as `read_table` gave them, with the column's new cells.

    Raises:
        OSError: it cannot be written.
    """
    if path.suffix != ".parquet":
        write_table(path, rows)
        return
    pa, parquet = require("pyarrow", "train"), require("pyarrow.parquet", "train")
    table = parquet.read_table(path)
    cells = pa.array([row[name] for row in rows], pa.string())
    place = table.schema.get_field_index(name)
    table = table.append_column(name, cells) if place < 0 else table.set_column(place, name, cells)
    sink = pa.BufferOutputStream()
    parquet.write_table(table, sink)
    write_whole(path, memoryview(sink.getvalue()))


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a table as CSV, whole or not at all; its columns are those of the first row.

    Raises:
        OSError: it cannot be written.
    """
    columns = list(rows[0])
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(row[name]) for name in columns] for row in rows)
    write_whole(path, text.getvalue().encode())


def _cell(value: Any) -> str:
    return "" if value is None else str(value)


def make_row(spec: Spec, cells: Cells, line: int) -> Row:
    """What the table says of an image.

    Raises:
        TaskError: a column that the task needs is missing or empty, or holds what it cannot.
    """
    image = needed(spec, cells, "image", line)
    split = needed(spec, cells, "split", line)
    if split not in SPLITS:
        raise row_error(spec, line, f"split is {split!r}, expected one of {', '.join(SPLITS)}")
    modality = spec.modality
    if modality is None:
        word = needed(spec, cells, "modality", line)
        if word not in list(Modality):
            raise row_error(spec, line, f"modality is {word!r}, expected one of {', '.join(Modality)}")
        modality = Modality(word)
    volume, index = slice_of(image)
    if cells.get("slice"):
        index = int(_number(spec, cells, "slice", line, whole=True))
    seen = cells.get("seen", "")
    if seen not in SEEN:
        raise row_error(spec, line, f"seen is {seen!r}, expected exact, near or nothing")
    spacing = None
    if cells.get("spacing_y") or cells.get("spacing_x"):
        spacing = (_number(spec, cells, "spacing_y", line), _number(spec, cells, "spacing_x", line))
    return Row(
        image=image,
        split=split,
        case=needed(spec, cells, "case", line) if spec.cases == "known" else cells.get("case") or volume or image,
        modality=modality,
        line=line,
        volume=cells.get("volume") or volume,
        slice=index,
        spacing=spacing,
        weight=_number(spec, cells, "weight", line) if cells.get("weight") else 1.0,
        seen=seen,
    )


def needed(spec: Spec, cells: Cells, column: str, line: int) -> str:
    """A cell that must not be empty."""
    if column not in cells:
        hint = "; where no case is known, the YAML says `cases: unknown`" if column == "case" else ""
        raise TaskError(f"task {spec.name}: {spec.table} has no column {column}, it has {', '.join(cells)}{hint}")
    if not cells[column]:
        raise row_error(spec, line, f"{column} is empty")
    return cells[column]


def row_error(spec: Spec, line: int, problem: str) -> TaskError:
    """An error about a row, with task, file and line."""
    return TaskError(f"task {spec.name}: {spec.table}, line {line}: {problem}")


def _number(spec: Spec, cells: Cells, column: str, line: int, whole: bool = False) -> float:
    text = cells.get(column, "")
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0) or (whole and value != int(value)) or (not whole and value == 0):
        expected = "a whole number from 0" if whole else "a number above 0"
        raise row_error(spec, line, f"{column} is {text!r}, expected {expected}")
    return value
