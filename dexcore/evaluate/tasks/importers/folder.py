"""Class folders: SRC/CLASS/..., or SRC/train/CLASS/..., SRC/val/..., SRC/test/...

One mapping of classes for all splits. A hidden folder would become a class of its own, and is refused.
"""

import os
from collections import defaultdict
from pathlib import Path

from dexcore.data.readers.kind import file_kind
from dexcore.evaluate.tasks.importers.options import Imported, Options, case_of, split_word
from dexcore.evaluate.tasks.spec import TaskError
from dexcore.evaluate.tasks.write import write_task


def import_folder(src: Path, out: Path, options: Options) -> Imported:
    """Write the task of class folders.

    Raises:
        TaskError: a hidden folder, a class that train lacks, or one that ``options.classes`` does not name.
    """
    tops = _folders(src)
    splits = {top: split_word(top.name) for top in tops}
    if any(splits.values()) and not all(splits.values()):
        odd = next(top for top, split in splits.items() if not split)
        raise TaskError(f"{odd}: stands beside folders of splits, expected train, val and test alone, or classes alone")
    held: defaultdict[str | None, list[Path]] = defaultdict(list)
    if tops and all(splits.values()):
        for top, split in splits.items():
            held[split] += _folders(top)
    else:
        held[None] = tops
    classes = _classes(held, options.classes, src)
    rows, left = [], []
    for split, folders in held.items():
        for folder in folders:
            for file in _files(folder):
                path = file.relative_to(src).as_posix()
                if file_kind(file) is None:
                    left.append((path, "no kind of image that dexcore reads"))
                    continue
                rows.append({"image": path, "label": folder.name, "split": split, "case": case_of(options.case, path)})
    task = write_task(
        out,
        options.name or src.resolve().name,
        rows,
        root=src,
        modality=options.modality,
        kind=options.kind or "classification",
        classes=list(classes),
        normalization=options.normalization,
        split=options.drawn | {"stratify": "label"} if None in held else "column",
        cases="known" if options.case else "unknown",
    )
    return Imported(task, left)


def _classes(held: dict[str | None, list[Path]], wanted: tuple[str, ...], src: Path) -> tuple[str, ...]:
    names = {folder.name for folders in held.values() for folder in folders}
    if not names:
        raise TaskError(f"{src}: holds no folder of a class, expected {src.name}/CLASS/IMAGE")
    known = set(wanted) or {folder.name for folder in held.get("train") or held.get(None) or []} or names
    for folders in held.values():
        for folder in folders:
            if folder.name not in known:
                of = "--classes" if wanted else "train"
                raise TaskError(f"{folder}: is no class of {of}, expected one of {', '.join(sorted(known))}")
    return wanted or tuple(sorted(known))


def _folders(folder: Path) -> list[Path]:
    try:
        found = sorted(entry for entry in folder.iterdir() if entry.is_dir())
    except OSError as error:
        raise TaskError(f"{folder}: {error.strerror}, expected a folder of class folders") from error
    for entry in found:
        _check_hidden(entry)
    return found


def _files(folder: Path) -> list[Path]:
    files = []
    for place, folders, names in os.walk(folder):
        for name in folders:
            _check_hidden(Path(place, name))
        files += [Path(place, name) for name in names if not name.startswith(".")]
    return sorted(files)


def _check_hidden(folder: Path) -> None:
    if folder.name.startswith((".", "__")):
        raise TaskError(f"{folder}: is a hidden folder, and would be taken for a class: remove it")
