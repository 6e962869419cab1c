"""The driver of a build: any folder becomes a store.

    walk -> sources -> inspect, classify (discover) -> tasks (read, on workers) -> pack -> commit

All that is under way lies in the store's folder ``.building-build``, where a killed build finds it again: a folder a
source, named by the hash of all that its images depend on, with two files a finished task, then the source's shards.
The store itself changes at the end, at once.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from dexcore.checks import check_whole
from dexcore.data.assemble.beside import BUILD, EXAMPLES, PAGE, REJECTS, leave, read_reports
from dexcore.data.assemble.discover import Classified, Inspected, classify, inspect
from dexcore.data.assemble.drawn import drawn_items
from dexcore.data.assemble.examples import Example
from dexcore.data.assemble.lock import clear, locked
from dexcore.data.assemble.options import Options, Settings
from dexcore.data.assemble.pack import is_done, pack, read_outcome
from dexcore.data.assemble.plan import check_libraries, inputs_hash, tasks_of
from dexcore.data.assemble.progress import Progress
from dexcore.data.assemble.read import Task, build_task
from dexcore.data.assemble.reasons import Reject
from dexcore.data.assemble.report import BuildReport, DryRun, NothingKeptError, SourceReport, estimate
from dexcore.data.assemble.split import Grouping, load_key
from dexcore.data.assemble.walk import SourceFiles, Walked, sources_by, sources_of, walk
from dexcore.data.assemble.workers import Workers
from dexcore.data.sources.recipe import Recipe
from dexcore.data.store.commit import STAGING, commit, is_shard, remove_source, remove_staging, writing
from dexcore.data.store.copies import CopyFinder, Pictures
from dexcore.data.store.manifest import MANIFEST, VERSION, Manifest, Shard, SourcePart, StoreError
from dexcore.data.store.read import map_shard
from dexcore.files import write_whole

_STAGING = f"{STAGING}build"
_FILES_AN_INSPECTION = 256


@dataclass
class _Source:
    """A source under way."""

    files: SourceFiles
    report: SourceReport
    classified: Classified | None = None
    tasks: list[Task] = field(default_factory=list)
    part: SourcePart | None = None
    rejects: list[Reject] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.files.recipe.name


@dataclass
class _Plan:
    """What a build works with."""

    name: str
    settings: Settings
    walked: Walked
    sources: list[_Source]


def build(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    options: Options,
    *,
    jobs: int | None = None,
    executor: Executor | None = None,
    shard_bytes: int = 1 << 30,
) -> BuildReport:
    """Build a store; `dexcore.data.build_store` says how.

    Returns:
        The manifest, and what became of all files.
    """
    check_libraries()
    check_whole("shard_bytes", shard_bytes, 1)
    crew = _workers(jobs, executor)
    out = Path(out)
    plan = _plan(Path(folder), out, options)
    _refuse_foreign_files(out)
    made = not out.exists()
    try:
        with writing(out):
            out.mkdir(parents=True, exist_ok=True)
            with locked(out / _STAGING) as staging, crew as workers:
                return _build(plan, out, staging, workers, shard_bytes)
    except StoreError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        # A full disk, most often.
        raise StoreError(f"{error}. When that is mended, call it again: it goes on where it was") from error.__cause__
    except NothingKeptError:
        remove_staging(out)
        if made:
            out.rmdir()
        raise


def dry_run(
    folder: str | os.PathLike[str], options: Options, *, jobs: int | None = None, executor: Executor | None = None
) -> DryRun:
    """Say what a build would do, from headers alone; nothing is written."""
    check_libraries()
    plan = _plan(Path(folder), None, options)
    with tempfile.TemporaryDirectory() as notes, _workers(jobs, executor) as workers:
        _discover(plan.sources, plan, workers, Path(notes))
    classified = [source.classified for source in plan.sources if source.classified is not None]
    return DryRun([source.report for source in plan.sources], *estimate(classified, workers.jobs))


def remove(out: str | os.PathLike[str], name: str) -> Manifest:
    """Take a source out of a store, and what the reports say of it.

    Raises:
        StoreError: there is no store, it has no such source or no other, or another process is at work on it.
    """
    out = Path(out)
    Manifest.load(out)
    with writing(out), locked(out / _STAGING) as staging:
        reports = read_reports(out)
        reports.pop(name, None)
        for report in reports.values():
            report.shared.pop(name, None)
        manifest = remove_source(out, name)
        staging.mkdir(exist_ok=True)
        leave(staging, out, reports, manifest.sources, {name: ((), ())})
        remove_staging(out)
    return manifest


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _workers(jobs: int | None, executor: Executor | None) -> Workers:
    if jobs is not None:
        check_whole("jobs", jobs, 1)
    return Workers(jobs or cores(), executor)


def _plan(root: Path, out: Path | None, options: Options) -> _Plan:
    walked = walk(root, out)
    if not walked.files:
        raise ValueError(f"{root} holds no file, expected a folder of images")
    named = options.recipes()
    # Groups of public sources are hashed without a key: none is made for them.
    keyless = named and all(recipe.public for recipe in named) and not options.hash_paths
    settings = options.settings(root, b"" if keyless else load_key(options.key))
    name = options.source_name(root)
    place = hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()
    found = (
        sources_by(root, walked.files, named)
        if named
        else sources_of(root, walked.files, name, options.modality, settings.source_name)
    )
    if named and not found:
        raise ValueError(f"{root} holds no file of {_names(named)}; `dexcore mvu sources NAME` says what is expected")
    sources = []
    for files in found:
        inputs = inputs_hash(files, settings.of(files.recipe))
        # What is asked for by name says nothing of the other sources of its folder.
        own = hashlib.sha256(f"{place} {files.recipe.name}".encode()).hexdigest() if named else place
        sources.append(_Source(files, SourceReport(inputs, own, files=len(files.files))))
    return _Plan(name, settings, walked, sources)


def _names(recipes: Sequence[Recipe]) -> str:
    """A source's name, or how many they are."""
    return recipes[0].name if len(recipes) == 1 else f"these {len(recipes)} sources"


