"""What was measured, kept by all that it is made of: a kill loses at most the part at work."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import dexcore


class Saved(Protocol):
    """What can be written into a file, whole or not at all."""

    def save(self, path: Path) -> None:
        """Write it."""


_Part = TypeVar("_Part", bound=Saved)


def key_of(protocol: int, *made_of: Any) -> str:
    """A short hash of what decides over numbers, for the name of their file.

    Args:
        protocol: grows when a number would come out otherwise.
        made_of: all else, as JSON has it; this version of dexcore is in the key by itself.
    """
    return hashlib.sha256(json.dumps([protocol, dexcore.__version__, *made_of]).encode()).hexdigest()[:12]


def kept(path: Path, load: Callable[[Path], _Part], compute: Callable[[], _Part]) -> _Part:
    """Read what was measured before; where there is nothing, or it is damaged, measure and write it.

    Args:
        path: named by `key_of`.
        load: raises FileNotFoundError or ValueError where there is nothing to read.
        compute: measures.
    """
    try:
        return load(path)
    except (FileNotFoundError, ValueError):
        done = compute()
    done.save(path)
    return done
