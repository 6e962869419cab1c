"""``dexcore mvu``: folders to stores, and what is done with a store.

    dexcore mvu build FOLDER --out STORE    every image of a folder becomes a store
    dexcore mvu sources [NAME]              the sources of MVU: how each must lie, where it is to be had
    dexcore mvu check STORE                 compare every hash
    dexcore mvu stats STORE                 count images by modality and source, beside the paper's
    dexcore mvu report STORE                make the page of what a build kept and dropped again
    dexcore mvu show STORE --out PNG        examples of every source on one picture
    dexcore mvu export STORE --parquet DIR  Parquet with PNG images, for a hub and its viewer
    dexcore mvu import SRC --out STORE      a corpus in Parquet becomes a store
    dexcore mvu leak STORE OTHER            which images of a test set are in a store

Heavy imports wait until a command runs.
"""

import argparse
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from dexcore.commands.listing import add_listing


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Add the commands to the parser of ``dexcore mvu``."""
    commands = parser.add_subparsers(dest="mvu", metavar="COMMAND", required=True)
    _add_build(commands.add_parser("build", help="make a store of all images in a folder", description=_BUILD))
    sources = commands.add_parser("sources", help="list the sources of MVU, or show one", description=_SOURCES)
    add_listing(sources, "a source", _sources)
    _add(commands, "check", _check, "compare every hash of a store")
    _add(commands, "stats", _stats, "count a store's images by modality and source, beside the paper's")
    _add(commands, "report", _report, "make the page of what a build kept and dropped again")
    show = _add(commands, "show", _show, "put examples of every source on one picture")
    show.add_argument("--out", type=Path, required=True, metavar="PNG", help="the picture to write")
    show.add_argument("--examples", type=int, default=10, metavar="N", help="images a source (default: 10)")
    export = _add(commands, "export", _export, "write a store as Parquet with PNG images, for a hub and its viewer")
    export.add_argument("--parquet", type=Path, required=True, metavar="DIR", help="the folder to write")
    _add_import(commands.add_parser("import", help="make a store of a corpus in Parquet", description=_IMPORT))
    _add_leak(commands.add_parser("leak", help="tell which images of a test set are in a store", description=_LEAK))


def run_mvu(arguments: argparse.Namespace) -> int:
    """Run the command that was parsed; the return value is the process's."""
    from dexcore.data.assemble.workers import WorkersError
    from dexcore.data.store import StoreError

    try:
        return arguments.run(arguments)
    except (StoreError, WorkersError) as error:
        raise ValueError(str(error)) from error  # told in a line, as all that a user can mend
    except KeyboardInterrupt:
        print("stopped; call it again, and it goes on where it was", file=sys.stderr)
        return 130


_BUILD = (
    "Make a store of all images in a folder, or bring one up to date. Kinds are told by content; DICOM files are put "
    "together to volumes; the modality comes from DICOM, else from --modality, else from the nearest dataset.yaml "
    "(one line, `modality: X-ray`, is enough). Masks are left alone. What is kept out stands in STORE/rejects.jsonl "
    "with the reason; STORE/report.html shows examples of what was kept and dropped. "
    "A killed build goes on when it is called again; a second call reads only what changed."
)


_SOURCES = (
    "List the 44 sources of Medical Vision Universe: modality, images in the paper, how well the layout of the "
    "download is known. With NAME, show its recipe: how the files must lie, where they are to be had and under "
    "which terms. With --root, say what is found below a folder; downloads may lie anywhere below it, unpacked. "
    "Nothing is downloaded."
)


def _sources(name: str | None, root: Path | None) -> list[str]:
    from dexcore.data.assemble.found import source_page, sources_table

    return source_page(name, root) if name else sources_table(root)


