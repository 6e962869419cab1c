"""Masks drawn from what is no picture of classes, and pictures of kinds that `dexcore.data.readers` does not read.

What is drawn lies beside the task's YAML, in a folder of the task's name, as PNG.
"""

import os
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from dexcore.data.readers.kind import file_kind
from dexcore.data.readers.scan import unreadable
from dexcore.evaluate.tasks.pixels import PixelsError, read_plane
from dexcore.evaluate.tasks.spec import TaskError
from dexcore.extras import require

_MORE_FORMATS = ("GIF", "PPM")  # Pillow's; PPM is PGM too


class Pictures:
    """The pictures that are drawn for one task: ``OUT/NAME/masks`` and ``OUT/NAME/images``.

    The folder is made with the first of them. As a context, it goes again where the import fails.

    Args:
        out: the folder of the task's YAML.
        name: of the task.
    """

    def __init__(self, out: Path, name: str) -> None:
        self.folder, self._out, self._ours = out / name, out, False

    def __enter__(self) -> "Pictures":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and self._ours:
            shutil.rmtree(self.folder, ignore_errors=True)

    def save_mask(self, name: str, mask: np.ndarray) -> str:
        """Write ``OUT/NAME/masks/name``, as `save_image`."""
        return self._save(self.folder / "masks" / name, mask)

    def save_image(self, name: str, pixels: np.ndarray) -> str:
        """Write gray or RGB pixels of 8 or 16 bits; give the path in the task's table.

        Raises:
            TaskError: the folder was there before.
            OSError: it cannot be written.
        """
        return self._save(self.folder / "images" / name, pixels)

    def _save(self, path: Path, pixels: np.ndarray) -> str:
        if not self._ours:
            try:
                self.folder.mkdir(parents=True)
            except FileExistsError:
                raise TaskError(
                    f"{self.folder}: is there already, and pictures are drawn there: choose another name or folder, or "
                    "remove it, if an import that was cut short has left it"
                ) from None
            self._ours = True
        path.parent.mkdir(parents=True, exist_ok=True)
        ordered = pixels[..., ::-1] if pixels.ndim == 3 else pixels
        done, data = require("cv2", "train").imencode(".png", np.ascontiguousarray(ordered))
        assert done
        # Half a picture, after a kill, is of no task: the YAML comes last, and no import goes on in this folder.
        path.write_bytes(data.tobytes())
        return f"./{path.relative_to(self._out).as_posix()}"


def read_any(path: Path) -> np.ndarray:
    """The pixels of a picture: as `read_plane`, and of GIF and PGM.

    Raises:
        PixelsError: it cannot be read.
    """
    if not path.is_file() or file_kind(path) is not None:
        return read_plane(str(path)).pixels
    try:
        with unreadable(path), require("PIL.Image", "train").open(path, formats=_MORE_FORMATS) as image:
            gray = image.mode in ("1", "L") or image.mode.startswith("I")
            return np.array(image.convert("L") if image.mode == "1" else image if gray else image.convert("RGB"))
    except ValueError as error:
        raise PixelsError(str(error)) from error


def nonzero(path: Path) -> np.ndarray:
    """1 where a picture is not black, in whatever colour."""
    pixels = read_any(path)
    return (pixels.max(axis=2) > 0 if pixels.ndim == 3 else pixels > 0).astype(np.uint8)


def filled(path: Path) -> np.ndarray:
    """1 on and inside the closed outlines of a picture: what is brighter than half of its brightest pixel."""
    pixels = read_any(path)
    gray = pixels.max(axis=2) if pixels.ndim == 3 else pixels
    outline = gray > gray.max() / 2
    return require("scipy.ndimage", "eval").binary_fill_holes(outline).astype(np.uint8)


def polygons(path: Path, height: int, width: int) -> np.ndarray:
    """1 inside the polygons of a YOLO file: a line each, a class and points as shares of width and height.

    Raises:
        TaskError: a line is none.
    """
    mask = np.zeros((height, width), np.uint8)
    for _, points in yolo(path):
        _fill(mask, points * [width, height], 1)
    return mask


def yolo(path: Path) -> list[tuple[int, np.ndarray]]:
    """The classes and the points, [points, 2] of x and y, of a YOLO file.

    Raises:
        TaskError: a line is none.
    """
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        words = line.split()
        if not words:
            continue
        try:
            values = np.array(words[1:], float)
            found.append((int(words[0]), values.reshape(-1, 2)))
        except ValueError:
            raise TaskError(f"{path}, line {number}: is no polygon, expected a class and points: x y x y ...") from None
    return found


def regions(path: Path, classes: dict[str, int], height: int, width: int) -> np.ndarray:
    """The classes of Aperio's regions (ImageScope's XML), a later one over an earlier one.

    Args:
        path: the XML.
        classes: the value of each name of an annotation's attribute.
        height, width: of the image.

    Raises:
        TaskError: it is no such XML, or names a class that is not there.
    """
    mask = np.zeros((height, width), np.uint8)
    for annotation in _xml(path).iter("Annotation"):
        names = [attribute.get("Name", "") for attribute in annotation.iter("Attribute")]
        values = [classes[name] for name in names if name in classes]
        vertices = [list(region.iter("Vertex")) for region in annotation.iter("Region")]
        if any(vertices) and not values:
            raise TaskError(f"{path}: holds a region of {names}, expected one of {', '.join(classes)}")
        for points in vertices:
            if points:
                corners = np.array([[float(point.get("X", "nan")), float(point.get("Y", "nan"))] for point in points])
                _fill(mask, corners, values[0])
    return mask


def first_in_xml(path: Path, tag: str) -> str:
    """The text of the first element of this name.

    Raises:
        TaskError: it is no XML, or has none.
    """
    found = _xml(path).find(f".//{tag}")
    if found is None or not (found.text or "").strip():
        raise TaskError(f"{path}: has no element {tag}")
    return (found.text or "").strip()


def _xml(path: Path) -> ElementTree.Element:
    data = path.read_bytes()
    if b"<!ENTITY" in data:
        raise TaskError(f"{path}: declares entities, which annotations do not need")
    try:
        return ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        raise TaskError(f"{path}: is no XML: {error}") from error


def _fill(mask: np.ndarray, points: np.ndarray, value: int) -> None:
    if not np.isfinite(points).all():
        raise TaskError("an outline has a corner that is no number")
    require("cv2", "train").fillPoly(mask, [np.round(points).astype(np.int32).reshape(-1, 1, 2)], value)


def raw_pixels(path: str | os.PathLike[str], height: int, width: int, dtype: str) -> np.ndarray:
    """The pixels of a file without a header.

    Raises:
        TaskError: it is of another size.
    """
    data = Path(path).read_bytes()
    expected = height * width * np.dtype(dtype).itemsize
    if len(data) != expected:
        raise TaskError(f"{os.fspath(path)}: has {len(data)} bytes, expected {expected} of {height} x {width} pixels")
    return np.frombuffer(data, dtype).reshape(height, width)