def _refuse_foreign_files(out: Path) -> None:
    """Raise StoreError unless the folder is to be made, is empty, or holds a store or what a build left."""
    if not out.exists():
        return
    if not out.is_dir():
        raise StoreError(f"cannot write a store into {out}: it is no folder")
    if (out / MANIFEST).is_file():
        Manifest.load(out)  # another program's manifest is not to be replaced
        return
    for entry in sorted(out.iterdir()):
        if not (is_shard(entry) or entry.name.startswith(STAGING) or entry.name in (BUILD, EXAMPLES, PAGE, REJECTS)):
            raise StoreError(f"{out} holds {entry.name} and no store: expected an empty folder or a store")


def _build(plan: _Plan, out: Path, staging: Path, workers: Workers, shard_bytes: int) -> BuildReport:
    there = read_reports(out)
    manifest = Manifest.load(out) if (out / MANIFEST).is_file() else None
    if manifest is not None and manifest.version == 1:
        manifest = None  # replaced whole
    parts = dict(manifest.sources) if manifest else {}
    fresh = [source for source in plan.sources if not _is_there(source, there, parts)]
    gone = _gone(plan, there)
    if manifest is not None and not fresh and not gone:
        remove_staging(out)
        return BuildReport(out, manifest, there, [])
    for source in fresh:
        _refuse_another(source, there, out)
    clear(staging, {entry for source in fresh for entry in _entries(source)} | _shards(staging))
    notes = Path(tempfile.mkdtemp(prefix="notes-", dir=staging))  # no worker of a killed driver knows it
    _discover([source for source in fresh if not _packed(source, staging)], plan, workers, notes)
    _read(fresh, plan, staging, workers, notes, shard_bytes)

    reports = {name: report for name, report in there.items() if name in parts or not report.fingerprint}
    for name in gone:
        reports.pop(name, None)
        parts.pop(name, None)
    for report in reports.values():
        report.shared = {name: count for name, count in report.shared.items() if name not in gone}
    for source in fresh:
        assert source.part is not None
        reports[source.name] = source.report
        parts.pop(source.name, None)
        if source.part.images:
            parts[source.name] = source.part
    if not parts:
        raise NothingKeptError(reports.values())
    _tell_shared({source.name: source.report for source in fresh}, parts, out, staging)
    result = Manifest.of(manifest.name if manifest else plan.name, plan.settings.max_side, parts)
    closed = [(plan.settings.shown(path), reason) for path, reason in plan.walked.closed]
    left = {source.name: (source.rejects, source.examples) for source in fresh}
    leave(staging, out, reports, parts, left, closed)
    commit(staging, out, result)
    return BuildReport(out, result, reports, [source.name for source in fresh])