def _add_build(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, nargs="?", metavar="FOLDER", help="any folder of images")
    parser.add_argument("--out", type=Path, metavar="STORE", help="the folder of the store")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, from headers alone")
    parser.add_argument("--modality", metavar="M", help="of files that do not say theirs, as X-ray")
    parser.add_argument("--name", metavar="NAME", help="of the source and the store (default: the folder's)")
    parser.add_argument("--remove", metavar="NAME", help="take a source out of the store, and do nothing else")
    parser.add_argument(
        "--source",
        action="extend",
        nargs="+",
        default=[],
        metavar="NAME",
        help="take what these sources of MVU (or YAML files) describe and nothing else; all: those of MVU there are",
    )
    parser.add_argument("--root", type=Path, metavar="DIR", help="in place of FOLDER: the downloads of the sources")
    parser.add_argument("--jobs", type=int, metavar="N", help="worker processes (default: one a core)")
    parser.add_argument(
        "--dask", metavar="ADDRESS", help="workers of a Dask cluster instead, as tcp://host:8786; they share the disk"
    )
    parser.add_argument(
        "--max-side", type=int, default=512, metavar="PX", help="the largest shorter side that is stored"
    )
    parser.add_argument(
        "--min-side", type=int, metavar="PX", help="the smallest shorter side that is kept (default: 64)"
    )
    parser.add_argument("--every", type=int, metavar="N", help="keep one frame in N (default: 30 of videos, else 1)")
    parser.add_argument(
        "--key", type=Path, metavar="FILE", help="the key of the hashes of patients (default: your own)"
    )
    parser.add_argument("--hash-paths", action="store_true", help="store hashes in place of paths")
    parser.add_argument("--drop-burned-in", action="store_true", help="leave out what DICOM says has text burned in")
    parser.add_argument(
        "--drop-near-copies", action="store_true", help="leave out near-copies within a source (exact ones always are)"
    )
    parser.set_defaults(run=_build)


_IMPORT = (
    "Make a store of Parquet files with a column of images, as Hugging Face corpora have them. Modality, source, group "
    "and split come from columns of these names, else from the flags."
)


def _add_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("src", type=Path, metavar="SRC", help="a Parquet file, or a folder of them")
    parser.add_argument("--out", type=Path, required=True, metavar="STORE", help="the folder of the store")
    parser.add_argument("--name", metavar="NAME", help="of the store (default: that of SRC)")
    parser.add_argument("--modality", metavar="M", help="of all images")
    parser.add_argument("--source", metavar="NAME", help="of all images")
    parser.add_argument("--anatomy", metavar="WORDS", help="of all images")
    for flag, text in (
        ("--column", "where a column has another name than ours, as group=patient_id; may stand more than once"),
        ("--value", "where a modality has another name than ours, as cxr=X-ray; may stand more than once"),
    ):
        parser.add_argument(flag, type=_pair, action="append", default=[], metavar="NAME=NAME", help=text)
    parser.add_argument(
        "--max-side", type=int, default=512, metavar="PX", help="the largest shorter side that is stored"
    )
    parser.set_defaults(run=_import)


def _pair(text: str) -> tuple[str, str]:
    before, sign, after = text.partition("=")
    if not (before and sign and after):
        raise argparse.ArgumentTypeError(f"expected NAME=NAME, got {text!r}")
    return before, after


_LEAK = (
    "Tell which images of OTHER (a store, a folder or a file) are in STORE, exactly or nearly: rescaled, compressed, "
    "windowed, or cropped by some 2 %. The exit status is 1 if any is, 0 if none."
)


