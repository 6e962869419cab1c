"""The image files below a folder, for those who make no store of it."""

from collections.abc import Callable
from pathlib import Path

from dexcore.data.assemble.discover import classify, look_into
from dexcore.data.assemble.reasons import Reject
from dexcore.data.assemble.split import Grouping
from dexcore.data.assemble.walk import SourceFiles, path_text, walk
from dexcore.data.modality import Modality
from dexcore.data.sources.recipe import Recipe

# Of the files that say no modality, any: they are images whatever their modality is.
_RECIPE = Recipe("images", Modality.XRAY, group="file")


def image_files(
    folder: Path, leave: Path | None = None, holds_results: Callable[[Path], bool] | None = None
) -> tuple[list[Path], list[Reject]]:
    """Find the image files below a folder, by the rules of a build of a store: by content, in the order of their paths.

    No ``dataset.yaml`` is looked at. Left out without a word are hidden files, and what lies beside images, such as CSV
    files.

    Args:
        folder: any; links in it are followed.
        leave: a folder that is not entered.
        holds_results: whether a folder, this one or one below it, holds results of an earlier call. The files in it
            are left out, unread and as one; those of folders below it are not.

    Returns:
        Paths that begin with ``folder``, and what is left out, by its path below the folder: masks that lie beside
        images of the same name, what is no image, what cannot be opened, folders of results.

    Raises:
        ValueError: ``folder`` cannot be read, or is ``leave``.
    """
    walked = walk(folder, leave)
    files, results = walked.files, set()
    if holds_results is not None:
        results = {place for place in {_place(file.path) for file in files} if holds_results(folder / place)}
        files = [file for file in files if _place(file.path) not in results]
    inspected = {file.path: look_into(folder / file.path) for file in files}
    source = SourceFiles(_RECIPE, "", files)
    found = classify(source, inspected, Grouping(_RECIPE, None), path_text)
    taken = {file.path for item in found.items for file in item.files}
    closed = [Reject(path_text(path), reason) for path, reason in walked.closed]
    earlier = [Reject(path_text(place), "results of an earlier call") for place in results]
    left = sorted([*found.rejects, *closed, *earlier], key=lambda reject: reject.path)
    return [folder / file.path for file in files if file.path in taken], left


def _place(path: str) -> str:
    """The folder of a file, below the folder that is walked."""
    return path.rpartition("/")[0]
