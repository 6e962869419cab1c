"""The page of a store: what was kept and dropped, with examples, made from what its build left beside it."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from dexcore.data.assemble.beside import (
    BUILD,
    EXAMPLES,
    NO_SOURCE,
    PAGE,
    REJECTS,
    json_lines,
    read_examples,
    read_help,
    read_reports,
)
from dexcore.data.assemble.discover import KIND_NAMES
from dexcore.data.assemble.examples import Drawn, Example
from dexcore.data.assemble.reasons import category
from dexcore.data.assemble.report import SourceReport, copies_told, kept_order, size_text
from dexcore.data.modality import Modality
from dexcore.data.readers.kind import Kind
from dexcore.data.store.manifest import Manifest
from dexcore.files import write_whole
from dexcore.report.html import document, folded, mapping, strip, table, tile

_MOST_SOURCES = 60  # with pictures: a page of a few MB


@dataclass(frozen=True)
class _Account:
    """What is known of a store.

    Attributes:
        manifest: the store's.
        reports: of its sources, by name.
        remedies: what would help what was dropped, by reason.
        pictured: examples with pictures, by source.
        told: of the reasons that have no picture, by source; those of `NO_SOURCE` could belong to none.
    """

    manifest: Manifest
    reports: Mapping[str, SourceReport]
    remedies: Mapping[str, str]
    pictured: Mapping[str, list[Example]]
    told: Mapping[str, list[Example]]

    @classmethod
    def read(cls, store: Path) -> "_Account":
        manifest = Manifest.load(store)
        reports = read_reports(store)
        if not reports:
            raise FileNotFoundError(
                f"{store / BUILD}: missing or damaged, expected what `dexcore mvu build` leaves beside a store"
            )
        pictured: defaultdict[str, list[Example]] = defaultdict(list)
        for name, example in read_examples(store / EXAMPLES):
            pictured[name].append(example)
        seen = {(name, example.category) for name, examples in pictured.items() for example in examples}
        told: defaultdict[str, Drawn] = defaultdict(Drawn)
        for line in json_lines(store / REJECTS):
            name = str(line.get("source") or NO_SOURCE)
            path, reason = str(line.get("path")), str(line.get("reason"))
            if (name, category(reason)) not in seen and told[name].wants(path, reason):
                told[name].add(Example(path, "", reason, False, ()))
        return cls(manifest, reports, read_help(store), pictured, {name: list(drawn) for name, drawn in told.items()})

    def heldout(self, name: str) -> int:
        """Held-out images of a source."""
        return sum(sources.get(name, {}).get("heldout", 0) for sources in self.manifest.counts.values())

    def total(self, attribute: str) -> Counter[str]:
        """The sum over all sources of the counters of that name."""
        return sum((Counter(getattr(report, attribute)) for report in self.reports.values()), Counter())


def report_store(store: str | os.PathLike[str]) -> Path:
    """Write report.html into the folder of a store: what was kept and dropped, with examples of both.

    The page is the same for the same store, wherever it lies.

    Args:
        store: its folder, with build.json, rejects.jsonl and examples.jsonl, as `dexcore.data.build_store` leaves it.

    Returns:
        The page.

    Raises:
        StoreError: there is no store.
        FileNotFoundError: it has no build.json, as one that was not built from a folder.
        OSError: the page cannot be written.
    """
    folder = Path(store)
    page = _page(_Account.read(folder))
    write_whole(folder / PAGE, page.encode())
    return folder / PAGE


def _page(account: _Account) -> str:
    title = f"Store of images: {account.manifest.name}"
    sections = (
        ("kept", "What was kept", _kept(account)),
        ("dropped", "What was dropped", _dropped(account)),
        ("sources", "Source by source", _sources(account)),
        ("use", "Train on it", _use(account.manifest)),
    )
    links = "".join(f'<a href="#{name}">{escape(text)}</a>' for name, text, _ in sections)
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="quiet">{escape(_standing(account.manifest))}</p>',
        f'<p class="headline">{escape(_headline(account))}</p>',
        *(f'<p class="warning">{escape(text)}</p>' for text in _warnings(account)),
        f"<nav>{links}</nav>",
    ]
    for name, text, parts in sections:
        body += [f'<h2 id="{name}">{escape(text)}</h2>', *parts]
    body.append(
        f'<p class="quiet">Made from {BUILD}, {REJECTS} and {EXAMPLES} beside this file. It shows images of the store: '
        "give it to nobody who may not see them.</p>"
    )
    return document(title, body)


def _standing(manifest: Manifest) -> str:
    size = size_text(sum(shard.size for shard in manifest.shards))
    return (
        f"{_counted(len(manifest.sources), 'source')}, {len(manifest.counts)} of the {len(Modality)} modalities; "
        f"{size}; fingerprint {manifest.fingerprint}."
    )


def _headline(account: _Account) -> str:
    images = account.manifest.images
    heldout = sum(account.heldout(name) for name in account.manifest.sources)
    return (
        f"{_counted(images, 'image')} kept, {heldout:,} of them held out ({heldout / images:.1%}); files and images "
        f"dropped: {account.total('dropped').total():,}; files ignored: {account.total('ignored').total():,}."
    )


def _warnings(account: _Account) -> Iterator[str]:
    for name, report in sorted(account.reports.items()):
        yield from (f"{name}: {sentence}." for sentence in report.advice)
        yield from (f"{sentence}." for sentence in copies_told(name, report))
        if not report.fingerprint:
            yield f"{name}: no image was kept."
    unknown = sorted(account.manifest.sources.keys() - account.reports.keys())
    if unknown:
        yield f"{BUILD} says nothing of {', '.join(unknown)}."
    counts = account.manifest.counts
    lacking = [
        modality
        for modality in sorted(counts, key=kept_order)
        if not any(splits.get("heldout") for splits in counts[modality].values())
    ]
    if lacking:
        yield f"No image is held out of {', '.join(lacking)}: a model cannot be measured there."


def _kept(account: _Account) -> Iterator[str]:
    counts = account.manifest.counts
    rows = []
    for modality in sorted(counts, key=kept_order):
        images = sum(sum(splits.values()) for splits in counts[modality].values())
        heldout = sum(splits.get("heldout", 0) for splits in counts[modality].values())
        rows.append((modality, f"{images:,}", f"{heldout:,}", f"{heldout / images:.1%}"))
    yield table(("modality", "images", "held out", "share"), rows)
    yield "<h3>By source, modality and kind of file</h3>"
    yield table(
        ("source", "modality", "kind", "images"),
        [
            (name, modality, kind, f"{count:,}")
            for name, report in sorted(account.reports.items())
            for modality, kind, count in _kept_of(report)
        ],
    )
    yield "<h3>Groups and copies</h3>"
    yield (
        "<p>A group is a patient, a volume, a video or a file; it is never torn between training and held-out images. "
        "Near-copies that are kept are counted; exact copies within a source are dropped.</p>"
    )
    yield table(
        ("source", "groups", "held out", "near-copies"),
        [
            (name, f"{report.groups:,}", f"{account.heldout(name):,}", f"{report.near_copies:,}")
            for name, report in sorted(account.reports.items())
        ],
    )


def _kept_of(report: SourceReport) -> list[tuple[str, str, int]]:
    """Modality, kind and images of a source."""
    found = []
    for name in sorted(report.kept, key=kept_order):
        modality, kind = name.split("/")
        found.append((modality, KIND_NAMES[Kind(kind)], report.kept[name]))
    return found


def _dropped(account: _Account) -> Iterator[str]:
    dropped, ignored = account.total("dropped"), account.total("ignored")
    if dropped:
        yield table(("reason", "files and images"), [(reason, f"{n:,}") for reason, n in _largest(dropped)])
    else:
        yield "<p>Nothing.</p>"
    helped = [(reason, account.remedies[reason]) for reason, _ in _largest(dropped) if reason in account.remedies]
    if helped:
        yield "<h3>What would help</h3>"
        yield from (mapping(f"{reason}:", sentence) for reason, sentence in helped)
    if NO_SOURCE in account.told:
        yield "<h3>What belongs to no source</h3>"
        yield from _told(account.told[NO_SOURCE])
    if ignored:
        rows = [(ending, f"{n:,}") for ending, n in _largest(ignored)]
        yield folded(
            f"Ignored: {_counted(ignored.total(), 'file')} beside the images", [table(("ending", "files"), rows)]
        )
    yield f'<p class="quiet">{REJECTS} names every file and image with its reason.</p>'


def _largest(counter: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counter.items(), key=lambda entry: (-entry[1], entry[0]))


def _sources(account: _Account) -> Iterator[str]:
    names = sorted(account.reports)
    for name in names[:_MOST_SOURCES]:
        report, examples = account.reports[name], account.pictured.get(name, [])
        yield f"<h3>{escape(name)}</h3>"
        yield f"<p>{escape(_course(account, name, report))}</p>"
        several = len({modality for modality, _, _ in _kept_of(report)}) > 1
        yield from _strip("Kept", [_kept_tile(one, several) for one in examples if one.kept and not one.reason])
        yield from _strip("Kept, near-copies", [_reason_tile(one) for one in examples if one.kept and one.reason])
        yield from _strip("Dropped", [_reason_tile(one) for one in examples if not one.kept])
        told = account.told.get(name, [])
        if told:
            yield '<p class="quiet">Dropped, without a picture</p>'
            yield from _told(told)
    if len(names) > _MOST_SOURCES:
        more = _counted(len(names) - _MOST_SOURCES, "more source")
        yield f'<p class="quiet">Without pictures, in the tables above alone: {more}.</p>'


def _course(account: _Account, name: str, report: SourceReport) -> str:
    kept = sum(report.kept.values())
    parts = [f"{count:,} {modality} ({kind})" for modality, kind, count in _kept_of(report)]
    return (
        f"{_counted(report.files, 'file')}; {_counted(kept, 'image')} kept"
        + (f": {', '.join(parts)}" if len(parts) > 1 else "")
        + f"; {account.heldout(name):,} held out, {_counted(report.groups, 'group')}; "
        f"{sum(report.dropped.values()):,} dropped."
    )


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _strip(title: str, tiles: Sequence[str]) -> Iterator[str]:
    if tiles:
        yield f'<p class="quiet">{escape(title)}</p>'
        yield strip(tiles)


def _kept_tile(example: Example, with_modality: bool) -> str:
    return tile(example.path, example.pictures, [example.modality] if with_modality else [])


def _reason_tile(example: Example) -> str:
    return tile(example.path, example.pictures, [example.reason, example.path])


def _told(examples: Sequence[Example]) -> Iterator[str]:
    yield from (mapping(example.path, example.reason) for example in examples)


def _use(manifest: Manifest) -> Iterator[str]:
    # Not this store's own path: the page is the same wherever the store lies.
    yield "<p>STORE is the folder in which this page lies.</p>"
    yield '<pre class="command">python examples/pretrain_mvu.py --data.store STORE</pre>'
    yield f'<p class="quiet">Shorter sides of stored images are at most {manifest.max_side} px.</p>'