def _add_leak(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", type=Path, metavar="STORE", help="the folder of a store")
    parser.add_argument("other", type=Path, metavar="OTHER", help="what is looked for in it")
    parser.add_argument("--out", type=Path, metavar="CSV", help="the file to write all of them to")
    parser.add_argument("--modality", metavar="M", help="of files of OTHER that do not say theirs, as CT")
    parser.set_defaults(run=_leak)


def _add(
    commands: argparse._SubParsersAction, name: str, run: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument("store", type=Path, metavar="STORE", help="the folder of a store")
    parser.set_defaults(run=run)
    return parser


def _build(arguments: argparse.Namespace) -> int:
    from dexcore.data.assemble.beside import read_reports
    from dexcore.data.assemble.build import build, dry_run, remove
    from dexcore.data.assemble.cluster import cluster
    from dexcore.data.assemble.options import Options
    from dexcore.report.store_page import report_store

    if arguments.remove is not None:
        _needs(arguments, "out")
        manifest = remove(arguments.out, arguments.remove)
        print(f"{arguments.out}: {arguments.remove} is removed, {manifest.images} images are left")
        if read_reports(arguments.out):  # not of an imported store
            report_store(arguments.out)
        return 0
    if arguments.folder is not None and arguments.root is not None:
        raise ValueError("FOLDER and --root are both given: --root stands in its place, for the downloads of sources")
    arguments.folder = arguments.folder or arguments.root
    _needs(arguments, "folder", *([] if arguments.dry_run else ["out"]))
    options = Options(
        name=arguments.name,
        modality=arguments.modality,
        max_side=arguments.max_side,
        min_side=arguments.min_side,
        every=arguments.every,
        key=arguments.key,
        hash_paths=arguments.hash_paths,
        drop_burned_in=arguments.drop_burned_in,
        drop_near_copies=arguments.drop_near_copies,
        sources=tuple(arguments.source),
    )
    with cluster(arguments.dask) if arguments.dask else nullcontext((None, arguments.jobs)) as (executor, jobs):
        if arguments.dry_run:
            lines = dry_run(arguments.folder, options, jobs=jobs, executor=executor).lines()
        else:
            lines = build(arguments.folder, arguments.out, options, jobs=jobs, executor=executor).lines()
            lines.insert(-1, f"report: {report_store(arguments.out)}")
    print("\n".join(lines))
    return 0


def _needs(arguments: argparse.Namespace, *names: str) -> None:
    for name in names:
        if getattr(arguments, name) is None:
            raise ValueError(f"{'FOLDER' if name == 'folder' else '--out STORE'} is missing")


def _check(arguments: argparse.Namespace) -> int:
    from dexcore.data.store import Manifest, check_store

    problems = check_store(arguments.store)
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        return 1
    print(f"{arguments.store}: {Manifest.load(arguments.store).images} images, every hash is right")
    return 0


def _stats(arguments: argparse.Namespace) -> int:
    from dexcore.data.store.stats import stats_table, store_stats

    print(stats_table(store_stats(arguments.store)))
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from dexcore.report.store_page import report_store

    print(report_store(arguments.store))
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from dexcore.data.store.show import show

    count = show(arguments.store, arguments.out, examples=arguments.examples)
    print(f"{arguments.out}: {count} images")
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from dexcore.data.store.exchange import export_parquet

    files = export_parquet(arguments.store, arguments.parquet)
    print(f"{arguments.parquet}: {len(files)} Parquet {'files' if len(files) > 1 else 'file'}")
    return 0


def _import(arguments: argparse.Namespace) -> int:
    from dexcore.data.assemble.hub import import_parquet

    imported = import_parquet(
        arguments.src,
        arguments.out,
        name=arguments.name or arguments.src.resolve().stem,
        modality=arguments.modality,
        source=arguments.source,
        anatomy=arguments.anatomy,
        columns=dict(arguments.column),
        values=dict(arguments.value),
        max_side=arguments.max_side,
    )
    for path, reason in imported.rejected:
        print(f"left out: {path}: {reason}", file=sys.stderr)
    print(f"{arguments.out}: {imported.manifest.images} images, fingerprint {imported.manifest.fingerprint}")
    return 0


def _leak(arguments: argparse.Namespace) -> int:
    from dexcore.data.assemble.leak import find_leaks

    leaks = find_leaks(arguments.store, arguments.other, modality=arguments.modality)
    for path, reason in leaks.unread:
        print(f"left out: {path}: {reason}", file=sys.stderr)
    if arguments.out is not None:
        leaks.write_csv(arguments.out)
    print("\n".join(leaks.lines(arguments.store)))
    return 1 if leaks.leaked else 0
