"""The arguments of ``dexcore mvu sources`` and ``dexcore eval tasks``: a list, or one entry with NAME."""

import argparse
from collections.abc import Callable
from pathlib import Path


def add_listing(
    parser: argparse.ArgumentParser, entry: str, lines: Callable[[str | None, Path | None], list[str]]
) -> None:
    """Add the arguments.

    Args:
        parser: of the command.
        entry: what NAME is, such as "a source".
        lines: that are printed, of a name or of all, and of what lies below a folder.
    """
    parser.add_argument("name", nargs="?", metavar="NAME", help=entry)
    parser.add_argument("--root", type=Path, metavar="DIR", help="the folder with your downloads")

    def run(arguments: argparse.Namespace) -> int:
        print("\n".join(lines(arguments.name, arguments.root)))
        return 0

    parser.set_defaults(run=run)
