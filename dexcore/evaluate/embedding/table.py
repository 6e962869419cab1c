"""The features of images, as one table: what probes take, and what `dexcore embed` writes."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dexcore.extras import require
from dexcore.files import write_whole

_METADATA = b"dexcore.features"
_VERSION = 1
_ABOUT = ("key", "model", "mode", "crop")


class FeaturesError(ValueError):
    """Features cannot be computed, kept or read; the message names the image or the file."""


@dataclass(frozen=True, eq=False)
class FeatureTable:
    """The features of n images, a row each.

    Attributes:
        image: their names: as the task's table has them, or the paths of a store.
        mean: of each image's patch tokens (of a model without tokens: of its last map's pixels), float32 [n, D].
        cls: the class token, float32 [n, D]; None of a model that has none.
        gates: what each expert of each DEX layer received of an image, 0 for those that were not chosen, float32
            [n, L, R], R of the layer with most experts; None of a model without experts, or in director mode.
        key: SHA-256 of all that the features depend on but the images: two tables with one key are comparable.
        row_key: SHA-256 of each image; equal ones are one image.
        model: what computed them, in words.
        mode: "experts" or "director"; "" of a model without DEX layers.
        grid: rows and columns of the patch tokens; None where they were not asked for.
        crop: what of an image was shown, "center" or "whole"; "" where nobody said.
    """

    image: tuple[str, ...]
    mean: np.ndarray
    cls: np.ndarray | None = None
    gates: np.ndarray | None = None
    key: str = ""
    row_key: tuple[str, ...] = ()
    model: str = ""
    mode: str = ""
    grid: tuple[int, int] | None = None
    crop: str = ""
    _tokens: Callable[[Sequence[int]], np.ndarray] | None = None
    _token_rows: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "image", tuple(self.image))
        twice = len(self.image) - len(set(self.image))
        if twice:
            raise FeaturesError(f"features of {len(self.image)} images: {twice} names stand there twice")
        for name in ("mean", "cls", "gates"):
            values = getattr(self, name)
            if values is not None and (values.ndim != (3 if name == "gates" else 2) or len(values) != len(self.image)):
                raise FeaturesError(f"{name} has shape {values.shape}, expected a row for each of {len(self)} images")

    def __len__(self) -> int:
        return len(self.image)

    @property
    def width(self) -> int:
        """D, the numbers of a feature."""
        return self.mean.shape[1]

    def of(self, images: Sequence[str]) -> "FeatureTable":
        """The rows of these images, in their order, as ``table.of([row.image for row in task.split("train")])``.

        Raises:
            FeaturesError: one is not in the table.
        """
        place = {name: row for row, name in enumerate(self.image)}
        missing = [name for name in images if name not in place]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise FeaturesError(f"the features of {missing[0]}{more} are not in the table of {len(self)} images")
        rows = [place[name] for name in images]
        return replace(
            self,
            image=tuple(images),
            mean=self.mean[rows],
            cls=None if self.cls is None else self.cls[rows],
            gates=None if self.gates is None else self.gates[rows],
            row_key=tuple(self.row_key[row] for row in rows) if self.row_key else (),
            _token_rows=tuple(self._token_rows[row] for row in rows) if self._token_rows else (),
        )

    def tokens(self, rows: Sequence[int]) -> np.ndarray:
        """The patch tokens of rows, read from the cache's memory map: float16 [len(rows), grid rows * columns, D].

        They come row of patches by row of patches, as the image is read; class token and registers are left out.

        Raises:
            FeaturesError: they were not asked for (``tokens=True``).
        """
        if self._tokens is None:
            raise FeaturesError("this table has no patch tokens: ask for them, as features(..., tokens=True)")
        return self._tokens([self._token_rows[row] for row in rows])

    def save(self, path: str | os.PathLike[str], columns: Mapping[str, Sequence[Any]] | None = None) -> None:
        """Write a Parquet file, whole or not at all: image, row_key, mean, cls, gates; without patch tokens.

        Args:
            path: of the file.
            columns: more of them, an entry an image, written after ``image``.

        Raises:
            OSError: it cannot be written.
            MissingExtraError: pyarrow is not installed.
        """
        pa = require("pyarrow", "train")
        table = {"image": pa.array(self.image, pa.string())}
        table |= {name: pa.array(values) for name, values in (columns or {}).items()}
        if self.row_key:
            table["row_key"] = pa.array(self.row_key, pa.string())
        for name in ("cls", "mean", "gates"):
            values = getattr(self, name)
            if values is not None:
                flat = np.ascontiguousarray(values, np.float32).reshape(len(values), int(np.prod(values.shape[1:])))
                table[name] = pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), flat.shape[1])
        about = {"version": _VERSION} | {name: getattr(self, name) for name in _ABOUT}
        about["gates"] = None if self.gates is None else list(self.gates.shape[1:])
        made = pa.table(table).replace_schema_metadata({_METADATA: json.dumps(about).encode()})
        sink = pa.BufferOutputStream()
        require("pyarrow.parquet", "train").write_table(made, sink)
        write_whole(Path(path), memoryview(sink.getvalue()))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "FeatureTable":
        """Read what `save` wrote.

        Raises:
            FeaturesError: it is no such file, or of another version.
        """
        pa = require("pyarrow", "train")
        try:
            table = require("pyarrow.parquet", "train").read_table(path)
            about = json.loads((table.schema.metadata or {})[_METADATA])
            if about["version"] != _VERSION:
                raise FeaturesError(f"{path}: is of version {about['version']}, expected {_VERSION}")
            rows, there = table.num_rows, table.column_names
            read = {
                name: table.column(name).combine_chunks().flatten().to_numpy().reshape(rows, *shape)
                for name, shape in (("mean", (-1,)), ("cls", (-1,)), ("gates", about["gates"]))
                if name in there
            }
            return cls(
                image=tuple(table.column("image").to_pylist()),
                mean=read["mean"],
                cls=read.get("cls"),
                gates=read.get("gates"),
                row_key=tuple(table.column("row_key").to_pylist()) if "row_key" in there else (),
                **{name: about[name] for name in _ABOUT},
            )
        except (OSError, pa.ArrowException, KeyError, TypeError, json.JSONDecodeError) as error:
            raise FeaturesError(f"{path}: holds no features, expected a file of `dexcore embed`: {error}") from error
