"""The store's format: the folder, its manifest, the columns of its shards.

    folder/
        manifest.json                    what belongs to the store; replaced last and at once
        shard-00000-<12 hex>.arrow       named by their content

Sample ids are row numbers over all shards, in the manifest's order.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dexcore.extras import require

VERSION = 1
MANIFEST = "manifest.json"
Row = dict[str, Any]
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
}


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
class Manifest:
    """What belongs to a store.

    Attributes:
        name: of the store, for people.
        fingerprint: sha256 (hex) over the images' hashes and their columns in order. It changes with any of
            them, and neither with the time, the folder, the original paths nor the cut into shards.
        images: in all shards.
        max_side: the largest shorter side, pixels.
        counts: images by modality, source and split: ``counts["CT"]["ImageCAS"]["train"]``.
        shards: in the order of their rows.
        version: of the format.
    """

    name: str
    fingerprint: str
    images: int
    max_side: int
    counts: dict[str, dict[str, dict[str, int]]]
    shards: tuple[Shard, ...]
    version: int = VERSION

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
            if version != VERSION:
                raise StoreError(f"{path} has version {version}, this dexcore reads version {VERSION}")
            fields["shards"] = tuple(Shard(**shard) for shard in fields["shards"])
            return cls(**fields)
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{path} is no manifest of a store: {error}") from error


def schema() -> Any:
    """Give the Arrow schema, with the features under the metadata key where Hugging Face looks for them."""
    pa = require("pyarrow", "train")
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    fields = [("image", image), *((name, pa.type_for_alias(kind)) for name, kind in COLUMNS.items())]
    features: dict[str, dict[str, str]] = {"image": {"_type": "Image"}}
    features |= {name: {"dtype": kind, "_type": "Value"} for name, kind in COLUMNS.items()}
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}})})


class Tally:
    """Gathers what the manifest says about all rows."""

    def __init__(self) -> None:
        self.images = 0
        self.counts: dict[str, dict[str, dict[str, int]]] = {}
        self._content = hashlib.sha256()

    def add(self, rows: list[Row]) -> None:
        for row in rows:
            self.images += 1
            splits = self.counts.setdefault(row["modality"], {}).setdefault(row["source"], {})
            splits[row["split"]] = splits.get(row["split"], 0) + 1
            values = [row[column].hex() if column == "sha256" else row[column] for column in COLUMNS]
            self._content.update(json.dumps(values).encode() + b"\n")

    @property
    def fingerprint(self) -> str:
        return self._content.hexdigest()

    def manifest(self, name: str, max_side: int, shards: list[Shard]) -> Manifest:
        return Manifest(name, self.fingerprint, self.images, max_side, self.counts, tuple(shards))
