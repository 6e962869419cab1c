"""Which images belong together (a patient's, a volume's), and which of them are held out.

The split hangs on the group's hash alone, so that adding data moves nobody across.
"""

import csv
import gzip
import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

from dexcore.data.readers.dicom_header import Header
from dexcore.data.record import Split
from dexcore.data.sources.globs import matcher
from dexcore.data.sources.recipe import Column, InFile, Recipe, RecipeError

_KEY_BYTES = 32
_HASH_DIGITS = 32
_EXTENSIONS = re.compile(r"(\.(nii|img|label|ome|tar))?\.[A-Za-z0-9]{1,8}$")


class UnplacedError(Exception):
    """An image's group or split cannot be told; the message says why."""


class Grouping:
    """Groups and splits of one source.

    Args:
        recipe: of the source.
        key: of the hashes; None for plain ones, which are the same everywhere (public sources).

    Raises:
        RecipeError: a CSV file that the recipe names cannot be read, or lacks a column.
    """

    def __init__(self, recipe: Recipe, key: bytes | None) -> None:
        self._recipe = recipe
        self._key = None if recipe.public else key
        self._group_of = ImageTable(recipe.group) if isinstance(recipe.group, Column) else None
        self._split_of = self._heldout = None
        if isinstance(recipe.split, tuple):
            if isinstance(recipe.split[0], Column):
                self._split_of = ImageTable(recipe.split[0])
            else:
                self._heldout = matcher(recipe.split)

    def place(self, path: str, header: Header | None, told: str = "") -> tuple[str, Split]:
        """The group of an image, as a hash, and its split.

        Args:
            path: of its file below the source's folder.
            header: of its file, if it is DICOM.
            told: what its file says of it, where the recipe's groups stand in the file.

        Raises:
            UnplacedError: the recipe's expression does not match, or its CSV file has no row for the image.
        """
        group = self._hash(self._identity(path, header, told))
        return group, self._split(path, group)

    def _identity(self, path: str, header: Header | None, told: str) -> str:
        wanted = self._recipe.group
        if isinstance(wanted, re.Pattern):
            return _matched(wanted, path, "its path")
        if isinstance(wanted, InFile):
            return _matched(wanted.match, told, f"what the array {wanted.array} says of it")
        if self._group_of is not None:
            return f"patient\0{self._group_of.find(path)}"
        if header is not None and wanted != "file":
            # A level that the header lacks is stood in for by the next below it.
            levels = {"patient": header.patient, "study": header.study, "volume": header.series}
            names = list(levels)
            for name in names[names.index(str(wanted)) :]:
                if levels[name]:
                    return f"{name}\0{levels[name]}"
        return f"file\0{self._recipe.name}\0{path}"

    def _hash(self, identity: str) -> str:
        data = os.fsencode(identity)
        if self._key is None:
            data = os.fsencode(f"{self._recipe.cohort or self._recipe.name}\0") + data
            return hashlib.sha256(data).hexdigest()[:_HASH_DIGITS]
        return hmac.new(self._key, data, "sha256").hexdigest()[:_HASH_DIGITS]

    def _split(self, path: str, group: str) -> Split:
        wanted = self._recipe.split
        if wanted == "train" or wanted == "heldout":
            return wanted
        if isinstance(wanted, float):
            drawn = int.from_bytes(hashlib.sha256(b"split\0" + group.encode()).digest()[:8], "big") / 2**64
            return "heldout" if drawn < wanted else "train"
        if self._heldout is not None:
            return "heldout" if self._heldout(path) else "train"
        _, values = wanted
        assert self._split_of is not None
        return "heldout" if self._split_of.find(path) in values else "train"


