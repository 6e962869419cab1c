"""Hugging Face Parquet corpora, as a hub serves them, to a store; `dexcore.data.store.exchange` goes the other way."""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dexcore.data.assemble.reasons import reason_of
from dexcore.data.modality import Modality
from dexcore.data.normalize import normalize
from dexcore.data.readers import UnreadableFileError, read_file
from dexcore.data.readers.kind import file_kind
from dexcore.data.record import ImageRecord, Split
from dexcore.data.store import Manifest, write_store
from dexcore.extras import require

_BATCH_ROWS = 32  # images in memory at a time
_HELDOUT = {"heldout", "test", "validation", "valid", "val", "dev"}  # what hubs call it
# What can be in a column, with its value where there is none; the modality has to be told.
_FIELDS: dict[str, Any] = {
    "modality": None,
    "source": None,
    "anatomy": "",
    "normalization": "div255",
    "group": None,
    "synthetic": False,
    "split": None,
    "spacing": None,
    "burned_in": None,
}


@dataclass(frozen=True)
class Imported:
    """What came of an import.

    Attributes:
        manifest: of the store that was written.
        rejected: what was left out: ``FILE#ROW`` and the reason.
    """

    manifest: Manifest
    rejected: tuple[tuple[str, str], ...]


def import_parquet(
    parquet: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    name: str,
    modality: str | None = None,
    source: str | None = None,
    anatomy: str | None = None,
    columns: Mapping[str, str] | None = None,
    values: Mapping[str, str] | None = None,
    max_side: int = 512,
) -> Imported:
    """Write the images of Parquet files as a store.

    What is known of an image comes from the arguments, else from the columns that are named as a store's are (as
    `export_parquet` writes them), else: source, the name of ``parquet``; anatomy, none; normalization, div255; group,
    one of its own; split, held out in files named test, validation or heldout, as hubs name them, else training.
    Images are taken as normalised: their smallest and largest possible value become 0 and 1.

    Args:
        parquet: a file, or a folder with ``*.parquet`` files.
        folder, name, max_side: as for `write_store`.
        modality: of all images, a name of `Modality`.
        source: of all images.
        anatomy: of all images.
        columns: where columns have other names: ours to theirs, ``{"image": "scan", "group": "patient_id"}``.
        values: where modalities have other names: theirs to ours, ``{"cxr": "X-ray"}``.

    Returns:
        The manifest, and what was left out since it is no readable image.

    Raises:
        ValueError: there are no Parquet files, no or several columns of images, no modality or an unknown one; the
            message says which argument helps. Or nothing in them is an image.
        StoreError: the folder cannot be written.
    """
    path = Path(parquet)
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise ValueError(f"{path}: no Parquet file, expected one or a folder with *.parquet files")
    arguments = {"modality": modality, "source": source, "anatomy": anatomy}
    given = {field: value for field, value in arguments.items() if value is not None}
    named = dict(columns or {})
    unknown = named.keys() - {"image", *_FIELDS}
    if unknown:
        raise ValueError(f"columns names {min(unknown)!r}, expected {', '.join(['image', *_FIELDS])}")
    root = path if path.is_dir() else path.parent
    tables = [_Table(file, file.relative_to(root).as_posix(), path.stem, given, named, values or {}) for file in files]
    rejected: list[tuple[str, str]] = []
    records = (record for table in tables for record in table.records(rejected))
    return Imported(write_store(records, folder, name=name, max_side=max_side), tuple(rejected))