def _tell_shared(fresh: Mapping[str, SourceReport], parts: Mapping[str, SourcePart], out: Path, staging: Path) -> None:
    """Count the images of new sources that are copies of other sources' images; they stay."""
    if len(parts) < 2:
        return
    try:
        batches = {
            name: [
                batch
                for shard in part.shards
                for batch in map_shard(staging if (staging / shard.name).exists() else out, shard, VERSION)
            ]
            for name, part in parts.items()
        }
        finder = CopyFinder(known := Pictures([batch for piece in batches.values() for batch in piece]))
        for name in fresh.keys() & parts.keys():
            queries = Pictures(batches[name])
            with Progress(len(queries), f"{name} compared with other sources", unit="image") as progress:
                found = finder.find(queries, [name], progress.update)
            fresh[name].shared = dict(Counter(known.source(copy.of) for copy in found).most_common())
    except (StoreError, ValueError) as error:  # a damaged shard of another source, which is none of this build's
        what = str(error).replace(f"{out}{os.sep}", "")  # the page is the same wherever the store lies
        for report in fresh.values():
            report.advice.append(f"copies in other sources were not looked for: {what}")


def _is_there(source: _Source, there: dict[str, SourceReport], parts: dict[str, SourcePart]) -> bool:
    """Whether the store holds a source as it would be built."""
    report, part = there.get(source.name), parts.get(source.name)
    if report is None or report.inputs != source.report.inputs:
        return False
    report.root = source.report.root  # the folder may have been moved
    return report.fingerprint == (part.fingerprint if part is not None else "")


def _gone(plan: _Plan, there: dict[str, SourceReport]) -> list[str]:
    """Sources of the store that this folder had and has no more."""
    names, roots = {source.name for source in plan.sources}, {source.report.root for source in plan.sources}
    return [name for name, report in there.items() if report.root in roots and name not in names]


def _refuse_another(source: _Source, there: dict[str, SourceReport], out: Path) -> None:
    before = there.get(source.name)
    if before is not None and before.root != source.report.root:
        raise StoreError(
            f"{out} has a source {source.name!r} from another folder: give this one another --name, or remove that one "
            f"first (dexcore mvu build --remove {source.name} --out {out})"
        )


def _entries(source: _Source) -> tuple[str, str]:
    """The names under which a source's tasks, and what was packed of them, lie in the build's folder."""
    return source.report.inputs[:24], f"{source.report.inputs[:24]}.json"


def _shards(staging: Path) -> set[str]:
    return {entry.name for entry in staging.iterdir() if is_shard(entry)}


def _packed(source: _Source, staging: Path) -> bool:
    """Take up what a killed build has packed of a source."""
    try:
        content = json.loads((staging / _entries(source)[1]).read_bytes())
        shards = tuple(Shard(**shard) for shard in content["part"]["shards"])
        if any((staging / shard.name).stat().st_size != shard.size for shard in shards):
            return False
        source.part = SourcePart(**content["part"] | {"shards": shards})
        source.report = SourceReport(**content["report"])
        source.rejects = [Reject(*reject) for reject in content["rejects"]]
        source.examples = [Example(**example) for example in content["examples"]]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return True


