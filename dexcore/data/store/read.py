"""Reading a store: through memory maps, an image when it is asked for."""

import operator
import os
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dexcore.data.store.codec import decode
from dexcore.data.store.manifest import (
    COLUMNS,
    MANIFEST,
    ImageDecodeError,
    Manifest,
    Shard,
    StoreError,
    columns,
    schema,
)
from dexcore.extras import require


class Store:
    """A store opened for reading: its shards are mapped, and an image is read when it is asked for.

    Args:
        folder: of a store that `write_store` wrote.

    Raises:
        StoreError: the folder holds no store, or a shard is missing, of another size or not readable; the
            message names the file.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.manifest = Manifest.load(folder)
        self._batches: list[Any] = []
        starts = [0]
        self._shard_of_batch: list[str] = []
        for shard in self.manifest.shards:
            for batch in map_shard(self.folder, shard, self.manifest.version):
                self._batches.append(batch)
                self._shard_of_batch.append(shard.name)
                starts.append(starts[-1] + batch.num_rows)
        if starts[-1] != self.manifest.images:
            raise StoreError(f"{self.folder} holds {starts[-1]} images, {MANIFEST} says {self.manifest.images}")
        self._starts = starts
        self._images_of_batch: dict[int, _Images] = {}
        self._columns = columns(self.manifest.version)

    def __len__(self) -> int:
        return self.manifest.images

    def column(self, name: str) -> Any:
        """Give a column over all rows, a pyarrow ChunkedArray; all null where the store's version has none."""
        pa = require("pyarrow", "train")
        if name in COLUMNS and name not in self._columns:
            return pa.chunked_array([pa.nulls(len(self), pa.type_for_alias(COLUMNS[name]))])
        return pa.chunked_array([batch.column(name) for batch in self._batches])

    def row(self, index: int) -> dict[str, Any]:
        """Give what is known about one image: every column but the image, and its ``path``.

        What the store's version has no column for is None.
        """
        number, place = self._locate(index)
        batch = self._batches[number]
        row = dict.fromkeys(COLUMNS) | {name: batch.column(name)[place].as_py() for name in self._columns}
        return row | {"path": batch.column("image").field("path")[place].as_py()}

    @property
    def batches(self) -> Sequence[Any]:
        """The rows as pyarrow's record batches, in order."""
        return tuple(self._batches)

    def encoded(self, index: int) -> memoryview:
        """Give the file of one image (TIFF; PNG in version 1), without a copy."""
        number, place = self._locate(index)
        return self._images(number).encoded(place)

    def image(self, index: int) -> np.ndarray:
        """Decode one image: uint8 or uint16 [H, W], or uint8 [H, W, 3].

        Raises:
            ImageDecodeError: its bytes do not decode; the message names shard and row.
        """
        number, place = self._locate(index)
        images = self._images(number)
        try:
            shape = int(images.heights[place]), int(images.widths[place])
            return decode(images.encoded(place), shape, int(images.bit_depths[place]))
        except ValueError as error:
            raise ImageDecodeError(f"{self.where(index)} {error}") from error

    def where(self, index: int) -> str:
        """Name the shard and the row in it that hold an image."""
        name = self._shard_of_batch[self._locate(index)[0]]
        first = self._starts[self._shard_of_batch.index(name)]
        return f"{self.folder / name}, row {index - first} (image {index})"

    def _images(self, number: int) -> "_Images":
        """The images of a batch; kept, as Arrow's own objects take as long as a tenth of decoding."""
        if number not in self._images_of_batch:
            self._images_of_batch[number] = _Images(self._batches[number])
        return self._images_of_batch[number]

    def _locate(self, index: int) -> tuple[int, int]:
        """The number of the batch that holds an image, and the row in it."""
        index = operator.index(index)  # 1.5 is no row, though it lies between two
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of a store of {len(self)}")
        number = bisect_right(self._starts, index) - 1
        return number, index - self._starts[number]


class _Images:
    """What decoding needs of a batch, as memory in the map."""

    def __init__(self, batch: Any) -> None:
        stored = batch.column("image").field("bytes")
        _, offsets, data = stored.buffers()
        self._offsets = np.frombuffer(offsets, np.int32)[stored.offset :]
        self._data = memoryview(data or b"").cast("B")
        self.heights, self.widths, self.bit_depths = (
            batch.column(name).to_numpy(zero_copy_only=False) for name in ("height", "width", "bit_depth")
        )

    def encoded(self, place: int) -> memoryview:
        return self._data[self._offsets[place] : self._offsets[place + 1]]


def map_shard(folder: Path, shard: Shard, version: int) -> list[Any]:
    """Map a shard and give its record batches, whose buffers lie in the map.

    Raises:
        StoreError: it is missing, of another size, or no shard of a store of this ``version``; the message names it.
    """
    pa = require("pyarrow", "train")
    path = folder / shard.name
    if not path.is_file():
        raise StoreError(f"{path} is missing, {MANIFEST} names it")
    size = path.stat().st_size
    if size != shard.size:  # a map beyond a file's end kills the process at the first touch
        raise StoreError(f"{path} has {size} bytes, {MANIFEST} says {shard.size}")
    try:
        with pa.ipc.open_stream(pa.memory_map(str(path))) as reader:
            if not reader.schema.equals(schema(version)):
                raise StoreError(f"{path} has the columns {reader.schema.names}, expected {schema(version).names}")
            batches = list(reader)
        for batch in batches:
            batch.validate(full=True)  # damaged offsets would be followed out of the map
        return batches
    except (pa.ArrowException, OSError, ValueError) as error:
        raise StoreError(f"{path} is no readable Arrow stream: {error}") from error
