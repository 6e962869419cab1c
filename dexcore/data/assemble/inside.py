"""What an archive holds: the same as a folder, told apart in the same way, one file at a time."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dexcore.data.assemble.discover import ARCHIVES, Inspected, Item, classify, look_into
from dexcore.data.assemble.hand import Hand
from dexcore.data.assemble.options import Settings
from dexcore.data.assemble.reasons import Reject, reason_of
from dexcore.data.assemble.split import Grouping
from dexcore.data.assemble.walk import Found, SourceFiles
from dexcore.data.readers import UnreadableFileError
from dexcore.data.readers.archive import each_member, members
from dexcore.data.sources.recipe import Recipe


def items_inside(
    recipe: Recipe, folder: str, settings: Settings, archive: Item, hand: Hand
) -> Iterator[tuple[Item, list[Path]] | Reject]:
    """The items of an archive, each with files that exist until the next step; and what is none.

    Args:
        recipe: of the source.
        folder: where the source begins, below the folder that is built.
        settings: of the build.
        archive: the archive; its members' paths are its own, ``#``, and their names.
        hand: dropped while the caller is at work.

    Raises:
        UnreadableFileError: the archive is damaged or a bomb: then nothing of it can be relied on.
    """
    [file] = archive.files
    path = Path(settings.root) / file.path
    source = SourceFiles(recipe, folder)
    inspected: dict[str, Inspected] = {}
    for _ in members(path):  # to the end: a damaged archive is known before anything of it is used
        pass
    names: dict[str, str] = {}
    for name, member in each_member(path):
        hand.again()
        place = f"{file.path}#{name.removeprefix('./')}"
        names[place] = name
        if isinstance(member, UnreadableFileError):
            source.files.append(Found(place, 0, 0))
            inspected[place] = Inspected(error=reason_of(member, archive.kind, settings.hash_paths))
        else:
            source.files.append(Found(place, member.stat().st_size, 0))
            inspected[place] = look_into(member)
        if inspected[place].kind in ARCHIVES:
            inspected[place] = Inspected(error="an archive inside an archive")
    found = classify(source, inspected, Grouping(recipe, settings.key), settings.shown)
    yield from found.rejects
    for ending, count in sorted(found.ignored.items()):
        yield Reject(settings.shown(file.path), f"ignored inside an archive: {count} {ending}")
    alone = {names[item.files[0].path]: item for item in found.items if not item.volume}
    for name, member in each_member(path, alone):
        hand.again()
        if isinstance(member, UnreadableFileError):
            shown = settings.shown(f"{file.path}#{name}")
            yield Reject(shown, reason_of(member, archive.kind, settings.hash_paths))
        else:
            yield alone[name], [member]
    for item in found.items:
        if item.volume:
            with tempfile.TemporaryDirectory() as place_for_slices:
                yield item, _slices(path, [names[one.path] for one in item.files], Path(place_for_slices), hand)


def _slices(archive: Path, names: list[str], folder: Path, hand: Hand) -> list[Path]:
    """Take the slices of a volume out of an archive; the names of the files are ours."""
    paths = {name: folder / f"{number}.dcm" for number, name in enumerate(names)}
    for name, member in each_member(archive, paths):
        hand.again()
        if isinstance(member, UnreadableFileError):
            raise member
        shutil.copyfile(member, paths[name])
    return list(paths.values())