class _Table:
    """One Parquet file: where its images and columns are, checked before any image is read."""

    def __init__(
        self,
        path: Path,
        key: str,
        corpus: str,
        given: Mapping[str, str],
        columns: Mapping[str, str],
        values: Mapping[str, str],
    ) -> None:
        parquet = require("pyarrow.parquet", "train")
        self._path, self._key, self._corpus, self._given, self._values = path, key, corpus, given, values
        try:
            self._file = parquet.ParquetFile(path)
        except (OSError, require("pyarrow", "train").ArrowException) as error:
            raise ValueError(f"{path} is no readable Parquet file: {error}") from error
        schema = self._file.schema_arrow
        self._features = _features(schema)
        for theirs in columns.values():
            if theirs not in schema.names:
                raise ValueError(f"{path} has no column {theirs!r}, it has {', '.join(schema.names)}")
        self._image = columns.get("image") or self._image_column(schema)
        self._columns = {
            field: columns.get(field, field)
            for field in _FIELDS
            if field not in given and columns.get(field, field) in schema.names
        }
        self._check_modality(schema.names)

    def records(self, rejected: list[tuple[str, str]]) -> Iterator[ImageRecord]:
        """The images one by one; what is none is added to ``rejected``."""
        wanted = [self._image, *dict.fromkeys(self._columns.values())]
        number = 0
        with tempfile.TemporaryDirectory() as scratch:
            for batch in self._file.iter_batches(_BATCH_ROWS, columns=wanted):
                for row in batch.to_pylist():
                    where = f"{self._key}#{number}"
                    file = Path(scratch) / "image"
                    try:
                        image = _image(row[self._image], file)
                    except UnreadableFileError as error:
                        rejected.append((where, reason_of(error, file_kind(file) if file.exists() else None)))
                    else:
                        yield self._record(row, where, image)
                    number += 1

    def _record(self, row: Mapping[str, Any], where: str, image: np.ndarray) -> ImageRecord:
        fields = {field: self._value(theirs, row[theirs]) for field, theirs in self._columns.items()}
        fields = _FIELDS | {field: value for field, value in fields.items() if value is not None} | dict(self._given)
        stored = row[self._image]
        path = stored.get("path") if isinstance(stored, dict) else None
        return ImageRecord(
            image=image,
            modality=self._modality(fields["modality"], where),
            source=self._corpus if fields["source"] is None else str(fields["source"]),
            anatomy=str(fields["anatomy"]),
            normalization=fields["normalization"],
            group=where if fields["group"] is None else str(fields["group"]),
            path=path or where,
            synthetic=fields["synthetic"],
            split=self._split(fields["split"]),
            spacing=fields["spacing"],
            burned_in=fields["burned_in"],
        )

    def _image_column(self, schema: Any) -> str:
        types = require("pyarrow", "train").types
        found = [name for name, feature in self._features.items() if feature.get("_type") == "Image"]
        found = found or [
            field.name
            for field in schema
            if (types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0)
            or types.is_binary(field.type)
            or types.is_large_binary(field.type)
        ]
        if len(found) != 1:
            which = f"the columns {', '.join(found)} may hold them" if found else f"no column of {schema.names} does"
            raise ValueError(f"{self._path}: which column holds the images? {which}; say columns={{'image': NAME}}")
        return found[0]

    def _check_modality(self, names: list[str]) -> None:
        """Read the column of modalities, before minutes are spent on images."""
        if "modality" in self._given:
            self._modality(self._given["modality"], "modality")
            return
        if "modality" not in self._columns:
            raise ValueError(
                f"{self._path} does not say what its images are: say modality=NAME, one of {', '.join(Modality)}, or "
                f"columns={{'modality': NAME}}, one of {', '.join(name for name in names if name != self._image)}"
            )
        column = self._columns["modality"]
        number = 0
        for batch in self._file.iter_batches(columns=[column]):
            for value in batch.column(0).to_pylist():
                self._modality(self._value(column, value), f"{self._path}, row {number}")
                number += 1

    def _modality(self, value: Any, where: str) -> Modality:
        name = self._values.get(str(value), value)
        if name not in list(Modality):
            raise ValueError(
                f"{where}: modality is {value!r}, expected one of {', '.join(Modality)}; say values={{{str(value)!r}: "
                "NAME}, or modality=NAME for all"
            )
        return Modality(name)

    def _split(self, value: Any) -> Split:
        """From the column, else from the file's name, which on hubs begins with the split's."""
        name = value if isinstance(value, str) else self._path.name.split("-")[0].split(".")[0]
        return "heldout" if name.lower() in _HELDOUT else "train"

    def _value(self, column: str, value: Any) -> Any:
        """A label by its name, where the corpus says it."""
        names = self._features.get(column, {}).get("names")
        return names[value] if isinstance(names, list) and isinstance(value, int) and 0 <= value < len(names) else value


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """What Hugging Face's metadata says about the columns; empty where there is none."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _image(stored: Any, scratch: Path) -> np.ndarray:
    """Read an encoded image: float32 in [0, 1], [H, W] or [H, W, 3].

    Raises:
        UnreadableFileError: it is none.
    """
    data = stored.get("bytes") if isinstance(stored, dict) else stored
    if not isinstance(data, bytes):
        raise UnreadableFileError(scratch, "has no bytes: the image is in another file")
    scratch.write_bytes(data)
    scan = read_file(scratch)
    if scan.layout != "frames" or len(scan.held) != 1:
        raise UnreadableFileError(scratch, f"is a {scan.layout} of {list(scan.held.shape)}, expected one image")
    image = normalize(scan.pixels[0], "div255", scan.levels)
    gray = image.ndim == 3 and (image == image[..., :1]).all()
    return np.ascontiguousarray(image[..., 0]) if gray else image
