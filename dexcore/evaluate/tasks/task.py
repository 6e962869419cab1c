"""A task: images, what is asked of each, and the splits; test labels lie behind a type of their own.

`Task.label`, `labels` and `mask` refuse rows of the test split: what is chosen (C, k, epoch, threshold, layer) cannot
have seen them. `Task.reference` gives the type that can, to `score` and `check` alone.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property

import numpy as np

from dexcore.data.assemble.slices import square
from dexcore.data.modality import Modality
from dexcore.data.record import ImageRecord
from dexcore.evaluate.tasks.content import mask_hash
from dexcore.evaluate.tasks.pixels import PixelsError, normalised, read_labels, read_plane, to_classes
from dexcore.evaluate.tasks.spec import Spec, TaskError, load_spec
from dexcore.evaluate.tasks.split import draw_split
from dexcore.evaluate.tasks.table import (
    MASK,
    SEEN,
    Cells,
    Row,
    SplitName,
    make_row,
    needed,
    read_table,
    row_error,
    write_column,
)

# What of the YAML decides a number; paths, names and notes do not.
_RULES = (
    *("kind", "classes", "ignore", "mask_values", "regions", "normalization", "units", "range"),
    *("metric", "unit", "positive", "cases"),
)


class TestLabelsError(RuntimeError):
    """A label of the test split was asked for where something could be chosen by it."""

    __test__ = False  # no test of pytest's


class _Labels:
    """What the labels and masks of rows are."""

    def __init__(self, spec: Spec, cells: dict[str, Cells]) -> None:
        self.spec, self._cells = spec, cells

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.spec.name!r}, {len(self._cells)} rows)"

    def _allow(self, row: Row) -> None:
        """Raise where the label of a row must not be seen."""

    def label(self, row: Row) -> int | np.ndarray:
        """The class of an image: its index, or, of kind multilabel, bool [classes].

        Raises:
            TestLabelsError: the row is of the test split, and this no `Reference`.
            TaskError: no such class; the message names task, file and line.
        """
        self._allow(row)
        if self.spec.is_segmentation:
            raise TaskError(f"task {self.spec.name} is of kind {self.spec.kind}: its rows have masks, and no label")
        text = self._cell(row, "label")
        if self.spec.kind != "multilabel":
            if not text:
                raise row_error(self.spec, row.line, "label is empty")
            return self._index(text, row.line)
        found = np.zeros(len(self.spec.classes), bool)
        for name in filter(None, map(str.strip, text.split(";"))):
            found[self._index(name, row.line)] = True
        return found

    def labels(self, rows: Sequence[Row]) -> np.ndarray:
        """The labels of rows: int64 [rows], or, of kind multilabel, bool [rows, classes]."""
        multilabel = self.spec.kind == "multilabel"
        shape = (len(rows), len(self.spec.classes)) if multilabel else (len(rows),)
        return np.array([self.label(row) for row in rows], bool if multilabel else np.int64).reshape(shape)

    def mask(self, row: Row) -> np.ndarray:
        """The mask of an image at its own size: nothing is interpolated.

        Returns:
            Indices of classes (and ``spec.ignore``), unsigned [height, width]; of kind multilabel_segmentation bool
            [classes, height, width].

        Raises:
            TestLabelsError, TaskError: as `label`; a mask is missing, cannot be read, is of another size than the image
                or holds a value that stands for no class.
        """
        self._allow(row)
        if not self.spec.is_segmentation:
            raise TaskError(f"task {self.spec.name} is of kind {self.spec.kind}: its rows have labels, and no masks")
        try:
            if self.spec.kind == "segmentation":
                path = needed(self.spec, self._cells[row.image], "mask", row.line)
                mask = self._read_mask(path, len(self.spec.classes), self.spec.ignore)
                self._check_shape(row, path, mask)
                return mask
            if self.spec.regions:
                return self._regions(row)
            height, width = read_plane(self.spec.located(row.image)).pixels.shape[:2]
            channels = np.zeros((len(self.spec.classes), height, width), bool)
            for number, path in enumerate(self.mask_paths(row)):
                if path:
                    mask = self._read_mask(path, 2, None)
                    self._check_shape(row, path, mask)
                    channels[number] = mask
            return channels
        except PixelsError as error:
            raise row_error(self.spec, row.line, str(error)) from error

    def mask_paths(self, row: Row) -> tuple[str, ...]:
        """Where the masks of a row lie, one, or one a channel; empty where a channel is absent."""
        self._allow(row)
        if self.spec.kind == "segmentation" or self.spec.regions:
            return (self._cell(row, "mask"),)
        return tuple(self._cell(row, f"{MASK}{name}") for name in self.spec.classes)

    def _regions(self, row: Row) -> np.ndarray:
        path = needed(self.spec, self._cells[row.image], "mask", row.line)
        values = read_labels(self.spec.located(path))
        known = {value for region in self.spec.regions for value in region}
        unknown = set(np.unique(values).tolist()) - known - {0}
        if unknown:
            expected = ", ".join(map(str, [0, *sorted(known)]))
            raise PixelsError(f"{self.spec.located(path)}: holds the value {min(unknown)}, expected {expected}")
        self._check_shape(row, path, values)
        return np.stack([np.isin(values, region) for region in self.spec.regions])

    def _read_mask(self, path: str, classes: int, ignore: int | None) -> np.ndarray:
        mapping = self.spec.mask_values
        values = read_labels(self.spec.located(path), colours=mapping is not None and bool(mapping.colours))
        try:
            return to_classes(values, mapping, classes, ignore)
        except PixelsError as error:
            raise PixelsError(f"{self.spec.located(path)}: {error}") from error

    def _check_shape(self, row: Row, path: str, mask: np.ndarray) -> None:
        shape = read_plane(self.spec.located(row.image)).pixels.shape[:2]
        if mask.shape != shape:
            raise PixelsError(f"{self.spec.located(path)}: has shape {mask.shape}, the image {row.image} has {shape}")

    def _cell(self, row: Row, column: str) -> str:
        cells = self._cells[row.image]
        if column not in cells:
            raise TaskError(f"task {self.spec.name}: {self.spec.table} has no column {column}: {', '.join(cells)}")
        return cells[column]

    def _index(self, text: str, line: int) -> int:
        classes = self.spec.classes
        if text in classes:
            return classes.index(text)
        # Where names are numbers too, a number is a name.
        if text.isdecimal() and int(text) < len(classes) and not any(name.isdecimal() for name in classes):
            return int(text)
        raise row_error(self.spec, line, f"label is {text!r}, expected one of {', '.join(classes)}")


class Reference(_Labels):
    """The labels and masks of all splits, for `score` and `check` alone."""


class Task(_Labels):
    """A task, opened: rows, images, and the labels of train and val.

    Attributes:
        spec: its YAML.
        rows: all of them, in the table's order.
    """

    def __init__(self, spec: Spec, table: Sequence[tuple[int, Cells]]) -> None:
        self.rows = tuple(make_row(spec, cells, line) for line, cells in table)
        seen: dict[str, int] = {}
        for row in self.rows:
            if row.image in seen:
                raise row_error(spec, row.line, f"{row.image} stands in line {seen[row.image]} too")
            seen[row.image] = row.line
        super().__init__(spec, {cells["image"]: cells for _, cells in table})

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "Task":
        """Open a task by its YAML. A split that the YAML says to draw is drawn and written into the table, once.

        Raises:
            TaskError: the YAML or the table is not as `spec` and `table` say; the message names file and line.
            OSError: the split cannot be written.
        """
        spec = load_spec(path)
        table = read_table(spec.table)
        if spec.split is not None and not any(cells.get("split") for _, cells in table):
            _write_split(spec, table)
        return cls(spec, table)

    @property
    def name(self) -> str:
        """Of the task."""
        return self.spec.name

    @property
    def kind(self) -> str:
        """classification, multilabel, ordinal, segmentation or multilabel_segmentation."""
        return self.spec.kind

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, by index."""
        return self.spec.classes

    def split(self, name: SplitName) -> tuple[Row, ...]:
        """The rows of a split."""
        return tuple(row for row in self.rows if row.split == name)

    def image(self, row: Row) -> np.ndarray:
        """An image in [0, 1] at its own size: float32 [height, width] or [height, width, 3].

        Raises:
            TaskError: it cannot be read, or holds values beyond the declared range; with task, file and line.
        """
        return self._normalised(row)[0]

    def record(self, row: Row) -> ImageRecord:
        """An image as a store holds it, with square pixels: what is compared with a store's.

        Raises:
            TaskError: as `image`.
        """
        image, method = self._normalised(row)
        try:
            image, size = square(image, self.spacing(row))
        except ValueError:  # pixels too long to be made square: compared as they are
            size = None
        return ImageRecord(
            image=image,
            modality=row.modality,
            source=self.name,
            anatomy="",
            normalization=method,
            group=row.case,
            path=row.image,
            spacing=size,
        )

    def _normalised(self, row: Row) -> tuple[np.ndarray, str]:
        spec = self.spec
        try:
            plane = read_plane(spec.located(row.image))
            return normalised(plane, row.modality, spec.normalization, spec.units, spec.range)
        except PixelsError as error:
            raise row_error(spec, row.line, str(error)) from error

    def spacing(self, row: Row) -> tuple[float, float] | None:
        """mm between rows and between columns: the table's, else the file's; None where nobody says it."""
        try:
            return row.spacing or read_plane(self.spec.located(row.image)).spacing
        except PixelsError as error:
            raise row_error(self.spec, row.line, str(error)) from error

    def reference(self) -> Reference:
        """The labels of all splits. For what computes scores and checks tables: nothing may be chosen by them."""
        return Reference(self.spec, self._cells)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what a number is held against: rows, labels, the masks' content, splits, classes and rules.

        The order of rows, where the files lie, names and notes do not count. Nor do the images' pixels: what is made of
        them, features and fine-tuned models, is known by their content itself.

        Raises:
            TaskError: a label is of no class, or a mask is missing or cannot be read.
        """
        rules = {name: getattr(self.spec, name) for name in _RULES}
        if self.spec.mask_values is not None:
            values = self.spec.mask_values
            rules["mask_values"] = [sorted(values.ranges), sorted(values.colours.items())]
        labels = self.reference()
        rows = []
        for row in self.rows:
            said = {name: value for name, value in asdict(row).items() if name not in ("line", "seen")}
            if self.spec.is_segmentation:
                said["masks"] = [(path, self._mask_hash(row, path)) for path in labels.mask_paths(row)]
            else:
                said["label"] = np.asarray(labels.label(row)).astype(int).tolist()
            rows.append(said)
        rows.sort(key=lambda said: said["image"])
        return hashlib.sha256(json.dumps([rules, rows], sort_keys=True).encode()).hexdigest()

    def _mask_hash(self, row: Row, path: str) -> str:
        """Of a mask's content, "" of an absent channel; no value of it is seen."""
        try:
            return mask_hash(self.spec.located(path)) if path else ""
        except PixelsError as error:
            raise row_error(self.spec, row.line, str(error)) from error
        except OSError as error:
            raise row_error(self.spec, row.line, f"{self.spec.located(path)}: {error.strerror or error}") from error

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """Those of its images."""
        return tuple(dict.fromkeys(row.modality for row in self.rows))

    def mark_seen(self, seen: dict[str, str]) -> "Task":
        """Write into the table which images ("exact" or "near", by image) stand in a store; gives the task anew.

        Marks of earlier stores stay: of two the stronger one.
        """
        marks = {row.image: max(row.seen, seen.get(row.image, ""), key=SEEN.index) for row in self.rows}
        table = [(row.line, self._cells[row.image] | {"seen": marks[row.image]}) for row in self.rows]
        write_column(self.spec.table, "seen", [cells for _, cells in table])
        return Task(self.spec, table)

    def _allow(self, row: Row) -> None:
        if row.split == "test":
            raise TestLabelsError(
                f"task {self.name}: the label of {row.image} (test) was asked for: only `score` reads test labels"
            )


def _write_split(spec: Spec, table: Sequence[tuple[int, Cells]]) -> None:
    """Draw the split, into the cells and into the file."""
    drawn = spec.split
    assert drawn is not None
    columns = {"by": drawn.by} | ({"stratify": drawn.stratify} if drawn.stratify else {})
    if drawn.by == "case" and spec.cases == "unknown":
        columns["by"] = "case" if "case" in table[0][1] else "image"
    may_be_empty = drawn.stratify == "label" and spec.kind == "multilabel" and "label" in table[0][1]  # of no class
    values = {
        key: [
            cells[column] if key == "stratify" and may_be_empty else needed(spec, cells, column, line)
            for line, cells in table
        ]
        for key, column in columns.items()
    }
    splits = draw_split(values["by"], values.get("stratify", [""] * len(table)), drawn)
    for (_, cells), split in zip(table, splits, strict=True):
        cells["split"] = split
    write_column(spec.table, "split", [cells for _, cells in table])
