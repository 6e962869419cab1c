"""The files of a folder, and the sources that they belong to."""

import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from dexcore.data.modality import Modality
from dexcore.data.sources.globs import matcher
from dexcore.data.sources.recipe import Column, Recipe, RecipeError
from dexcore.data.sources.schema import DATASET_YAML, describes_a_source, load_recipe

_NOT_LOOKED_AT = ("__MACOSX",)


@dataclass(frozen=True, slots=True)  # there are millions
class Found:
    """A file: its path below the folder (with ``/``), bytes, and when it was last written (ns)."""

    path: str
    size: int
    mtime_ns: int


@dataclass
class SourceFiles:
    """The files of one source.

    Attributes:
        recipe: of the source; its globs and expressions are about paths below ``folder``.
        folder: where the source begins, below the folder that is built; "" for all of it.
        files: by path.
        left: files that the recipe leaves out.
        above: what paths begin with for the recipe: the name of the folder that is built, and "/", where a recipe wants
            it.
    """

    recipe: Recipe
    folder: str
    files: list[Found] = field(default_factory=list)
    left: int = 0
    above: str = ""

    def below(self, path: str) -> str:
        """A path below the source's folder."""
        return self.above + (path[len(self.folder) + 1 :] if self.folder else path)


@dataclass
class Walked:
    """What a walk met: files by path; what could not be opened, with the reason; hidden files that were passed by."""

    files: list[Found] = field(default_factory=list)
    closed: list[tuple[str, str]] = field(default_factory=list)
    hidden: int = 0


