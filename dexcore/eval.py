"""``dexcore eval``: what a model learned, on tasks with labels.

    dexcore eval check TASK...              what would make a task's numbers worthless: exit 2 names it
    dexcore eval import FORMAT SRC --out    folders, tables and volumes of labelled images become a task
    dexcore eval tasks [NAME]               the 26 tasks of the paper: how each must lie, and what is known of it

Heavy imports wait until a command runs.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dexcore.evaluate.tasks import Task

EXIT_REFUSED = 2


def add_eval_commands(parser: argparse.ArgumentParser) -> None:
    """Add the commands to the parser of ``dexcore eval``."""
    commands = parser.add_subparsers(dest="eval", metavar="COMMAND", required=True)
    _add_check(commands.add_parser("check", help="refuse what would make a number worthless", description=_CHECK))


def run_eval(arguments: argparse.Namespace) -> int:
    """Run the command that was parsed; the return value is the process's."""
    from dexcore.data.store import StoreError

    try:
        return arguments.run(arguments)
    except StoreError as error:
        raise ValueError(str(error)) from error  # told in a line, as all that a user can mend
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


_CHECK = (
    "Read a task whole: its YAML, its table, every image, label and mask. Refused are a patient, a volume or a video "
    "in two splits, masks that do not fit their images, labels and mask values that stand for no class, files that "
    "are missing, a split without a class, one test case of a class, the same pixels in two splits and, with --store, "
    "test images that a store holds, exactly or nearly. The exit status is 2 if anything is, 0 if nothing."
)


def _add_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", type=Path, nargs="+", metavar="TASK", help="the YAML of a task")
    parser.add_argument(
        "--store", type=Path, action="append", default=[], metavar="STORE", help="a store that was pre-trained on"
    )
    parser.add_argument(
        "--mark", action="store_true", help="write what --store found into the table, as its column seen"
    )
    parser.set_defaults(run=_check)


def _check(arguments: argparse.Namespace) -> int:
    from dexcore.evaluate.tasks import Task
    from dexcore.evaluate.tasks.check import check_task

    if arguments.mark and not arguments.store:
        raise ValueError("--mark writes what --store found: expected --store STORE beside it")
    refused = False
    for path in arguments.task:
        task = Task.open(path)
        found = check_task(task, arguments.store)
        if arguments.mark:
            task.mark_seen(found.seen)
        for problem in found.problems:
            print(problem, file=sys.stderr)
        for note in found.notes:
            print(f"task {task.name}: {note}")
        refused = refused or bool(found.problems)
        if not found.problems:
            print("\n".join(_told(task)))
    return EXIT_REFUSED if refused else 0


def _told(task: "Task") -> list[str]:
    counts = ", ".join(
        f"{split} {len(rows)} images of {len({row.case for row in rows})} cases"
        for split in ("train", "val", "test")
        if (rows := task.split(split))
    )
    return [f"task {task.name}: {counts}; fingerprint {task.fingerprint}"]
