"""A task's two files, as importers leave them: the table first, the YAML, which names it, last."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dexcore.evaluate.tasks.spec import TaskError
from dexcore.evaluate.tasks.table import write_table
from dexcore.evaluate.tasks.task import Task
from dexcore.extras import require
from dexcore.files import write_whole


def write_task(
    out: str | os.PathLike[str],
    name: str,
    rows: Sequence[Mapping[str, Any]] | None,
    *,
    root: Path | None = None,
    **keys: Any,
) -> Task:
    """Write ``OUT/NAME.yaml`` and ``OUT/NAME.csv``, and open the task.

    Args:
        out: the folder; made if it is not there.
        name: of the task.
        rows: of the table, with the columns that any of them has a value in; None: ``table`` in ``keys`` names one that
            lies there already.
        root: where the images' paths begin; None: at ``out``.
        keys: of the YAML; those that are None are left out.

    Raises:
        TaskError: there is no row, the YAML or the table is there already, or the task is not sound.
        OSError: a file cannot be written.
    """
    out = Path(out)
    if rows is not None and not rows:
        raise TaskError(f"task {name}: no image was found")
    path = free(out, name)
    out.mkdir(parents=True, exist_ok=True)
    table = keys.pop("table", path.with_suffix(".csv").name)
    said = {"name": name, "table": table} | ({"root": str(root.resolve())} if root is not None else {})
    said |= {key: value for key, value in keys.items() if value is not None}
    text = require("yaml", "train").safe_dump(said, sort_keys=False, allow_unicode=True, width=110)
    if rows is not None:
        write_table(out / table, _all_columns(rows))
    write_whole(path, text.encode())
    try:
        return Task.open(path)
    except TaskError:  # what is no task must not stand in the way of the next try
        path.unlink()
        if rows is not None:
            (out / table).unlink()
        raise


def free(out: Path, name: str) -> Path:
    """Where a task's YAML is going to be. Importers that draw masks ask before they touch a file.

    Raises:
        TaskError: it is there already, or a file with the name of its table, which may be a user's.
    """
    path = out / f"{name}.yaml"
    for file in (path, out / f"{name}.csv"):
        if file.exists():
            raise TaskError(f"{file}: is there already, and would be lost: remove it, or choose another name or folder")
    return path


def _all_columns(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The same rows, each with the columns of all; columns without a value in any row go."""
    columns = dict.fromkeys(name for row in rows for name in row)
    held = [name for name in columns if any(row.get(name) not in (None, "") for row in rows)]
    return [{name: row.get(name, "") for name in held} for row in rows]
