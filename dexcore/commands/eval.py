"""``dexcore eval``: what a model learned, on tasks with labels.

    dexcore eval check TASK...              what would make a task's numbers worthless: exit 2 names it
    dexcore eval import FORMAT SRC --out    folders, tables and volumes of labelled images become a task
    dexcore eval tasks [NAME]               the 26 tasks of the paper: how each must lie, and what is known of it
    dexcore eval features TASK MODEL        a frozen model's features of the images, computed once and kept
    dexcore eval probe TASK MODEL           a frozen model's features: k-NN, linear, few-shot, retrieval, dense
    dexcore eval modules MODEL STORE        whether a model's experts are modules, beside its twins
    dexcore eval finetune TASK MODEL        train a model on a task: the same as dexcore finetune
    dexcore eval predict TASK MODEL         a fine-tuned model on a task's images, another hospital's, say
    dexcore eval score TASK PREDICTIONS     saved predictions become numbers with intervals
    dexcore eval compare A B                two models on the cases that both have
    dexcore eval table RUN...               models on tasks: means, ranks, wins
    dexcore eval page RUN... --out HTML     the same and more on one page, to be read anywhere

Heavy imports wait until a command runs.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from dexcore.commands.eval_features import add_features_command
from dexcore.commands.eval_modules import add_modules_command
from dexcore.commands.eval_predict import add_predict_task_command
from dexcore.commands.eval_probe import add_probe_command
from dexcore.commands.eval_scores import add_score_commands
from dexcore.commands.listing import add_listing

if TYPE_CHECKING:
    from dexcore.evaluate.tasks import Task
    from dexcore.evaluate.tasks.importers.options import Options

EXIT_REFUSED = 2


def add_eval_commands(parser: argparse.ArgumentParser) -> None:
    """Add the commands to the parser of ``dexcore eval``."""
    commands = parser.add_subparsers(dest="eval", metavar="COMMAND", required=True)
    _add_check(commands.add_parser("check", help="refuse what would make a number worthless", description=_CHECK))
    _add_import(commands.add_parser("import", help="write the table of a labelled data set", description=_IMPORT))
    tasks = commands.add_parser("tasks", help="list the paper's 26 tasks, or show one", description=_TASKS)
    add_listing(tasks, "a task", _tasks)
    add_features_command(commands)
    add_probe_command(commands)
    add_modules_command(commands)
    commands.add_parser("finetune", help="the same as `dexcore finetune`: train a model on a task", add_help=False)
    add_predict_task_command(commands)
    add_score_commands(commands)


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
    from dexcore.evaluate.tasks import Task, TaskError
    from dexcore.evaluate.tasks.check import check_task

    if arguments.mark and not arguments.store:
        raise ValueError("--mark writes what --store found: expected --store STORE beside it")
    refused = False
    for path in arguments.task:
        try:
            task = Task.open(path)
        except TaskError as error:
            print(f"error: {error}", file=sys.stderr)
            refused = True
            continue
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


_FORMATS = ("folder", "csv", "medmnist", "nnunet", "nifti", "coco", "synthetic")

_IMPORT = (
    "Write OUT/NAME.yaml and OUT/NAME.csv, the task of a data set with labels; no image is changed. FORMAT is folder "
    "(SRC/CLASS/IMAGE, or SRC/train/CLASS/IMAGE and so on), csv (a table, CSV or Parquet), medmnist (an .npz), nnunet "
    "(imagesTr, labelsTr, dataset.json), nifti (pairs of files, also pictures), coco (JSON), synthetic (SyntheticMVU's "
    "lesions; no SRC), or one of the paper's tasks, as `dexcore eval tasks` lists them. Where no split is known, one "
    "is drawn by case and written into the table."
)


def _add_import(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("format", metavar="FORMAT", help=f"{', '.join(_FORMATS)}, or one of the paper's tasks")
    add("src", type=Path, nargs="?", metavar="SRC", help="the folder or the file")
    add("--out", type=Path, required=True, metavar="DIR", help="the folder of the task")
    add("--name", metavar="NAME", help="of the task (default: that of SRC)")
    add("--modality", metavar="M", help="of the images, as X-ray")
    add("--kind", metavar="KIND", help="classification, multilabel, ordinal or segmentation (default: by format)")
    add("--classes", metavar="A,B", help="their names, by index (default: as the data has them)")
    add("--case", metavar="REGEX", help="over an image's path: its groups are the patient, the volume or the video")
    add("--fractions", metavar="T,V,T", default="0.7,0.1,0.2", help="of train, val and test, where a split is drawn")
    add("--seed", type=int, metavar="N", help="of the split, and of synthetic images (default: 0; synthetic: 1)")
    add("--mask-value", type=_value, action="append", default=[], metavar="V=CLASS", help="of masks, as 255=1 or 1-9=1")
    add("--normalization", metavar="NAME", help="of the images (default: by modality)")
    add("--units", choices=("HU", "SUV"), help="of files that do not say theirs")
    add("--axis", choices=("sagittal", "coronal", "axial"), help="volumes are cut across it (default: as acquired)")
    add("--column", type=_value, action="append", default=[], metavar="OURS=THEIRS", help="csv: as label=diagnosis")
    add("--root", type=Path, metavar="DIR", help="csv, coco: where its paths begin (default: at SRC)")
    add("--channel", type=int, default=0, metavar="N", help="nnunet: the channel that is the image (default: 0)")
    add("--images", metavar="GLOB", help="nifti: the images, as '*_T2w.nii.gz'")
    add("--mask", type=_value, metavar="A=B", help="nifti: the last A in a path becomes B, as images/=labels/")
    add("--count", type=int, default=600, metavar="N", help="synthetic: images (default: 600)")
    add("--size", type=int, default=64, metavar="PX", help="synthetic: side of the images (default: 64)")
    parser.set_defaults(run=_import)


def _value(text: str) -> tuple[str, str]:
    before, sign, after = text.partition("=")
    if not (before and sign and after):
        raise argparse.ArgumentTypeError(f"expected A=B, got {text!r}")
    return before, after


def _import(arguments: argparse.Namespace) -> int:
    for task, left in _imported(arguments):
        for path, reason in left:
            print(f"left out: {path}: {reason}", file=sys.stderr)
        print("\n".join(_told(task)))
        print(f"check it: dexcore eval check {quote(str(task.spec.path))}")
    return 0


def _imported(arguments: argparse.Namespace) -> list[tuple["Task", Sequence[tuple[str, str]]]]:
    """The tasks that were written, and the files that each left out."""
    name, src, out = arguments.format, arguments.src, arguments.out
    if name == "synthetic":
        from dexcore.evaluate.tasks.importers.synthetic import SEED, synthetic_tasks

        seed = SEED if arguments.seed is None else arguments.seed
        tasks = synthetic_tasks(out, arguments.count, arguments.size, seed, fractions=_fractions(arguments.fractions))
        return [(task, ()) for task in tasks]
    if src is None:
        raise ValueError("SRC is missing: expected the folder or the file to import")
    if name not in _FORMATS:
        from dexcore.evaluate.tasks.catalog import downstream_task, layout_of
        from dexcore.evaluate.tasks.make import make_task

        layout = layout_of(downstream_task(name))
        if not layout.take:
            raise ValueError(f"how the files of {name} lie is not known: `dexcore eval tasks {name}` says what is")
        made = make_task(layout, src, out)
        return [(made.task, made.left)]
    if arguments.modality is None:
        raise ValueError("--modality is missing: expected that of the images, as --modality X-ray")
    importer = getattr(import_module(f"dexcore.evaluate.tasks.importers.{_MODULES.get(name, name)}"), f"import_{name}")
    imported = importer(src, out, _options(arguments))
    return [(imported.task, imported.left)]


_MODULES = {"csv": "csv_table"}


def _options(arguments: argparse.Namespace) -> "Options":
    from dexcore.evaluate.tasks.importers.options import Options

    return Options(
        modality=arguments.modality,
        name=arguments.name,
        kind=arguments.kind,
        classes=tuple(name.strip() for name in arguments.classes.split(",")) if arguments.classes else (),
        case=arguments.case,
        fractions=_fractions(arguments.fractions),
        seed=arguments.seed or 0,
        mask_values={key: int(value) if value.isdecimal() else value for key, value in arguments.mask_value},
        normalization=arguments.normalization,
        units=arguments.units,
        axis=arguments.axis,
        columns=dict(arguments.column),
        root=arguments.root,
        channel=arguments.channel,
        images=arguments.images,
        mask=arguments.mask,
    )


def _fractions(text: str) -> tuple[float, float, float]:
    try:
        train, val, test = map(float, text.split(","))
    except ValueError:
        raise ValueError(
            f"--fractions is {text!r}, expected the shares of train, val and test, as 0.7,0.1,0.2"
        ) from None
    return train, val, test


_TASKS = (
    "List the 26 downstream tasks of the paper: modality, kind, images by split, how well the layout of the download "
    "is known. With NAME, show its recipe: how the files must lie, where they are to be had, under which terms, and "
    "what is known of the task's numbers. With --root, say what is found below a folder. Nothing is downloaded."
)


def _tasks(name: str | None, root: Path | None) -> list[str]:
    from dexcore.evaluate.tasks.catalog import task_page, tasks_table

    return task_page(name, root) if name else tasks_table(root)
