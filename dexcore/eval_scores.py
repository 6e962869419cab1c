"""``dexcore eval score``, ``compare`` and ``table``: numbers of saved predictions. No model runs.

Heavy imports wait until a command runs.
"""

import argparse
import json
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
        "--cluster", action="append", default=[], metavar="TASK,TASK", help="tasks of the same images: drawn as one"
    )
    table.add_argument("--json", action="store_true", help="print JSON")
    table.set_defaults(run=_table)


_SCORE = (
    "Compute a task's numbers from saved predictions, each with its interval over cases. Refused are predictions of "
    "another state of the task, missing or doubled ones, numbers that are not finite, masks of another shape and "
    "classes that the task does not have."
)
_COMPARE = (
    "Compare A with B: the difference on the cases that both have, its interval, Wilcoxon's test, and Holm's "
    "adjustment over the tasks. A tie unless the interval excludes 0. Several scores of one task are seeds of one "
    "training. Scores of other rows, labels, splits or rules are refused."
)
_TABLE = (
    "A Markdown table: a row a task, a column a model, + and - where the interval of the difference excludes 0; the "
    "mean with the tasks as they are and drawn, the mean rank, wins, ties and losses."
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
    from dexcore.evaluate.probes.fewshot import compare_few_shot_folders
    from dexcore.evaluate.scores.across import compare_tasks, load_scores

    few = [] if arguments.metric or arguments.json else compare_few_shot_folders(arguments.a, arguments.b)
    if few:
        print("\n".join(few))
        if not all(any(side.rglob("scores.npz")) for side in (arguments.a, arguments.b)):
            return 0
    found = compare_tasks(load_scores(arguments.a), load_scores(arguments.b), arguments.metric)
    if arguments.json:
        print(json.dumps([one.as_json() for one in found], indent=1))
    else:
        print("\n".join(one.line() for one in found))
    return 0


def _table(arguments: argparse.Namespace) -> int:
    from dexcore.evaluate.scores.across import load_scores, table

    scores = [one for run in arguments.runs for one in load_scores(run)]
    clusters = [cluster.split(",") for cluster in arguments.cluster]
    found = table(scores, arguments.against, clusters)
    print(json.dumps(found.as_json(), indent=1) if arguments.json else "\n".join(found.lines()))
    return 0