def walk(root: Path, leave: Path | None = None) -> Walked:
    """Find all files below a folder. Links are followed, each folder is entered once, under its own name if it has one.

    Hidden files (their names begin with a dot), devices and pipes are passed by.

    Args:
        root: the folder.
        leave: a folder that is not entered: the store's.

    Raises:
        ValueError: ``root`` is no folder that can be read.
    """
    try:
        os.listdir(root)
        entered = {_identity(os.stat(root))}
    except OSError as error:
        raise ValueError(f"{root}: {error.strerror}, expected a folder of images") from error
    if leave is not None and leave.is_dir():
        entered.add(_identity(os.stat(leave)))
        if _identity(os.stat(root)) == _identity(os.stat(leave)):
            raise ValueError(f"{root} cannot be its own store: give another folder by --out")
    walked = Walked()
    folders: list[str] = [""]
    links: list[str] = []
    while folders or links:
        # Links wait until all that has a name of its own was entered.
        link = not folders
        below = links.pop(0) if link else folders.pop()
        try:
            if link:
                identity = _identity(os.stat(root / below))
                if identity in entered:
                    continue
                entered.add(identity)
            for entry in _entries(root / below):
                path = f"{below}/{entry.name}" if below else entry.name
                _meet(entry, path, walked, entered, folders, links)
        except OSError as error:
            walked.closed.append((below, f"the folder cannot be read: {error.strerror}"))
        links.sort()
    walked.files.sort(key=lambda found: os.fsencode(found.path))
    walked.closed.sort()
    return walked


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _meet(
    entry: os.DirEntry[str],
    path: str,
    walked: Walked,
    entered: set[tuple[int, int]],
    folders: list[str],
    links: list[str],
) -> None:
    try:
        found = entry.stat()
        if entry.name.startswith(".") or entry.name in _NOT_LOOKED_AT:
            walked.hidden += not stat.S_ISDIR(found.st_mode)
        elif stat.S_ISDIR(found.st_mode):
            if entry.is_symlink():
                links.append(path)
            elif _identity(found) not in entered:
                entered.add(_identity(found))
                folders.append(path)
        elif stat.S_ISREG(found.st_mode):
            walked.files.append(Found(path, found.st_size, found.st_mtime_ns))
        else:
            walked.closed.append((path, "no regular file"))
    except OSError as error:  # a link to nowhere, or a circle of links
        walked.closed.append((path, f"cannot be opened: {error.strerror}"))


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def path_text(path: str) -> str:
    """A path as text that UTF-8 can hold: bytes of a name that is not UTF-8 are written as ``\\xNN``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def sources_of(
    root: Path, files: list[Found], name: str, modality: Modality | None, named: Callable[[str], str]
) -> list[SourceFiles]:
    """The sources of a folder: what lies below a ``dataset.yaml`` but not below another one is one.

    Args:
        root: the folder.
        files: of `walk`.
        name: of what lies below no ``dataset.yaml`` of a folder inside.
        modality: goes before what a ``dataset.yaml`` says.
        named: the name of another source that gives itself none, from the path of its folder.

    Returns:
        Sources with at least one file, by name.

    Raises:
        RecipeError: a ``dataset.yaml`` is not as it must be, or two sources have one name.
    """
    sources: dict[str, SourceFiles] = {"": SourceFiles(Recipe(name, modality), "")}
    for found in files:
        folder, _, file = found.path.rpartition("/")
        if file != DATASET_YAML or not describes_a_source(root / found.path):
            continue
        recipe = load_recipe(root / found.path, named(folder) if folder else name)
        sources[folder] = SourceFiles(replace(recipe, modality=modality or recipe.modality), folder)
    for source in sources.values():
        source.recipe = _with_tables(source, root, files)
    taken = {folder: _taken(source.recipe) for folder, source in sources.items()}
    for found in files:
        folder, _, file = found.path.rpartition("/")
        while folder not in sources:
            folder = folder.rpartition("/")[0]
        source = sources[folder]
        if file == DATASET_YAML:
            continue
        if taken[folder](source.below(found.path)):
            source.files.append(found)
        else:
            source.left += 1
    known: dict[str, str] = {}
    for folder, source in sources.items():
        if source.recipe.name in known and source.files:
            other = known[source.recipe.name]
            raise RecipeError(
                f"{root / folder / DATASET_YAML}: the source {source.recipe.name!r} stands also in "
                f"{root / other / DATASET_YAML}: give one of them another name"
            )
        if source.files:
            known[source.recipe.name] = folder
    found_any = (source for source in sources.values() if source.files or source.recipe.synthetic)
    return sorted(found_any, key=lambda source: source.recipe.name)


def sources_by(root: Path, files: list[Found], recipes: Sequence[Recipe]) -> list[SourceFiles]:
    """The sources of a folder that these recipes describe, each over all of it; no ``dataset.yaml`` is looked at.

    Returns:
        Sources with at least one file, by name.

    Raises:
        RecipeError: two recipes take one file, or a recipe's CSV file is not there.
    """
    sources = []
    owner: dict[str, str] = {}
    for recipe in recipes:
        source = take_and_leave(recipe, root, files)
        for found in source.files:
            if found.path in owner:
                raise RecipeError(f"{root / found.path} belongs to two sources, {owner[found.path]} and {recipe.name}")
            owner[found.path] = recipe.name
        if source.files or recipe.synthetic:
            source.recipe = _with_tables(source, root, files)
            sources.append(source)
    return sorted(sources, key=lambda source: source.recipe.name)


def take_and_leave(recipe: Recipe, root: Path, files: Sequence[Found]) -> SourceFiles:
    """The files of a folder that a recipe takes; ``left`` counts those that only its ``leave`` keeps out.

    A recipe whose globs name a folder finds its files also where that folder is the root.
    """
    if recipe.synthetic:
        return SourceFiles(recipe, "")
    take, leave = matcher(recipe.take or ("**",)), matcher(recipe.leave)
    for above in ("", f"{root.resolve().name}/"):
        matching = [found for found in files if take(above + found.path)]
        if matching:
            taken = [found for found in matching if not leave(above + found.path)]
            return SourceFiles(recipe, "", taken, len(matching) - len(taken), above)
    return SourceFiles(recipe, "")


def _with_tables(source: SourceFiles, root: Path, files: Sequence[Found]) -> Recipe:
    """A recipe whose CSV files are those that lie below its source's folder."""
    recipe = source.recipe

    def found(column: Column) -> Column:
        pattern = column.csv.as_posix()
        if not set(pattern) & set("*?[{"):
            return replace(column, csv=root / source.folder / column.csv)
        matches = matcher([pattern])
        below = f"{source.folder}/" if source.folder else ""
        paths = [one.path for one in files if one.path.startswith(below) and matches(source.below(one.path))]
        if len(paths) != 1:
            those = f"{len(paths)} files match, {paths[0]} and {paths[1]} among them" if paths else "no file matches"
            raise RecipeError(
                f"{recipe.name} needs the CSV file {pattern} below {root / source.folder}: {those}, expected one"
            )
        return replace(column, csv=root / paths[0])

    if isinstance(recipe.group, Column):
        recipe = replace(recipe, group=found(recipe.group))
    if isinstance(recipe.split, tuple) and isinstance(recipe.split[0], Column):
        column, values = recipe.split
        recipe = replace(recipe, split=(found(column), values))
    return recipe


def _taken(recipe: Recipe) -> Callable[[str], bool]:
    take, leave = matcher(recipe.take or ("**",)), matcher(recipe.leave)
    return lambda path: take(path) and not leave(path)