def load_key(path: Path | None) -> bytes:
    """The key of a user's groups; made once, in the user's configuration folder, unless a file is given.

    Raises:
        ValueError: the file cannot be read or made, or holds less than 16 bytes.
    """
    given = path is not None
    if path is None:
        path = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "dexcore" / "group.key"
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            pass
        except OSError as error:
            raise ValueError(
                f"cannot make the key of groups {path}: {error.strerror}; give one by --key FILE"
            ) from error
        else:
            with open(descriptor, "w", encoding="ascii") as file:
                file.write(secrets.token_hex(_KEY_BYTES) + "\n")
    try:
        key = path.read_bytes().strip()
    except OSError as error:
        raise ValueError(f"cannot read the key of groups {path}: {error.strerror}") from error
    if len(key) < 16:
        hint = "" if given else "; remove it, and another is made (groups and splits change with it)"
        raise ValueError(f"the key of groups {path} holds {len(key)} bytes, expected at least 16{hint}")
    return key


def names_in(path: str) -> tuple[str, ...]:
    """Those of folders and file. Not by pathlib, which interns each: Python's table of interned names never shrinks."""
    return tuple(name for name in path.split("/") if name not in ("", "."))


def stem(name: str) -> str:
    """A file's name without its ending; ``.nii.gz`` and ``.img.nii.gz`` are one ending."""
    if name.lower().endswith(".gz"):
        name = name[:-3]
    return _EXTENSIONS.sub("", name) or name


def _matched(pattern: re.Pattern[str], text: str, what: str) -> str:
    """The groups of an expression that took part, or else all of its match."""
    match = pattern.search(text)
    if match is None:
        raise UnplacedError(f"no match of the source's expression for groups in {what}")
    return f"patient\0{'/'.join(group for group in match.groups() if group is not None) or match.group()}"


class ImageTable:
    """The values of a CSV file by images, all as texts: leading zeros count.

    An image's row is the one whose entry has the longest end in common with its path, with or without the ending of its
    name. A name alone is enough only where one of the two has no folder: other folders hold other images of that name.

    Raises:
        RecipeError: the file cannot be read, or lacks a column.
    """

    def __init__(self, column: Column) -> None:
        self._column = column
        self._whole: dict[str, str | None] = {}  # None: rows that say different things
        self._ends: dict[str, str | None] = {}
        for image, value in self._rows():
            parts = names_in(image.replace("\\", "/"))
            if not parts:
                continue
            for known in (parts, (*parts[:-1], stem(parts[-1]))):
                self._add(self._whole, known, value)
                for start in range(1, len(known)):
                    self._add(self._ends, known[start:], value)

    @staticmethod
    def _add(table: dict[str, str | None], parts: tuple[str, ...], value: str) -> None:
        key = "/".join(parts)
        table[key] = value if table.get(key, value) == value else None

    def _rows(self) -> Iterator[tuple[str, str]]:
        column = self._column
        try:
            data = column.csv.read_bytes()
            if data.startswith(b"\x1f\x8b"):  # seen: gzip under a name of .csv
                data = gzip.decompress(data)
            text = data.decode("utf-8-sig")
        except (OSError, EOFError, UnicodeDecodeError) as error:
            raise RecipeError(f"{column.csv}: cannot be read: {type(error).__name__}: {error}") from error
        first = text.split("\n", 1)[0]
        rows = csv.DictReader(text.splitlines(), delimiter=max(",;\t", key=first.count))
        rows.fieldnames = known = [name.strip() for name in rows.fieldnames or []]
        for name in (column.file, *column.column):
            if name not in known:
                raise RecipeError(f"{column.csv}, line 1: has no column {name!r}, it has {', '.join(known)}")
        for row in rows:
            values = [(row[name] or "").strip() for name in (column.file, *column.column)]
            if all(values):
                yield values[0], "/".join(values[1:])

    def find(self, path: str) -> str:
        """The value of an image.

        Raises:
            UnplacedError: it has no row, or several that differ.
        """
        parts = names_in(path)
        for start in range(len(parts)):
            ends = self._ends if start == 0 or start < len(parts) - 1 else {}
            for known in (parts[start:], (*parts[start:-1], stem(parts[-1]))):
                key = "/".join(known)
                for table in (self._whole, ends):
                    value = table.get(key, "")
                    if value is None:
                        raise UnplacedError("the source's CSV file has rows for it that differ")
                    if value:
                        return value
        column = self._column
        names = " and ".join(column.column)
        raise UnplacedError(f"no row in the source's CSV file (column {column.file}, with a value in {names})")
