"""What a store holds, by modality and source, beside the paper's counts."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from dexcore.data.modality import SOURCES, Modality
from dexcore.data.store.read import Store
from dexcore.extras import require


@dataclass(frozen=True)
class SourceStats:
    """What a store holds of one source in one modality.

    Attributes:
        modality: of the images.
        source: its name.
        images: how many.
        heldout: how many of them are held out.
        synthetic: how many of them are generated.
        groups: patients, volumes, videos or files that they come from.
        height, width: the medians, pixels.
        bit_depth: the largest.
        size: of the encoded images, bytes.
        paper: images that the paper counts in this source and modality; None for a source that is none of its.
    """

    modality: Modality
    source: str
    images: int
    heldout: int
    synthetic: int
    groups: int
    height: int
    width: int
    bit_depth: int
    size: int
    paper: int | None


def store_stats(folder: str | os.PathLike[str]) -> list[SourceStats]:
    """Count a store's images; no image is decoded.

    Returns:
        An entry a modality and source, in the order of `Modality`, then by name.

    Raises:
        StoreError: there is no sound store; the message names the file and what was expected.
    """
    pa = require("pyarrow", "train")
    compute = require("pyarrow.compute", "train")
    store = Store(folder)
    names = ("modality", "source", "group", "height", "width", "bit_depth")
    columns = {name: store.column(name) for name in names}
    columns["heldout"] = compute.equal(store.column("split"), "heldout").cast("int64")
    columns["synthetic"] = store.column("synthetic").cast("int64")
    columns["size"] = compute.binary_length(compute.struct_field(store.column("image"), "bytes")).cast("int64")
    totals = [("height", "count"), ("heldout", "sum"), ("synthetic", "sum"), ("group", "count_distinct")]
    totals += [("height", "approximate_median"), ("width", "approximate_median"), ("bit_depth", "max"), ("size", "sum")]
    table = pa.table(columns).group_by(["modality", "source"]).aggregate(totals)
    paper = {(source.modality, source.name): source.images for source in SOURCES}
    order = list(Modality)
    found = [
        SourceStats(
            modality=Modality(row["modality"]),
            source=row["source"],
            images=row["height_count"],
            heldout=row["heldout_sum"],
            synthetic=row["synthetic_sum"],
            groups=row["group_count_distinct"],
            height=round(row["height_approximate_median"]),
            width=round(row["width_approximate_median"]),
            bit_depth=row["bit_depth_max"],
            size=row["size_sum"],
            paper=paper.get((Modality(row["modality"]), row["source"])),
        )
        for row in table.to_pylist()
    ]
    return sorted(found, key=lambda entry: (order.index(entry.modality), entry.source))


def stats_table(stats: Sequence[SourceStats]) -> str:
    """Set the counts as a table for people, with a sum a modality and one of all."""
    header = ("modality", "source", "images", "in the paper", "held out", "groups", "median px", "bit", "MiB")
    rows: list[tuple[str, ...]] = [header]
    for modality in dict.fromkeys(entry.modality for entry in stats):
        entries = [entry for entry in stats if entry.modality == modality]
        for entry in entries:
            size = f"{entry.height} x {entry.width}"
            rows.append((modality.value, entry.source, *_numbers([entry]), size, str(entry.bit_depth), _mib([entry])))
        if len(entries) > 1:
            rows.append((modality.value, "all", *_numbers(entries), "", "", _mib(entries)))
    rows.append(("all", "", *_numbers(stats), "", "", _mib(stats)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = []
    for row in rows:
        names = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
        numbers = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        lines.append("  ".join([*names, *numbers]).rstrip())
    return "\n".join(lines)


def _numbers(entries: Sequence[SourceStats]) -> tuple[str, ...]:
    """Images, those in the paper, held out, groups."""
    paper = [entry.paper for entry in entries if entry.paper is not None]
    sums = [sum(getattr(entry, name) for entry in entries) for name in ("images", "heldout", "groups")]
    images, heldout, groups = (f"{number:,}" for number in sums)
    return images, f"{sum(paper):,}" if paper else "-", heldout, groups


def _mib(entries: Sequence[SourceStats]) -> str:
    return f"{sum(entry.size for entry in entries) / 2**20:,.1f}"
