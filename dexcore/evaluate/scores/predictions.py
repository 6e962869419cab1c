"""Saved predictions: what every number is computed from, again and again, without a model.

A Parquet file, a row an image, or a folder with several, such as one a rank, whose rows together are each image once:

    image            as in the task's table
    logits           list of float16 or float32, one a class, as the model gave them
    probabilities    in place of logits: what has none, such as neighbors
    mask             in place of logits: a PNG beside the file, at the image's own size, with the indices of classes;
                     of a multilabel_segmentation bit c stands for channel c
    sha256           beside mask: of the PNG as it was when the predictions were saved; another one is refused
    counts           in place of logits: pixels a class (tp, fp, fn, of the reference, of the prediction), one after
                     another, where masks are not kept

Its metadata ``dexcore.predictions`` is JSON: version, task, fingerprint (of the task as it was predicted), classes,
kind (the column above), model and seed.
"""

import hashlib
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dexcore.extras import require
from dexcore.files import write_whole
from dexcore.measures.overlap import COUNTS

if TYPE_CHECKING:
    from dexcore.evaluate.tasks import Task

Kind = Literal["logits", "probabilities", "mask", "counts"]
KINDS: tuple[Kind, ...] = ("logits", "probabilities", "mask", "counts")
_METADATA = b"dexcore.predictions"
_VERSION = 1