def _discover(sources: list[_Source], plan: _Plan, workers: Workers, notes: Path) -> None:
    """Look into the files of sources, and tell what they are."""
    with Progress(sum(len(source.files.files) for source in sources), "looked into") as progress:
        for source in sources:
            files = source.files.files
            if source.files.recipe.synthetic:
                source.classified = drawn_items(source.files, plan.settings.key)
                source.report.known(source.classified, source.files)
                continue
            pieces = [files[at : at + _FILES_AN_INSPECTION] for at in range(0, len(files), _FILES_AN_INSPECTION)]
            inspected: dict[str, Inspected] = {}
            tasks = [(plan.settings.root, piece) for piece in pieces]
            for index, found in workers.run(inspect, tasks, notes):
                inspected |= {file.path: seen for file, seen in zip(pieces[index], found, strict=True)}
                progress.update(len(found))
            shown = plan.settings.of(source.files.recipe).shown
            grouping = Grouping(source.files.recipe, plan.settings.key)
            source.classified = classify(source.files, inspected, grouping, shown)
            source.report.known(source.classified, source.files)


def _read(fresh: list[_Source], plan: _Plan, staging: Path, workers: Workers, notes: Path, shard_bytes: int) -> None:
    """Run the tasks that are not done yet; pack each source with its last one."""
    todo: list[Task] = []
    owner: list[_Source] = []
    missing: Counter[str] = Counter()
    for source in fresh:
        if source.part is not None:
            continue
        assert source.classified is not None
        folder = staging / _entries(source)[0]
        folder.mkdir(exist_ok=True)
        settings = plan.settings.of(source.files.recipe)
        items, masks = source.classified.items, source.classified.masks
        source.tasks = tasks_of([*items, *masks] if masks else items, source.files, settings, folder)
        left = [task for task in source.tasks if not is_done(task)]
        todo += left
        owner += [source] * len(left)
        missing[source.name] = len(left)
    for source in fresh:
        if source.part is None and not missing[source.name]:
            _pack(source, plan, staging, shard_bytes)
    with Progress(sum(_files(task) for task in todo), "read") as progress:
        for index, _ in workers.run(build_task, todo, notes):
            dropped = Counter(Reject(*reject).category for reject in read_outcome(todo[index])["rejects"])
            progress.update(_files(todo[index]), dropped)
            source = owner[index]
            missing[source.name] -= 1
            if not missing[source.name]:
                _pack(source, plan, staging, shard_bytes)


def _files(task: Task) -> int:
    return sum(len(item.files) for item in task.items)


def _pack(source: _Source, plan: _Plan, staging: Path, shard_bytes: int) -> None:
    """Write a source's shards; then what was read is not needed any more."""
    assert source.classified is not None
    packed = pack(staging, source.name, source.tasks, shard_bytes, plan.settings.drop_near_copies)
    source.part = packed.part
    source.rejects = [*source.classified.rejects, *packed.rejects]
    source.examples = packed.examples
    source.report.fingerprint = source.part.fingerprint if source.part.images else ""
    source.report.kept = dict(sorted(packed.kept.items()))
    source.report.near_copies = packed.near_copies
    source.report.groups = packed.groups
    source.report.dropped = dict(Counter(reject.category for reject in source.rejects).most_common())
    content = {
        "part": asdict(source.part),
        "report": asdict(source.report),
        "rejects": [(reject.path, reject.reason) for reject in source.rejects],
        "examples": [asdict(example) for example in source.examples],
    }
    folder, file = _entries(source)
    write_whole(staging / file, json.dumps(content).encode())
    shutil.rmtree(staging / folder, ignore_errors=True)
