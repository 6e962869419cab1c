"""What a build says at its end, as numbers and as a table."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dexcore.amounts import duration
from dexcore.data.assemble.discover import KIND_NAMES, Classified, advice
from dexcore.data.assemble.walk import SourceFiles
from dexcore.data.modality import Modality
from dexcore.data.readers.kind import Kind
from dexcore.data.store.manifest import Manifest

ARCHIVE = "archive"  # stands for a modality where only reading will tell


@dataclass
class SourceReport:
    """What became of a source's files.

    Attributes:
        inputs: hash over all that its images depend on.
        root: hash of the folder's place, so that a source that left the folder leaves the store.
        fingerprint: of its part of the store; "" where no image was kept.
        files: that were looked at.
        kept: images by "modality/kind".
        dropped: files and images that were not, by reason.
        ignored: files that are no images and lie beside them, by their names' endings; and those that the source's
            globs leave out, as "left out".
        advice: sentences that would help what was kept out.
        near_copies: images that are kept though they are near-copies of others of the source.
        groups: patients, volumes, videos or files that the kept images come from.
        shared: images that are copies of another source's, exact or near, when this one was built; by its name.
    """

    inputs: str
    root: str
    fingerprint: str = ""
    files: int = 0
    kept: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    ignored: dict[str, int] = field(default_factory=dict)
    advice: list[str] = field(default_factory=list)
    near_copies: int = 0
    groups: int = 0
    shared: dict[str, int] = field(default_factory=dict)

    def is_sound(self) -> bool:
        """Whether every attribute, read from a file, is of its type."""
        texts = (self.inputs, self.root, self.fingerprint)
        numbers = [self.files, self.near_copies, self.groups]
        for counter in (self.kept, self.dropped, self.ignored, self.shared):
            if not isinstance(counter, dict):
                return False
            numbers += counter.values()
        if not (all(isinstance(text, str) for text in texts) and all(isinstance(number, int) for number in numbers)):
            return False
        if not (isinstance(self.advice, list) and all(isinstance(sentence, str) for sentence in self.advice)):
            return False
        pairs = [name.split("/") for name in self.kept]
        return all(len(pair) == 2 and pair[0] in (*Modality, ARCHIVE) and pair[1] in list(Kind) for pair in pairs)

    def known(self, classified: Classified, files: SourceFiles) -> None:
        """Fill in what is known before any pixel is read."""
        self.kept = dict(Counter(f"{item.modality or ARCHIVE}/{item.kind}" for item in classified.items))
        self.dropped = dict(Counter(reject.category for reject in classified.rejects))
        self.ignored = dict(classified.ignored) | ({"left out": files.left} if files.left else {})
        self.advice = advice([classified])


class NothingKeptError(ValueError):
    """No image of a folder was kept; the message says why, by reason."""

    def __init__(self, reports: Iterable[SourceReport]) -> None:
        reports = list(reports)
        lines = [*table(reports), *(sentence for report in reports for sentence in report.advice)]
        super().__init__("\n".join(["no image was kept", *lines]))


@dataclass
class DryRun:
    """What a build would do, from headers alone.

    Attributes:
        sources: reports in which ``kept`` counts files and volumes, with what is known before they are read.
        images, size, seconds: of the store, in bytes, and of its build; estimated.
    """

    sources: list[SourceReport]
    images: int
    size: float
    seconds: float

    def lines(self) -> list[str]:
        """The table of a dry run."""
        return [
            *table(self.sources, "files"),
            *(sentence for report in self.sources for sentence in report.advice),
            f"estimated: about {self.images} images before any is dropped, {size_text(self.size)}, "
            f"{duration(max(1.0, self.seconds))} to build",
        ]


@dataclass
class BuildReport:
    """What a build did.

    Attributes:
        store: its folder.
        manifest: of the store.
        sources: reports of all sources of the store that are known, by name.
        built: names of those that were built by this call; the others were there.
    """

    store: Path
    manifest: Manifest
    sources: dict[str, SourceReport]
    built: list[str]

    def lines(self) -> list[str]:
        """The table that ends a build."""
        lines = table(self.sources.values())
        if not self.built:
            lines = [f"nothing to do: {self.store} holds these files already", *lines]
        size = sum(shard.size for shard in self.manifest.shards)
        heldout = sum(
            splits.get("heldout", 0) for sources in self.manifest.counts.values() for splits in sources.values()
        )
        lines += [advice for report in self.sources.values() for advice in report.advice]
        lines += [line for name, report in self.sources.items() for line in copies_told(name, report)]
        return [
            *lines,
            f"store: {self.store}, {self.manifest.images} images ({heldout} held out), {size_text(size)}, "
            f"{len(self.manifest.shards)} shards",
            f"fingerprint: {self.manifest.fingerprint}",
            f"train on it: python examples/pretrain_mvu.py --data.store {self.store}",
        ]


def kept_order(key: str) -> tuple[int, str]:
    """By which modalities and the keys of `SourceReport.kept` are sorted: in the order of `Modality`."""
    return [*Modality, ARCHIVE].index(key.split("/")[0]), key


def table(reports: Iterable[SourceReport], counted: str = "images") -> list[str]:
    """Kept by modality and kind, dropped and ignored by reason."""
    kept: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    ignored: Counter[str] = Counter()
    files = 0
    for report in reports:
        kept.update(report.kept)
        dropped.update(report.dropped)
        ignored.update(report.ignored)
        files += report.files
    lines = [f"{files} files", f"{'modality':<12} {'kind':<16} {counted:>8}"]
    for key in sorted(kept, key=kept_order):
        modality, kind = key.split("/")
        lines.append(f"{modality:<12} {KIND_NAMES[Kind(kind)]:<16} {kept[key]:>8}")
    lines.append(f"{'kept':<29} {sum(kept.values()):>8}")
    for title, counter in (("dropped, by reason", dropped), ("ignored, by ending", ignored)):
        if counter:
            lines.append(f"{title:<29} {sum(counter.values()):>8}")
            lines += [f"  {reason:<60} {count:>8}" for reason, count in counter.most_common()]
    return lines


def copies_told(name: str, report: SourceReport) -> Iterator[str]:
    if report.near_copies:
        are = "image is a near-copy of another" if report.near_copies == 1 else "images are near-copies of others"
        yield f"{name}: {report.near_copies} {are} and kept; --drop-near-copies leaves such out"
    for other, count in report.shared.items():
        yield f"{name}: {count} {'image is a copy of one' if count == 1 else 'images are copies of some'} in {other}"


def size_text(size: float) -> str:
    """Bytes for people."""
    power = min(int(math.log(max(size, 1), 1024)), 4)
    unit = ("bytes", "KiB", "MiB", "GiB", "TiB")[power]
    return f"{size / 1024**power:.{min(power, 1)}f} {unit}"


# From headers alone: bytes of a stored image of 512 px, and seconds of a core to read and write one. Measured on the
# corpus; what a real build takes may be half or twice that.
_STORED_BYTES = {Modality.FUNDUS: 300e3, Modality.PATHOLOGY: 400e3, Modality.ENDOSCOPY: 300e3, Modality.PHOTO: 300e3}
_OTHER_BYTES = 90e3
_SECONDS_AN_IMAGE, _SECONDS_A_MIB = 0.015, 0.05
_SLICE_BYTES = 256 * 256 * 2


def estimate(classified: Sequence[Classified], jobs: int) -> tuple[int, float, float]:
    """Images, bytes of the store and seconds of the build, from files' kinds and sizes."""
    images, stored, seconds = 0, 0.0, 0.0
    for item in (item for one in classified for item in one.items):
        packed = item.kind in (Kind.NIFTI, Kind.NRRD, Kind.METAIMAGE, Kind.ZIP, Kind.TAR, Kind.VIDEO, Kind.HDF5)
        count = max(len(item.files), round(item.size * 2 / _SLICE_BYTES)) if packed else len(item.files)
        images += count
        stored += count * _STORED_BYTES.get(item.modality, _OTHER_BYTES) if item.modality else count * _OTHER_BYTES
        seconds += count * _SECONDS_AN_IMAGE + item.size / (1 << 20) * _SECONDS_A_MIB
    return images, stored, seconds / jobs