class PredictionsError(ValueError):
    """Predictions that cannot be scored; the message names task, file and row."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model said of images.

    Attributes:
        task, fingerprint, classes: of the task that was predicted.
        kind: what ``values`` are.
        image: as the task's table names them.
        values: logits or probabilities, float [n, classes]; counts, int64 [n, classes, 5]; or n paths of masks.
        model: what predicted, in words.
        seed: of its training; None where there is none.
        place: where each row stands, for messages; "" of what was never saved.
        sha256: of each mask's file, as it was saved; empty before.
    """

    task: str
    fingerprint: str
    classes: tuple[str, ...]
    kind: Kind
    image: tuple[str, ...]
    values: np.ndarray | tuple[str, ...]
    model: str = ""
    seed: int | None = None
    place: tuple[str, ...] = ()
    sha256: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))
        object.__setattr__(self, "image", tuple(self.image))
        if self.kind not in KINDS:
            raise PredictionsError(f"task {self.task}: kind is {self.kind!r}, expected one of {', '.join(KINDS)}")
        if len(self.values) != len(self.image):
            raise PredictionsError(f"task {self.task}: {len(self.values)} values of {len(self.image)} images")
        if self.kind != "mask":
            shape = (len(self.image), len(self.classes)) + ((len(COUNTS),) if self.kind == "counts" else ())
            values = np.asarray(self.values)
            if len(self.image) and values.shape != shape:
                raise PredictionsError(
                    f"task {self.task}: {self.kind} of shape {values.shape}, expected {shape} of "
                    f"{len(self.classes)} classes"
                )
            object.__setattr__(self, "values", values.reshape(shape))
        if not self.place:
            object.__setattr__(self, "place", tuple(f"row {row}" for row in range(len(self.image))))

    @classmethod
    def of(
        cls,
        task: "Task",
        kind: Kind,
        image: Sequence[str],
        values: np.ndarray | Sequence[str],
        model: str = "",
        seed: int | None = None,
    ) -> "Predictions":
        """Predictions of a task, in the state that it is in."""
        values = tuple(map(str, values)) if kind == "mask" else np.asarray(values)
        return cls(task.name, task.fingerprint, task.classes, kind, tuple(image), values, model, seed)

    def __len__(self) -> int:
        return len(self.image)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a Parquet file, whole or not at all. Paths of masks are written as seen from its folder.

        Raises:
            PredictionsError: a mask is another one than it was when these predictions were saved first.
            OSError: it cannot be written, or a mask cannot be read.
            MissingExtraError: pyarrow is not installed.
        """
        pa = require("pyarrow", "train")
        path = Path(path)
        if self.kind == "mask":
            folder = path.parent.resolve()
            told = [os.path.relpath(Path(str(mask)).resolve(), folder) for mask in self.values]
            columns = {"mask": pa.array(told, pa.string()), "sha256": pa.array(self._hashed(), pa.string())}
        else:
            values = np.asarray(self.values)
            flat = values.reshape(len(values), -1)
            columns = {self.kind: pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), max(flat.shape[1], 1))}
        about = {"version": _VERSION} | {name: getattr(self, name) for name in _ABOUT}
        table = pa.table({"image": pa.array(self.image, pa.string())} | columns)
        table = table.replace_schema_metadata({_METADATA: json.dumps(about).encode()})
        sink = pa.BufferOutputStream()
        require("pyarrow.parquet", "train").write_table(table, sink)
        write_whole(path, memoryview(sink.getvalue()))

    def mask(self, row: int, channels: int | None = None) -> np.ndarray:
        """The mask of a row, as `read_mask` reads it.

        Raises:
            PredictionsError: the file is missing, damaged, or another one than was saved.
        """
        return read_mask(str(self.values[row]), channels, self.sha256[row] if self.sha256 else None)

    def _hashed(self) -> list[str]:
        """SHA-256 of every mask's file."""
        known = self.sha256 or (None,) * len(self)
        return [
            _digest(str(mask), Path(str(mask)).read_bytes(), one) for mask, one in zip(self.values, known, strict=True)
        ]

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Predictions":
        """Read a file, or all ``*.parquet`` of a folder.

        Raises:
            PredictionsError: there is none, one is damaged, or they are of different models or tasks.
            MissingExtraError: pyarrow is not installed.
        """
        path = Path(path)
        files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
        if not files:
            raise PredictionsError(f"{path}: holds no .parquet with predictions")
        parts = [cls._load_one(file) for file in files]
        first = parts[0]
        for part, file in zip(parts, files, strict=True):
            for name in _ABOUT:
                if getattr(part, name) != getattr(first, name):
                    raise PredictionsError(
                        f"{file}: {name} is {getattr(part, name)!r}, that of {files[0]} is {getattr(first, name)!r}"
                    )
        values = (
            tuple(mask for part in parts for mask in part.values)
            if first.kind == "mask"
            else np.concatenate([np.asarray(part.values) for part in parts])
        )
        return cls(
            **{name: getattr(first, name) for name in _ABOUT},
            image=tuple(image for part in parts for image in part.image),
            values=values,
            place=tuple(place for part in parts for place in part.place),
            sha256=tuple(digest for part in parts for digest in part.sha256),
        )

    @classmethod
    def _load_one(cls, file: Path) -> "Predictions":
        pa = require("pyarrow", "train")
        try:
            table = require("pyarrow.parquet", "train").read_table(file)
        except (OSError, pa.ArrowException) as error:
            raise PredictionsError(f"{file}: cannot be read, expected a Parquet file: {error}") from error
        about = _about(file, table.schema.metadata or {})
        names = ("image", about["kind"], *(("sha256",) if about["kind"] == "mask" else ()))
        missing = [name for name in names if name not in table.column_names]
        if missing:
            raise PredictionsError(f"{file}: has no column {missing[0]}, it has {', '.join(table.column_names)}")
        columns = [table.column(name).combine_chunks() for name in names]
        for name, column in zip(names, columns, strict=True):
            if column.null_count:
                raise PredictionsError(f"{file}, row {column.is_null().to_pylist().index(True)}: {name} is missing")
        images, kept, *digests = columns
        values: Any
        if about["kind"] == "mask":
            values = tuple(str(file.parent / mask) for mask in kept.to_pylist())
        else:
            sizes = kept.value_lengths().to_numpy(zero_copy_only=False) if hasattr(kept, "value_lengths") else None
            width = len(about["classes"]) * (len(COUNTS) if about["kind"] == "counts" else 1)
            if sizes is not None and (sizes != width).any():
                row = int(np.argmax(sizes != width))
                raise PredictionsError(
                    f"task {about['task']}: {file}, row {row}: {about['kind']} holds {sizes[row]} numbers, expected "
                    f"{width} of {len(about['classes'])} classes"
                )
            flat = kept.flatten().to_numpy(zero_copy_only=False)
            shape = (-1, len(about["classes"])) + ((len(COUNTS),) if about["kind"] == "counts" else ())
            try:
                values = flat.reshape(shape)
            except ValueError as error:
                raise PredictionsError(
                    f"task {about['task']}: {file}: {about['kind']} do not fit {len(about['classes'])} classes"
                ) from error
        image = tuple(images.to_pylist())
        place = tuple(f"{file}, row {row}" for row in range(len(image)))
        sha256 = tuple(digest for column in digests for digest in column.to_pylist())
        return cls(**about, image=image, values=values, place=place, sha256=sha256)


_ABOUT = ("task", "fingerprint", "classes", "kind", "model", "seed")


