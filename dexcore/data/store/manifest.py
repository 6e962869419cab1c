"""The store's format: the folder, its manifest, the columns of its shards.

    folder/
        manifest.json                    what belongs to the store; replaced last and at once
        shard-00000-<12 hex>.arrow       images of one source, named by their content

Sample ids are row numbers over all shards: sources by name, the shards of each in order.

Version 1, which is read and no longer written, had the images of all sources in the same shards, as PNG.
"""

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dexcore.extras import require

VERSION = 2
MANIFEST = "manifest.json"
Row = dict[str, Any]
Counts = dict[str, dict[str, int]]
# The columns beside the image, by their Arrow types, which Hugging Face's `Value` calls by the same names.
COLUMNS = {
    "modality": "string",
    "source": "string",
    "anatomy": "string",
    "normalization": "string",
    "group": "string",
    "synthetic": "bool",
    "split": "string",
    "height": "int32",
    "width": "int32",
    "bit_depth": "int32",
    "sha256": "binary",
    "spacing": "float64",
    "burned_in": "bool",
    "phash": "binary",
}
NULLABLE = {"spacing", "burned_in"}  # what is not known of every image
_SINCE_VERSION_2 = {"spacing", "burned_in", "phash"}
_DERIVED = {"phash"}  # from the pixels, by OpenCV: rounding may differ from machine to machine


class StoreError(RuntimeError):
    """A store cannot be written, opened or read; the message names the file and what was expected."""


class ImageDecodeError(StoreError):
    """One stored image cannot be decoded; the message names the shard and the row."""


@dataclass(frozen=True)
class Shard:
    """One shard file: its name, its size in bytes, how many images it holds, and its sha256 in hex."""

    name: str
    size: int
    images: int
    sha256: str


@dataclass(frozen=True)
class SourcePart:
    """What a store holds of one source.

    Attributes:
        fingerprint: sha256 (hex) over the images' hashes and their columns in order, but that of perceptual hashes,
            which follow from the images.
        counts: images by modality and split: ``counts["CT"]["train"]``.
        shards: in the order of their rows.
    """

    fingerprint: str
    counts: Counts
    shards: tuple[Shard, ...]

    @property
    def images(self) -> int:
        return sum(shard.images for shard in self.shards)


@dataclass(frozen=True)
class Manifest:
    """What belongs to a store; `Manifest.of` makes one.

    Attributes:
        name: of the store, for people.
        fingerprint: sha256 (hex) over the sources' names and fingerprints. It changes with any image or column,
            and neither with the time, the folder, the original paths nor the cut into shards.
        images: in all shards.
        max_side: the largest shorter side, pixels.
        counts: images by modality, source and split: ``counts["CT"]["ImageCAS"]["train"]``.
        shards: in the order of their rows.
        version: of the format.
        sources: by their names, in order; empty in version 1.
    """

    name: str
    fingerprint: str
    images: int
    max_side: int
    counts: dict[str, dict[str, dict[str, int]]]
    shards: tuple[Shard, ...]
    version: int = VERSION
    sources: Mapping[str, SourcePart] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, max_side: int, sources: Mapping[str, SourcePart]) -> "Manifest":
        """Put the sources of a store together, in the order of their names."""
        ordered = dict(sorted(sources.items()))
        counts: dict[str, dict[str, dict[str, int]]] = {}
        digest = hashlib.sha256()
        for source, part in ordered.items():
            digest.update(json.dumps([source, part.fingerprint]).encode() + b"\n")
            for modality, splits in part.counts.items():
                counts.setdefault(modality, {})[source] = splits
        return cls(
            name=name,
            fingerprint=digest.hexdigest(),
            images=sum(part.images for part in ordered.values()),
            max_side=max_side,
            counts=counts,
            shards=tuple(shard for part in ordered.values() for shard in part.shards),
            sources=ordered,
        )

    def to_json(self) -> str:
        """The manifest's file. What follows from the sources is written for people and compared when it is read."""
        fields = {key: getattr(self, key) for key in ("version", "name", "fingerprint", "images", "max_side")}
        fields["sources"] = {source: asdict(part) for source, part in self.sources.items()}
        return json.dumps(fields, indent=1, sort_keys=True, ensure_ascii=False) + "\n"

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "Manifest":
        """Read the manifest of a store.

        Raises:
            StoreError: the folder or its manifest is missing, of another version, or no manifest at all.
        """
        path = Path(folder) / MANIFEST
        if not Path(folder).is_dir():
            raise StoreError(f"{folder}: no such folder, expected a store (a folder with {MANIFEST})")
        if not path.is_file():
            raise StoreError(f"{path} is missing: the folder holds no store, or its build did not end")
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            version = fields["version"]
            if version not in (1, VERSION):
                raise StoreError(f"{path} has version {version}, this dexcore reads versions 1 and {VERSION}")
            if version == 1:
                return cls(**fields | {"shards": _shards(fields["shards"])})
            parts = {
                source: SourcePart(**part | {"shards": _shards(part["shards"])})
                for source, part in fields["sources"].items()
            }
            manifest = cls.of(fields["name"], fields["max_side"], parts)
            if (manifest.fingerprint, manifest.images) != (fields["fingerprint"], fields["images"]):
                raise ValueError("its fingerprint or its number of images is not that of its sources")
            return manifest
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(f"{path} is no manifest of a store: {error}") from error


def _shards(shards: Iterable[Mapping[str, Any]]) -> tuple[Shard, ...]:
    return tuple(Shard(**shard) for shard in shards)


def columns(version: int = VERSION) -> dict[str, str]:
    """The columns that stores of a version have beside the image."""
    return {name: kind for name, kind in COLUMNS.items() if version > 1 or name not in _SINCE_VERSION_2}


def schema(version: int = VERSION, without: Collection[str] = ()) -> Any:
    """Give the Arrow schema, with the features under the metadata key where Hugging Face looks for them.

    ``without`` names columns to leave out.
    """
    pa = require("pyarrow", "train")
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    known = {name: kind for name, kind in columns(version).items() if name not in without}
    fields = [("image", image), *((name, pa.type_for_alias(kind)) for name, kind in known.items())]
    features: dict[str, dict[str, str]] = {"image": {"_type": "Image"}}
    features |= {name: {"dtype": kind, "_type": "Value"} for name, kind in known.items()}
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}})})


class Tally:
    """Gathers what the manifest says about the rows of one source (of all sources in version 1)."""

    def __init__(self, version: int = VERSION) -> None:
        self.images = 0
        self.counts: Counts = {}
        self._columns = [name for name in columns(version) if name not in _DERIVED]
        self._content = hashlib.sha256()

    def add(self, rows: list[Row]) -> None:
        for row in rows:
            self.images += 1
            splits = self.counts.setdefault(row["modality"], {})
            splits[row["split"]] = splits.get(row["split"], 0) + 1
            values = [row[column].hex() if column == "sha256" else row[column] for column in self._columns]
            self._content.update(json.dumps(values).encode() + b"\n")

    @property
    def fingerprint(self) -> str:
        return self._content.hexdigest()

    def part(self, shards: Iterable[Shard]) -> SourcePart:
        """What the rows are to the manifest, with the shards that hold them."""
        return SourcePart(self.fingerprint, self.counts, tuple(shards))
