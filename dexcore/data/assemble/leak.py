"""Leaks: images of a test set that are in a store."""

import csv
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from dexcore.data.assemble.dicom_terms import modality_of
from dexcore.data.assemble.intensity import method_for
from dexcore.data.assemble.read import VIDEO_EVERY, planes
from dexcore.data.assemble.reasons import reason_of
from dexcore.data.assemble.slices import square
from dexcore.data.assemble.walk import path_text, walk
from dexcore.data.modality import Modality
from dexcore.data.normalize import limits, window
from dexcore.data.readers import Scan, UnreadableFileError, read_file
from dexcore.data.readers.dicom_header import read_header
from dexcore.data.readers.kind import Kind, file_kind
from dexcore.data.record import ImageRecord
from dexcore.data.sources.schema import parse_modality
from dexcore.data.store.copies import CopyFinder, Pictures
from dexcore.data.store.manifest import MANIFEST, schema
from dexcore.data.store.read import Store
from dexcore.data.store.row import encode_row
from dexcore.extras import require
from dexcore.files import write_whole

_TOGETHER = 256  # images of files in memory
_COLUMNS = ("image", "source", "copy_of", "exact", "distance", "similarity")


@dataclass(frozen=True)
class Leaked:
    """An image that is in a store.

    Attributes:
        path: of the image, with ``#frame`` or ``#axis=index`` for one of several in its file.
        source, of: of the store's image that it is a copy of: its source and path.
        distance: bits of 256 in which their perceptual hashes differ.
        similarity: correlation of their details, to 1.
        exact: whether their pixels are equal as the store has them.
    """

    path: str
    source: str
    of: str
    distance: int
    similarity: float
    exact: bool


@dataclass(frozen=True)
class Leaks:
    """What a search for leaks found.

    Attributes:
        images: that were looked for.
        leaked: those that are in the store, in their order.
        unread: files that were left out, with the reasons.
    """

    images: int
    leaked: tuple[Leaked, ...]
    unread: tuple[tuple[str, str], ...]

    def write_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the leaks as a CSV file, whole or not at all."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(_COLUMNS)
        for one in self.leaked:
            writer.writerow([one.path, one.source, one.of, int(one.exact), one.distance, f"{one.similarity:.4f}"])
        write_whole(Path(path), text.getvalue().encode())

    def lines(self, store: str | os.PathLike[str], most: int = 20) -> list[str]:
        """The leaks for people, at most so many, and their sum."""
        lines = [
            f"{one.path} is {'an exact copy' if one.exact else 'a near-copy'} of {one.of} ({one.source}"
            f"{'' if one.exact else f', {one.distance} bits of 256'})"
            for one in self.leaked[:most]
        ]
        if len(self.leaked) > most:
            lines.append(f"... and {len(self.leaked) - most} more; --out FILE.csv lists all")
        exact = sum(one.exact for one in self.leaked)
        found = f"{exact} exact, {len(self.leaked) - exact} near" if self.leaked else "none"
        return [*lines, f"{len(self.leaked)} of {self.images} images are in {os.fspath(store)}: {found}"]


def find_leaks(
    store: str | os.PathLike[str], other: str | os.PathLike[str], *, modality: Modality | str | None = None
) -> Leaks:
    """Tell which images of a test set are in a store, exactly or nearly; ``dexcore mvu leak`` calls this.

    An image counts once, with the nearest of the store's. What near means, and what is not found, says
    `dexcore.data.store.copies`; a neighbouring slice of the same volume may count.

    Args:
        store: the folder of the store, of any version.
        other: a store, a folder, or a file. Of files, all images are taken that `read_file` reads, normalised as a
            build would; volumes are cut across their slices, videos give one frame in 30.
        modality: of files that do not say theirs: it decides how their values are windowed.

    Raises:
        StoreError: ``store``, or a store in ``other``, is not sound.
        ValueError: ``other`` is not there or holds no image, or there is no such modality.
    """
    opened = Store(store)
    if modality is not None:
        modality = parse_modality(modality)
    unread: list[tuple[str, str]] = []
    leaks = _search(opened, _pictures(Path(other), modality, opened.manifest.max_side, unread), unread)
    if not leaks.images:
        reason = f": {unread[0][0]}: {unread[0][1]}" if unread else ""
        raise ValueError(f"{other} holds no image that can be read, expected a store, a folder or a file{reason}")
    return leaks


def find_records(store: str | os.PathLike[str], records: Iterable[ImageRecord]) -> Leaks:
    """As `find_leaks`, of images that are at hand: normalised, with square pixels.

    Raises:
        StoreError: ``store`` is not sound.
    """
    opened = Store(store)
    return _search(opened, _encoded(records, opened.manifest.max_side), [])


def _search(opened: Store, searched: Iterable[Pictures], unread: Sequence[tuple[str, str]]) -> Leaks:
    """``unread`` grows while ``searched`` is walked through."""
    finder = CopyFinder(known := Pictures.of(opened))
    leaked: list[Leaked] = []
    images = 0
    for pictures in searched:
        images += len(pictures)
        for copy in finder.find(pictures):
            source, of, path = known.source(copy.of), known.path(copy.of), pictures.path(copy.index)
            leaked.append(Leaked(path, source, of, copy.distance, copy.similarity, copy.exact))
    return Leaks(images, tuple(leaked), tuple(unread))


def _pictures(
    other: Path, modality: Modality | None, max_side: int, unread: list[tuple[str, str]]
) -> Iterator[Pictures]:
    if (other / MANIFEST).is_file():
        yield Pictures.of(Store(other))
        return
    if other.is_dir():
        walked = walk(other)
        files = [(file.path, other / file.path) for file in walked.files]
        unread += walked.closed
    else:
        files = [(other.name, other)]
    yield from _encoded(_records(files, modality, unread), max_side)


def _encoded(records: Iterable[ImageRecord], max_side: int) -> Iterator[Pictures]:
    pa = require("pyarrow", "train")
    rows = (encode_row(record, max_side) for record in records)
    while together := list(islice(rows, _TOGETHER)):
        yield Pictures([pa.RecordBatch.from_pylist(together, schema=schema())])


def _records(
    files: Sequence[tuple[str, Path]], modality: Modality | None, unread: list[tuple[str, str]]
) -> Iterator[ImageRecord]:
    for name, path in files:
        shown = path_text(name)
        kind = None
        try:
            if (kind := file_kind(path)) is None:
                unread.append((shown, "no kind of image that dexcore reads"))
                continue
            told = modality_of(read_header(path).modality)[0] if kind is Kind.DICOM else None
            yield from _cut(shown, read_file(path, VIDEO_EVERY if kind is Kind.VIDEO else 1), told or modality)
        except (OSError, UnreadableFileError) as error:
            unread.append((shown, reason_of(error, kind)))


def _cut(shown: str, scan: Scan, modality: Modality | None) -> Iterator[ImageRecord]:
    # Without a modality, what is no picture is cut at its percentiles, as MR is.
    method = method_for(modality or (Modality.MR if scan.levels is None else Modality.XRAY), scan, None, None)
    levels = limits(scan.held, method, scan.levels)
    for where, raw, spacing in planes(scan):
        try:
            image, size = square(window(raw, levels), spacing)
        except ValueError:  # pixels too long to be made square: compared as they are
            image, size = window(raw, levels), None
        yield ImageRecord(
            image=image,
            modality=modality or Modality.XRAY,
            source="",
            anatomy="",
            normalization=method,
            group=shown,
            path=shown + where,
            spacing=size,
        )