def _about(file: Path, metadata: dict[bytes, bytes]) -> dict[str, Any]:
    if _METADATA not in metadata:
        raise PredictionsError(f"{file}: holds no predictions: its metadata lack {_METADATA.decode()}")
    try:
        about = json.loads(metadata[_METADATA])
        version, found = about["version"], {name: about[name] for name in _ABOUT}
    except (ValueError, KeyError, TypeError) as error:
        raise PredictionsError(f"{file}: its metadata {_METADATA.decode()} are damaged: {error!r}") from error
    if version != _VERSION:
        raise PredictionsError(f"{file}: is of version {version}, expected {_VERSION}")
    if found["kind"] not in KINDS:
        raise PredictionsError(f"{file}: kind is {found['kind']!r}, expected one of {', '.join(KINDS)}")
    return found | {"classes": tuple(found["classes"])}


def mask_name(image: str) -> str:
    """The name of the PNG of an image's mask: safe on every disk, and no two images share it."""
    return hashlib.sha256(image.encode()).hexdigest()[:24] + ".png"


def write_mask(folder: str | os.PathLike[str], image: str, mask: np.ndarray) -> str:
    """Write a predicted mask, and return its path.

    Args:
        folder: where it is written, as `mask_name` of the image.
        image: as in the task's table.
        mask: indices of classes [height, width], or bool [channels, height, width] of up to 16 channels.

    Raises:
        PredictionsError: it cannot be a mask.
        OSError: it cannot be written.
    """
    content = mask_png(image, mask)
    path = Path(folder) / mask_name(image)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content)
    return str(path)


def mask_png(image: str, mask: np.ndarray) -> bytes:
    """The PNG that `write_mask` writes, 8 or 16 bits.

    Raises:
        PredictionsError: it cannot be a mask.
    """
    packed = packed_mask(image, mask)
    buffer = io.BytesIO()
    require("PIL.Image", "train").fromarray(packed).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def packed_mask(image: str, mask: np.ndarray) -> np.ndarray:
    """A mask as one whole number a pixel, uint8 or uint16; of channels bit c stands for channel c.

    Raises:
        PredictionsError: it cannot be a mask.
    """
    if mask.ndim == 3 and mask.dtype == bool and len(mask) <= 16:
        mask = (mask * (1 << np.arange(len(mask)))[:, None, None]).sum(axis=0)
    if mask.ndim != 2 or mask.dtype.kind not in "iub" or (mask.size and not 0 <= mask.min() <= mask.max() < 1 << 16):
        raise PredictionsError(
            f"the mask of {image}: expected whole numbers [height, width], or bool [channels, height, width] of up to "
            f"16 channels; got {mask.dtype} {mask.shape}"
        )
    return mask.astype(np.uint8 if not mask.size or mask.max() < 256 else np.uint16)


def _digest(path: str, content: bytes, expected: str | None) -> str:
    found = hashlib.sha256(content).hexdigest()
    if expected is not None and found != expected:
        raise PredictionsError(
            f"{path}: is another mask than the predictions were saved with: SHA-256 {found[:12]}, expected "
            f"{expected[:12]}; each model's masks need a folder of their own"
        )
    return found


def read_mask(path: str, channels: int | None = None, sha256: str | None = None) -> np.ndarray:
    """Read what `write_mask` wrote: int64 [height, width], or bool [channels, height, width].

    Args:
        path: of a PNG.
        channels: how many it holds; None: indices of classes.
        sha256: that the file must have; None: any.

    Raises:
        PredictionsError: the file is missing, damaged, no gray PNG, or has another SHA-256.
    """
    image = require("PIL.Image", "train")
    try:
        content = Path(path).read_bytes()
        with image.open(io.BytesIO(content), formats=["PNG"]) as opened:
            mask = np.array(opened)
    except (OSError, SyntaxError, ValueError) as error:
        raise PredictionsError(f"{path}: cannot be read, expected a PNG: {error}") from error
    _digest(path, content, sha256)
    if mask.ndim != 2:
        raise PredictionsError(f"{path}: has shape {mask.shape}, expected one channel with the indices of classes")
    mask = mask.astype(np.int64)
    if channels is None:
        return mask
    if mask.size and mask.max() >= 1 << channels:
        raise PredictionsError(f"{path}: holds {mask.max()}, more than {channels} channels make")
    return (mask[None] >> np.arange(channels)[:, None, None] & 1).astype(bool)
