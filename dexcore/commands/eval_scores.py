"""``dexcore eval score``, ``compare``, ``table`` and ``page``: numbers of saved predictions. No model runs.

Heavy imports wait until a command runs.
"""

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any


def add_score_commands(commands: Any) -> None:
    """Add the commands to those of ``dexcore eval``."""
    score = commands.add_parser("score", help="score saved predictions of a task", description=_SCORE)
    score.add_argument("task", type=Path, metavar="TASK", help="the YAML of a task")
    score.add_argument("predictions", type=Path, metavar="PREDICTIONS", help="a .parquet, or a folder with several")
    score.add_argument("--out", type=Path, metavar="DIR", help="write scores.json and scores.npz into this folder")
    score.add_argument("--split", default="test", choices=("train", "val", "test"), help="default: test")
    score.add_argument("--partial", action="store_true", help="leave out cases whose images are not all predicted")
    score.add_argument(
        "--tolerance", type=float, metavar="MM", help="measure outlines too: NSD with this tolerance, and HD95"
    )
    score.set_defaults(run=_score)
    compare = commands.add_parser("compare", help="compare two models on the cases both have", description=_COMPARE)
    for name in ("a", "b"):
        compare.add_argument(name, type=Path, metavar=name.upper(), help="a folder with scores of one model")
    compare.add_argument("--metric", metavar="NAME", help="default: the task's")
    compare.add_argument("--json", action="store_true", help="print JSON")
    compare.set_defaults(run=_compare)
    table = commands.add_parser("table", help="put models on tasks, with means, ranks and wins", description=_TABLE)
    table.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a folder with scores, and those below it")
    table.add_argument("--against", metavar="MODEL", help="the model that the others are compared with")
    table.add_argument(
        "--cluster",
        action="append",
        default=[],
        metavar="TASK,TASK",
        help="tasks of the same images: they count as one",
    )
    table.add_argument(
        "--layer", default="mean", metavar="NAME", help="of few-shot and retrieval: whose numbers (default: mean)"
    )
    table.add_argument("--json", action="store_true", help="print JSON")
    table.set_defaults(run=_table)
    page = commands.add_parser("page", help="one page of models on tasks, to be read anywhere", description=_PAGE)
    page.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a folder with scores, and those below it")
    page.add_argument("--out", type=Path, required=True, metavar="HTML", help="the file to write")
    page.add_argument(
        "--task",
        type=Path,
        action="extend",
        nargs="+",
        default=[],
        metavar="TASK",
        help="the YAML of a task: its worst and median cases are shown as pictures",
    )
    page.add_argument("--against", metavar="MODEL", help="the model that the others are compared with")
    page.add_argument(
        "--cluster",
        action="append",
        default=[],
        metavar="TASK,TASK",
        help="tasks of the same images: they count as one",
    )
    page.set_defaults(run=_page)


_SCORE = (
    "Compute a task's numbers from saved predictions, each with its interval over cases. Refused are predictions of "
    "another state of the task, missing or doubled ones, numbers that are not finite, masks of another shape and "
    "classes that the task does not have."
)
_COMPARE = (
    "Compare A with B: the difference on the cases that both have, its interval, a p-value (Wilcoxon's of one training "
    "a model, Student's of several), and Holm's adjustment over the tasks. A tie unless the interval excludes 0. "
    "Several scores of one task are seeds of one training. Scores of other rows, labels, splits or rules are refused."
)
_TABLE = (
    "A Markdown table: a row a task, a column a model, + and - where the interval of the difference excludes 0; the "
    "mean of these tasks and as other tasks would have it, the mean rank, wins, ties and losses. Few-shot and "
    "retrieval follow, a row a task and a setting."
)

_PAGE = (
    "One HTML file that carries its pictures and asks for nothing: a task's models with intervals and baselines, its "
    "classes, calibration, confusion, routes and flags; with --task its worst and median cases. Probes, fine-tuned "
    "models and what `dexcore eval score` wrote stand side by side."
)


def _score(arguments: argparse.Namespace) -> int:
    from dexcore.evaluate.scores import Predictions, score
    from dexcore.evaluate.tasks import Task

    task, predictions = Task.open(arguments.task), Predictions.load(arguments.predictions)
    scores = score(predictions, task, arguments.split, partial=arguments.partial, tolerance=arguments.tolerance)
    if arguments.out:
        scores.save(arguments.out)
    print("\n".join(scores.lines()))
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    from dexcore.evaluate.probes.kept import load_settings
    from dexcore.evaluate.probes.settings import compare_folders
    from dexcore.evaluate.scores.across import compare_tasks, find_scores, load_scores

    by_setting = not (arguments.metric or arguments.json)
    few = compare_folders(load_settings(arguments.a), load_settings(arguments.b)) if by_setting else []
    if few:
        print("\n".join(few))
        if not all(find_scores(side) for side in (arguments.a, arguments.b)):
            return 0
    found = compare_tasks(load_scores(arguments.a), load_scores(arguments.b), arguments.metric)
    if arguments.json:
        print(json.dumps([one.as_json() for one in found], indent=1))
    else:
        print("\n".join(one.line() for one in found))
    return 0


def _table(arguments: argparse.Namespace) -> int:
    from dexcore.evaluate.probes.kept import load_settings
    from dexcore.evaluate.probes.settings import setting_table
    from dexcore.evaluate.scores.across import find_scores, load_scores, table

    clusters = [cluster.split(",") for cluster in arguments.cluster]
    scores, settings = [], []
    for run in arguments.runs:
        of_run = load_settings(run)
        settings += of_run
        if find_scores(run) or not of_run:  # where there is neither, that is the error
            scores += load_scores(run)
    told, lines = {}, []
    if scores:
        found = table(scores, arguments.against, clusters)
        told, lines = found.as_json(), [*found.lines(), ""]
    if settings:
        by_setting = setting_table(settings, arguments.against, arguments.layer)
        told, lines = {**told, "by_setting": by_setting.as_json()}, [*lines, *by_setting.lines()]
    print(json.dumps(told, indent=1) if arguments.json else "\n".join(lines).rstrip())
    return 0


def _page(arguments: argparse.Namespace) -> int:
    from dexcore.evaluate.page import evaluation_page
    from dexcore.evaluate.tasks import Task
    from dexcore.files import write_whole

    if arguments.out.is_dir():
        raise ValueError(f"--out {arguments.out} is a folder: expected the file to write")
    page = evaluation_page(
        arguments.runs,
        [Task.open(path) for path in arguments.task],
        arguments.against,
        [cluster.split(",") for cluster in arguments.cluster],
        {"command": shlex.join(["dexcore", *sys.argv[1:]])},
    )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(arguments.out, page.html().encode())
    print(f"{arguments.out}: {len(page.tasks)} tasks")
    return 0
