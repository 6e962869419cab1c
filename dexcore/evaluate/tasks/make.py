"""A download becomes a task, as its layout says."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dexcore.data.assemble.split import ImageTable, UnplacedError
from dexcore.data.assemble.walk import walk
from dexcore.data.readers.kind import file_kind
from dexcore.data.sources.globs import matcher
from dexcore.data.sources.recipe import Column
from dexcore.evaluate.tasks.importers import raster
from dexcore.evaluate.tasks.importers.options import Imported, plane_rows
from dexcore.evaluate.tasks.layout import Beside, Layout
from dexcore.evaluate.tasks.pixels import PixelsError, geometry_problem, read_plane
from dexcore.evaluate.tasks.spec import TaskError
from dexcore.evaluate.tasks.split import draw_split
from dexcore.evaluate.tasks.table import MASK, SPLITS
from dexcore.evaluate.tasks.write import free, write_task

Cells = dict[str, Any]


def make_task(layout: Layout, src: Path, out: Path) -> Imported:
    """Write the task of a download.

    Args:
        layout: how its files lie.
        src: the folder that they lie in, at whatever depth; the paths of the table begin there.
        out: where the YAML, the table and drawn masks go.

    Raises:
        TaskError: no image was found, or the mask, the label, the case or the split of one cannot be told.
        OSError: a file cannot be written.
    """
    with raster.Pictures(out, layout.said["name"]) as pictures:
        return _Making(layout, src, out, pictures).task()


class _Making:
    def __init__(self, layout: Layout, src: Path, out: Path, pictures: raster.Pictures) -> None:
        self.layout, self.src, self.out, self.pictures = layout, src, out, pictures
        self.name = layout.said["name"]
        self.paths = [found.path for found in walk(src).files]
        self.known = set(self.paths)
        # What a "*" may stand for is looked for among the files of one last name, or of one folder.
        self.named: defaultdict[str, list[str]] = defaultdict(list)
        self.inside: defaultdict[str, list[str]] = defaultdict(list)
        for path in self.paths:
            folder, _, name = path.rpartition("/")
            self.named[name].append(path)
            self.inside[folder].append(path)
        self.tables: dict[str, ImageTable] = {}
        self.left: list[tuple[str, str]] = []

    def task(self) -> Imported:
        layout = self.layout
        images = layout.images(self.paths)
        if not images:
            raise TaskError(f"task {self.name}: no image below {self.src}, expected {layout.layout or layout.take}")
        free(self.out, self.name)
        rows = [row for path in images for row in self._rows(path)]
        keys = dict(layout.said)
        if layout.splits:
            self._draw_val(rows)
        else:
            stratify = {"stratify": "label"} if layout.label is not None else {}
            drawn = {"by": "case", "fractions": list(layout.drawn.fractions), "seed": layout.drawn.seed} | stratify
        task = write_task(
            self.out,
            keys.pop("name"),
            rows,
            root=self.src,
            split="column" if layout.splits else drawn,
            cases="unknown" if layout.group is None else "known",
            **keys,
        )
        return Imported(task, self.left)

    def _rows(self, path: str) -> Sequence[Cells]:
        layout = self.layout
        cells: Cells = {"split": self._split(path), "case": self._case(path)}
        if layout.splits and cells["split"] is None:
            self.left.append((path, "of no split"))
            return []
        if layout.label is not None:
            cells["label"] = self._label(path)
        if layout.partial and any(self._beside(path, beside) is None for beside in layout.masks.values()):
            self.left.append((path, "no mask"))
            return []
        try:
            image = self._image(path)
            masks = {
                f"{MASK}{channel}" if channel else "mask": self._mask(path, image, channel, beside)
                for channel, beside in layout.masks.items()
            }
            for mask in filter(None, masks.values()):
                if not mask.startswith("./"):
                    problem = geometry_problem(self._full(image), self._full(mask))
                    if problem:
                        raise TaskError(f"task {self.name}: {problem}")
            return plane_rows(Path(self._full(image)), image, cells, masks, layout.axis)
        except (PixelsError, UnplacedError) as error:
            raise TaskError(f"task {self.name}: {path}: {error}") from error

    def _full(self, path: str) -> str:
        return str((self.out if path.startswith("./") else self.src) / path)

    def _image(self, path: str) -> str:
        """The path in the table: of the file itself, or of a PNG of what readers do not read."""
        file, raw = self.src / path, self.layout.raw
        if raw is None and file_kind(file) is not None:
            return path
        if raw is None:
            pixels = raster.read_any(file)
        else:
            pixels = raster.raw_pixels(file, raw.height, raw.width, raw.dtype).astype(np.int64)
            if raw.invert is not None:
                pixels = np.clip(raw.invert - pixels, 0, raw.invert)
            height, width, side = raw.height // raw.reduce, raw.width // raw.reduce, raw.reduce
            pixels = pixels.reshape(height, side, width, side).mean(axis=(1, 3)).round().astype(np.uint16)
        return self.pictures.save_image(f"{path}.png", pixels)

    def _mask(self, path: str, image: str, channel: str, beside: Beside) -> str:
        found = self._beside(path, beside)
        if found is None:
            if channel:
                return ""
            raise TaskError(f"task {self.name}: {path}: its mask {self._wanted(path, beside)} is missing")
        if self.layout.draw is None:
            return found
        file = self.src / found
        if self.layout.draw in ("polygons", "regions"):
            height, width = read_plane(self._full(image)).pixels.shape[:2]
            if self.layout.draw == "polygons":
                mask = raster.polygons(file, height, width)
            else:
                classes = {name: index for index, name in enumerate(self.layout.said["classes"]) if index}
                mask = raster.regions(file, classes | {"Ambiguous": self.layout.said.get("ignore", 0)}, height, width)
        else:
            mask = raster.nonzero(file) if self.layout.draw == "nonzero" else raster.filled(file)
        return self.pictures.save_mask(f"{path}{f'.{channel}' if channel else ''}.png", mask)

    def _wanted(self, path: str, beside: Beside) -> str:
        wanted, times = beside.match.subn(beside.to, path)
        if not times:
            raise TaskError(f"task {self.name}: {path}: no match of {beside.match.pattern!r}")
        return wanted

    def _beside(self, path: str, beside: Beside) -> str | None:
        """The file beside an image; None where it is not there."""
        wanted = self._wanted(path, beside)
        if "*" not in wanted:
            return wanted if wanted in self.known else None
        pieces = {"**/": "(?:.*/)?", "*": "[^/]*"}
        pattern = re.compile("".join(pieces.get(one, re.escape(one)) for one in re.split(r"(\*\*/|\*)", wanted)))
        folder, _, name = wanted.rpartition("/")
        others = self.named.get(name, ()) if "*" not in name else self.paths if "*" in folder else self.inside[folder]
        found = [other for other in others if pattern.fullmatch(other)]
        if len(found) > 1:
            raise TaskError(f"task {self.name}: {path}: {found[0]} and {found[1]} both match {wanted}, expected one")
        return found[0] if found else None

    def _case(self, path: str) -> str | None:
        group = self.layout.group
        if isinstance(group, Column):
            return self._told(group, path)
        if group is None:
            return None
        return self._matched(group, path, "case")

    def _label(self, path: str) -> str:
        label = self.layout.label
        if isinstance(label, re.Pattern):
            return self._matched(label, path, "label")
        if isinstance(label, Column):
            return self._told(label, path)
        assert label is not None
        beside, tag = label
        found = self._beside(path, beside)
        if found is None:
            raise TaskError(
                f"task {self.name}: {path}: {self._wanted(path, beside)}, which holds its label, is missing"
            )
        if tag:
            return raster.first_in_xml(self.src / found, tag)
        numbers = {number for number, _ in raster.yolo(self.src / found)}
        if len(numbers) != 1:
            raise TaskError(f"task {self.name}: {found}: holds the classes {sorted(numbers)}, expected one")
        return str(numbers.pop())

    def _matched(self, pattern: re.Pattern[str], path: str, what: str) -> str:
        match = pattern.search(path)
        if match is None:
            raise TaskError(f"task {self.name}: {path}: no match of {pattern.pattern!r}, which tells its {what}")
        return "/".join(group for group in match.groups() if group is not None) or match.group()

    def _told(self, column: Column, path: str) -> str:
        if str(column.csv) not in self.tables:
            found = [other for other in self.paths if matcher([column.csv.as_posix()])(other)]
            if len(found) != 1:
                raise TaskError(f"task {self.name}: {len(found)} files are {column.csv}, expected one")
            self.tables[str(column.csv)] = ImageTable(replace(column, csv=self.src / found[0]))
        try:
            return self.tables[str(column.csv)].find(path)
        except UnplacedError as error:
            raise TaskError(f"task {self.name}: {path}: {error}") from error

    def _split(self, path: str) -> str | None:
        for split in SPLITS:
            if matcher(self.layout.splits.get(split, ()))(path):
                return split
        return None

    def _draw_val(self, rows: list[Cells]) -> None:
        """Give a share of the train cases to val, where the layout says so."""
        share = self.layout.val
        train = [row for row in rows if row["split"] == "train"]
        if not share or not train:
            return
        groups = [row["case"] or row.get("volume") or row["image"] for row in train]
        drawn = replace(self.layout.drawn, fractions=(1 - share, share, 0.0))
        for row, split in zip(train, draw_split(groups, [row.get("label", "") for row in train], drawn), strict=True):
            row["split"] = split
