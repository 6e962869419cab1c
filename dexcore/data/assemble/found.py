"""What of the sources of MVU lies below a folder, in words."""

from pathlib import Path
from shlex import quote

from dexcore.data.assemble.walk import Found, SourceFiles, take_and_leave, walk
from dexcore.data.modality import SOURCES
from dexcore.data.sources.catalog import recipe, recipe_text, recipes
from dexcore.data.sources.listing import layout_word, listed

_ARCHIVES = (".zip", ".rar", ".tar", ".gz", ".tgz", ".7z", ".001", ".z01", ".change2zip")


def sources_table(root: Path | None) -> list[str]:
    """The 44 sources, a line each; with a folder, how many files of each lie below it.

    Raises:
        ValueError: the folder cannot be read.
    """
    files = walk(root).files if root is not None else []
    rows: list[tuple[object, ...]] = []
    there = 0
    for source, one in zip(SOURCES, recipes(), strict=True):
        taken = take_and_leave(one, root, files).files if root is not None else []
        there += bool(taken)
        count = (str(len(taken)) if taken else "-") if root is not None else ""
        rows.append((source.name, source.modality, source.images, "", layout_word(one.confirmed), count))
    rows.append(("in all", "", sum(source.images for source in SOURCES), "", "", ""))
    last = "files" if root is not None else ""
    lines = listed([("source", 36), ("modality", 12), ("images", -9), ("", 2), ("layout", 14), (last, 0)], rows)
    if root is not None:
        lines += [f"{there} of {len(SOURCES)} sources lie below {root}", *_advice(root, files, "all", there)]
    return lines


def source_page(name: str, root: Path | None) -> list[str]:
    """A source's recipe as a dataset.yaml; with a folder, what of it lies below.

    Raises:
        RecipeError: there is no such source.
        ValueError: the folder cannot be read.
    """
    one = recipe(name)
    lines = [recipe_text(name)]
    if root is not None:
        files = walk(root).files
        source = take_and_leave(one, root, files)
        lines += [f"# {line}" for line in [_found(source, root), *_advice(root, files, one.name, len(source.files))]]
    return lines


def _found(source: SourceFiles, root: Path) -> str:
    if not source.files:
        return f"Below {root}: none of its files."
    left = f"; {source.left} more are left out" if source.left else ""
    return f"Below {root}: {len(source.files)} files, as {source.files[0].path}{left}."


def _advice(root: Path, files: list[Found], name: str, there: int) -> list[str]:
    packed = [found.path for found in files if found.path.lower().endswith(_ARCHIVES) and ".nii." not in found.path]
    lines = []
    if there:
        lines.append(f"dexcore mvu build {quote(str(root))} --source {quote(name)} --out store")
    if packed:
        lines.append(f"{len(packed)} archives, as {packed[0]}: unpack them, recipes do not look inside")
    return lines
