"""A table of users' own, CSV or Parquet: columns are renamed, splits brought to our words, classes listed."""

from pathlib import Path

from dexcore.evaluate.tasks.importers.options import Imported, Options, case_of, split_word
from dexcore.evaluate.tasks.spec import SEGMENTATIONS, TaskError
from dexcore.evaluate.tasks.table import MASK, read_table
from dexcore.evaluate.tasks.write import write_task

_OURS = ("image", "label", "mask", "split", "case", "volume", "slice", "spacing_y", "spacing_x", "weight", "modality")


def import_csv(src: Path, out: Path, options: Options) -> Imported:
    """Write the task of a table.

    Raises:
        TaskError: it lacks a column, or a split is of another word.
    """
    table = read_table(src)
    named = {ours: options.columns.get(ours, ours) for ours in _OURS} | {
        column: column for column in table[0][1] if column.startswith(MASK)
    }
    unknown = [ours for ours in options.columns if ours not in _OURS]
    if unknown:
        raise TaskError(f"--column {unknown[0]}: is no column of a task, expected one of {', '.join(_OURS)}")
    for ours, theirs in options.columns.items():
        if theirs not in table[0][1]:
            raise TaskError(
                f"{src}: has no column {theirs} (--column {ours}={theirs}), it has {', '.join(table[0][1])}"
            )
    rows = []
    for line, cells in table:
        row = {ours: cells[theirs] for ours, theirs in named.items() if theirs in cells}
        if row.get("split"):
            split = split_word(row["split"])
            if split is None:
                raise TaskError(f"{src}, line {line}: split is {row['split']!r}, expected train, val or test")
            row["split"] = split
        if options.kind == "multilabel":
            row["label"] = row.get("label", "").replace("|", ";")
        if options.case is not None:
            row["case"] = case_of(options.case, row.get("image", "")) or ""
        rows.append(row)
    kind = options.kind or ("segmentation" if "mask" in rows[0] else "classification")
    task = write_task(
        out,
        options.name or src.stem,
        rows,
        root=options.root or src.parent,
        modality="column" if "modality" in rows[0] else options.modality,
        kind=kind,
        classes=list(options.classes) or _classes(src, rows, kind),
        mask_values=options.mask_values or None,
        normalization=options.normalization,
        units=options.units,
        split="column" if any(row.get("split") for row in rows) else options.drawn,
        cases="known" if any(row.get("case") for row in rows) else "unknown",
    )
    return Imported(task)


def _classes(src: Path, rows: list[dict[str, str]], kind: str) -> list[str]:
    if kind in SEGMENTATIONS:
        raise TaskError(f"{src}: has masks, expected --classes with their names, as --classes background,nerve")
    names = {name.strip() for row in rows for name in row.get("label", "").split(";" if kind == "multilabel" else "\n")}
    numbers = all(name.isdecimal() for name in names)
    return sorted(filter(None, names), key=(lambda name: (int(name), name)) if numbers else None)
