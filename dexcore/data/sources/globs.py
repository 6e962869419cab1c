"""Patterns over the paths of a source, as `Recipe.take` and `Recipe.leave` hold them."""

import re
from collections.abc import Callable, Iterable
from functools import lru_cache


def matcher(patterns: Iterable[str]) -> Callable[[str], bool]:
    """Whether a path (with ``/``) matches one of the patterns.

    ``*`` and ``?`` stand for what is in one name, ``**/`` for any number of folders, a pattern's ``/**`` at its end for
    all below, ``[...]`` for one of some characters, ``{a,b}`` for one of some words. A pattern without ``/`` is about
    the name of the file in whatever folder.

    Raises:
        ValueError: a pattern is none; the message says why.
    """
    compiled = [_compiled(pattern) for pattern in patterns]
    return lambda path: any(one.fullmatch(path) for one in compiled)


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> re.Pattern[str]:
    if not pattern or pattern.startswith("/"):
        raise ValueError(f"{pattern!r} is no pattern: expected a path below the folder, as images/*.png")
    whole = pattern if "/" in pattern else f"**/{pattern}"
    try:
        return re.compile("".join(_pieces(whole)), re.DOTALL)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no pattern: {error}") from error


def _pieces(pattern: str) -> Iterable[str]:
    """The regular expression of a pattern, piece by piece."""
    place = depth = 0
    while place < len(pattern):
        rest = pattern[place:]
        if rest.startswith("**/"):
            piece, length = "(?:[^/]+/)*", 3
        elif rest == "**":
            piece, length = ".+", 2
        elif rest.startswith("*"):
            piece, length = "[^/]*", 1
        elif rest.startswith("?"):
            piece, length = "[^/]", 1
        elif rest.startswith("[") and "]" in rest[2:]:
            length = rest.index("]", 2) + 1
            inside = rest[1 : length - 1].replace("\\", "\\\\")
            piece = f"[^{inside[1:]}]" if inside.startswith("!") else f"[{inside}]"
        elif rest.startswith("{"):
            piece, length, depth = "(?:", 1, depth + 1
        elif depth and rest.startswith(","):
            piece, length = "|", 1
        elif depth and rest.startswith("}"):
            piece, length, depth = ")", 1, depth - 1
        else:
            piece, length = re.escape(rest[0]), 1
        yield piece
        place += length
