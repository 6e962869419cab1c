"""``dexcore mvu``: folders to stores, and what is done with a store.

dexcore mvu build FOLDER --out STORE    every image of a folder becomes a store
dexcore mvu check STORE                 compare every hash
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Add the commands to the parser of ``dexcore mvu``."""
    commands = parser.add_subparsers(dest="mvu", metavar="COMMAND", required=True)
    _add_build(commands.add_parser("build", help="make a store of all images in a folder", description=_BUILD))
    _add(commands, "check", _check, "compare every hash of a store")


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
    "with the reason. A killed build goes on when it is called again; a second call reads only what changed."
)


def _add_build(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, nargs="?", metavar="FOLDER", help="any folder of images")
    parser.add_argument("--out", type=Path, metavar="STORE", help="the folder of the store")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, from headers alone")
    parser.add_argument("--modality", metavar="M", help="of files that do not say theirs, as X-ray")
    parser.add_argument("--name", metavar="NAME", help="of the source and the store (default: the folder's)")
    parser.add_argument("--remove", metavar="NAME", help="take a source out of the store, and do nothing else")
    parser.add_argument("--jobs", type=int, metavar="N", help="worker processes (default: one a core)")
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
    parser.set_defaults(run=_build)


def _add(commands: argparse._SubParsersAction, name: str, run: Callable[[argparse.Namespace], int], text: str) -> None:
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument("store", type=Path, metavar="STORE", help="the folder of a store")
    parser.set_defaults(run=run)


def _build(arguments: argparse.Namespace) -> int:
    from dexcore.data.assemble.build import build, dry_run
    from dexcore.data.assemble.options import Options
    from dexcore.data.store import remove_source

    if arguments.remove is not None:
        _needs(arguments, "out")
        manifest = remove_source(arguments.out, arguments.remove)
        print(f"{arguments.out}: {arguments.remove} is removed, {manifest.images} images are left")
        return 0
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
    )
    if arguments.dry_run:
        print("\n".join(dry_run(arguments.folder, options, jobs=arguments.jobs).lines()))
    else:
        print("\n".join(build(arguments.folder, arguments.out, options, jobs=arguments.jobs).lines()))
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
