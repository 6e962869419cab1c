"""Features on the disk: a folder a key, and in it Arrow streams of rows, each written whole or not at all.

The key stands for all that features depend on but the images, a row's key for the image. What does not fit is not found
and computed anew. A killed run has lost the rows since its last stream; every process writes streams of its own.
"""

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import dexcore
from dexcore.data.assemble.plan import PACKAGES, package_version
from dexcore.evaluate.embedding.view import Preprocessing
from dexcore.extras import require
from dexcore.files import write_whole

VERSION = 1  # of the files, and of what is computed of a model's tokens
_METADATA = b"dexcore.feature_cache"
_OUTPUT = "last block and norm; class token, mean of patch tokens, gates"
_PACKAGES = ("torch", "timm", *PACKAGES)  # what decides over sums and pixels
_log = logging.getLogger(__name__)


def default_cache() -> Path:
    """Where features are kept: ``DEXCORE_CACHE``, else dexcore's folder in the user's folder of caches."""
    own = os.environ.get("DEXCORE_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dexcore"


def features_key(model: str, mode: str, view: Preprocessing, precision: str, device: torch.device) -> str:
    """SHA-256 of all that features depend on but the images.

    Args:
        model: its hash, or what its owner says that stands for it.
        mode: of its layers.
        view: what it is shown.
        precision: "fp32" or "bf16".
        device: where it computes.
    """
    told: dict[str, Any] = {"version": VERSION, "output": _OUTPUT, "model": model, "mode": mode, "precision": precision}
    told |= {"view": view.described(), "products": _products(device), "dexcore": dexcore.__version__}
    told |= {"packages": {name: package_version(name) for name in _PACKAGES}}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _products(device: torch.device) -> list[str]:
    """To what torch rounds the factors of float32 products there, TF32 among them: of matrices, of convolutions."""
    backends: Any = torch.backends
    parts = (backends.cuda.matmul, backends.cudnn.conv)
    if device.type != "cuda":
        parts = (backends.mkldnn.matmul, backends.mkldnn.conv)
    return ["ieee" if part.fp32_precision == "none" else part.fp32_precision for part in parts]


@dataclass(frozen=True)
class _Stream:
    """One file of rows, mapped.

    Attributes:
        values: by name, [rows, ...].
        grid: of the patch tokens, where it holds them.
    """

    row_key: list[str]
    values: Mapping[str, np.ndarray]
    grid: tuple[int, int] | None


class FeatureCache:
    """The features of one key."""

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key = folder / "features" / key[:32], key
        self._streams: list[_Stream] = []
        self._place: dict[str, tuple[int, int]] = {}

    def look(self, tokens: bool) -> None:
        """Find what is there; with ``tokens`` only rows that have their patch tokens."""
        self._streams, self._place = [], {}
        for path in sorted(self.folder.glob("*.arrow")):
            stream = self._read(path)
            if stream is None or (tokens and "tokens" not in stream.values):
                continue
            for row, key in enumerate(stream.row_key):
                self._place[key] = (len(self._streams), row)
            self._streams.append(stream)

    def __contains__(self, row_key: str) -> bool:
        return row_key in self._place

    def values(self, name: str, row_keys: Sequence[str]) -> np.ndarray | None:
        """Rows of ``mean``, ``cls``, ``gates`` or ``tokens``; None where the model has none."""
        places = [self._place[key] for key in row_keys]
        if not places or name not in self._streams[places[0][0]].values:
            return None
        first = self._streams[places[0][0]].values[name]
        found = np.empty((len(places), *first.shape[1:]), first.dtype)
        for row, (stream, place) in enumerate(places):
            found[row] = self._streams[stream].values[name][place]
        return found

    def grid(self, row_keys: Sequence[str]) -> tuple[int, int] | None:
        """Rows and columns of the patch tokens."""
        return self._streams[self._place[row_keys[0]][0]].grid if row_keys else None

    def write(self, row_keys: Sequence[str], values: Mapping[str, np.ndarray], grid: tuple[int, int] | None) -> None:
        """Add rows: float32 mean, cls and gates, float16 tokens; [rows, ...] each.

        Raises:
            OSError: they cannot be written; what was written before stays.
        """
        pa = require("pyarrow", "train")
        columns = {"row_key": pa.array(list(row_keys), pa.string())}
        for name, rows in values.items():
            flat = np.ascontiguousarray(rows).reshape(len(rows), -1)
            columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), flat.shape[1])
        about = {"version": VERSION, "key": self.key, "grid": grid}
        about["shapes"] = {name: rows.shape[1:] for name, rows in values.items()}
        batch = pa.record_batch(columns)
        schema = batch.schema.with_metadata({_METADATA: json.dumps(about).encode()})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, schema) as writer:
            writer.write_batch(batch.replace_schema_metadata(schema.metadata))
        self.folder.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256(" ".join([*row_keys, *values]).encode()).hexdigest()[:32]
        write_whole(self.folder / f"{name}.arrow", memoryview(sink.getvalue()))

    def _read(self, path: Path) -> _Stream | None:
        """A file of rows; None, with a warning, where it is damaged or another key's."""
        pa = require("pyarrow", "train")
        try:
            with pa.ipc.open_stream(pa.memory_map(str(path))) as reader:
                about = json.loads(reader.schema.metadata[_METADATA])
                if (about["version"], about["key"]) != (VERSION, self.key):
                    raise ValueError("it is of another key")
                (batch,) = reader
            batch.validate(full=True)
            values = {
                name: batch.column(name).flatten().to_numpy(zero_copy_only=False).reshape(batch.num_rows, *shape)
                for name, shape in about["shapes"].items()
            }
            grid = about["grid"] and (int(about["grid"][0]), int(about["grid"][1]))
            return _Stream(batch.column("row_key").to_pylist(), values, grid)
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
            _log.warning("%s is not used, its rows are computed again: %s", path, error)
            return None
