"""Several models on several tasks: the table, its mean and mean rank, and who wins.

Axes: t tasks.
"""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dexcore.evaluate.scores.compare import Comparison, ComparisonError, adjusted, check_alike, common_cases, compare
from dexcore.evaluate.scores.flags import flags_of_task
from dexcore.evaluate.scores.score import FILE, Scores
from dexcore.evaluate.scores.seeds import check_seeds
from dexcore.evaluate.scores.trainings import Trainings, estimated, flags_of_mean, mean_over_tasks, seed_flags
from dexcore.measures.bootstrap import DRAWS, Estimate

PUBLISHED = "DEX as published: 78.4, a mean over 26 tasks (other splits, other code; not comparable)"


class Said(NamedTuple):
    """What is to be known of a model's number.

    Attributes:
        model: its name.
        flags: what a reader must know.
    """

    model: str
    flags: tuple[str, ...]


@dataclass(frozen=True)
class TaskRow:
    """One task of a table.

    Attributes:
        task, metric: what was measured.
        cases: that all models have.
        numbers: by model, over its seeds; a model that did not do the task is absent.
        ranks: by model; 1 is the best, equal ones share theirs; a model whose number is not defined has none.
        against: by model, its comparison with the one that all are compared with.
        said: of each model's seeds; and of each comparison, but for what the scores or the seeds say themselves.
    """

    task: str
    metric: str
    cases: int
    numbers: Mapping[str, Estimate]
    ranks: Mapping[str, float]
    against: Mapping[str, Comparison]
    said: tuple[tuple[Said, ...], tuple[Said, ...]]


@dataclass(frozen=True)
class Table:
    """Models on tasks.

    Attributes:
        models: their names.
        against: the model that the others are compared with.
        rows: the tasks.
        mean: by model, over the tasks that all have done and where the number of each is defined; its interval is of
            cases and seeds, the tasks are these.
        mean_of_other_tasks: the same, its interval of tasks too: what others of their kind would do.
        rank: by model, the mean over the same tasks.
        flags: what a reader must know.
        flags_of_means: those of them that are about the means.
    """

    models: tuple[str, ...]
    against: str
    rows: tuple[TaskRow, ...]
    mean: Mapping[str, Estimate]
    mean_of_other_tasks: Mapping[str, Estimate]
    rank: Mapping[str, float]
    flags: tuple[str, ...]
    flags_of_means: tuple[str, ...]

    def outcomes(self, model: str) -> tuple[int, int, int]:
        """Wins, ties and losses of a model against the one that all are compared with."""
        verdicts = [row.against[model].verdict for row in self.rows if model in row.against]
        return verdicts.count("a"), verdicts.count("tie"), verdicts.count("b")

    def lines(self) -> list[str]:
        """The table in Markdown."""
        head = ["task", "metric", "cases", *self.models]
        body = [
            [row.task, row.metric, str(row.cases), *(_cell(row, model) for model in self.models)] for row in self.rows
        ]
        body.append(["mean", "", "", *(str(self.mean[model]) if self.mean else "" for model in self.models)])
        others = self.mean_of_other_tasks
        body.append(["mean, other tasks", "", "", *(str(others[m]) if others else "" for m in self.models)])
        body.append(["mean rank", "", "", *(f"{self.rank[m]:.2f}" if self.rank else "" for m in self.models)])
        told = [" / ".join(map(str, self.outcomes(model))) if model != self.against else "" for model in self.models]
        body.append([f"win / tie / loss against {self.against}", "", "", *told])
        rows = [head, ["---"] * len(head), *body]
        notes = [f"- {flag}" for flag in (*self.flags, PUBLISHED)]
        return [*(f"| {' | '.join(cells)} |" for cells in rows), "", *notes]

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return {
            "models": list(self.models),
            "against": self.against,
            "tasks": [
                {
                    **{name: getattr(row, name) for name in ("task", "metric", "cases")},
                    "numbers": _plain(row.numbers),
                    "ranks": dict(row.ranks),
                    "against": {model: one.as_json() for model, one in row.against.items()},
                }
                for row in self.rows
            ],
            "mean": _plain(self.mean),
            "mean_of_other_tasks": _plain(self.mean_of_other_tasks),
            "rank": dict(self.rank),
            "flags": list(self.flags),
            "published": PUBLISHED,
        }


def _plain(numbers: Mapping[str, Estimate]) -> dict[str, Any]:
    return {model: number.as_json() for model, number in numbers.items()}


def _cell(row: TaskRow, model: str) -> str:
    if model not in row.numbers:
        return "-"
    mark = {"a": " +", "b": " -", "tie": ""}[row.against[model].verdict] if model in row.against else ""
    return f"{row.numbers[model]}{mark}"


def table(
    scores: Sequence[Scores],
    against: str | None = None,
    clusters: Sequence[Sequence[str]] = (),
    draws: int = DRAWS,
    seed: int = 0,
) -> Table:
    """Put models on tasks; scores with the same task and model are seeds of one training.

    Args:
        scores: of several models.
        against: the model that the others are compared with; default: the first.
        clusters: tasks of the same images: they count as one where others are thought of, and their cases move them
            together.

    Raises:
        ComparisonError: scores of a task are of several states of it, a model's seeds are not apart, or there is no
            such model or task.
        MissingExtraError: SciPy is not installed.
    """
    if not scores:
        raise ComparisonError("table: there are no scores")
    by_task: dict[str, dict[str, list[Scores]]] = {}
    for one in scores:
        by_task.setdefault(one.task, {}).setdefault(one.model, []).append(one)
    models = tuple(dict.fromkeys(one.model for one in scores))
    against = models[0] if against is None else against
    if against not in models:
        raise ComparisonError(f"against: no model {against!r}, expected one of {', '.join(models)}")
    rows, trained = [], {}
    for number, (task, of_models) in enumerate(by_task.items()):
        row, trained[task] = _row(task, of_models, against, draws, seed + number)
        rows.append(row)
    rows = _adjusted(rows)
    whole = [row for row in rows if len(row.ranks) == len(models)]
    flags = [flag for row in rows for flag in flags_of_task(row.task, [one for one in scores if one.task == row.task])]
    mean, others, rank = {}, {}, {}
    flags_of_means = list(_flags_of_means(rows, whole, models))
    cluster_t = _clusters([row.task for row in whole], clusters, by_task)
    for model in models if whole else ():
        of_model = {row.task: trained[row.task][model] for row in whole}
        mean[model], others[model] = mean_over_tasks([*of_model.values()], cluster_t)
        flags_of_means += flags_of_mean(model, of_model)
        rank[model] = float(np.mean([row.ranks[model] for row in whole]))
    flags += _flags_of_rows(rows)
    return Table(models, against, tuple(rows), mean, others, rank, (*flags_of_means, *flags), tuple(flags_of_means))


def _row(
    task: str, of_models: Mapping[str, list[Scores]], against: str, draws: int, seed: int
) -> tuple[TaskRow, dict[str, Trainings]]:
    """A task's row, and each model's trainings: on the same draws of the same cases."""
    every = [one for of_model in of_models.values() for one in of_model]
    metric = every[0].metric
    check_alike(every, metric)
    cases, _ = common_cases(every)
    for of_model in of_models.values():
        if len(of_model) > 1:
            check_seeds(of_model)
    trained = {model: Trainings.of(of_model, cases, metric, draws, seed) for model, of_model in of_models.items()}
    numbers = {model: estimated(one) for model, one in trained.items()}
    compared = {
        model: compare(of_model, of_models[against], draws=draws, seed=seed)
        for model, of_model in of_models.items()
        if model != against and against in of_models
    }
    seeds = tuple(Said(model, tuple(seed_flags(of_model))) for model, of_model in of_models.items())
    heads = {flag.partition(":")[0] for one in every for flag in one.flags}
    pairs = []
    for model, one in compared.items():
        known = seed_flags(of_models[model], of_models[against])
        pairs.append(Said(model, _without([flag for flag in one.flags if flag not in known], heads)))
    return TaskRow(task, metric, len(cases), numbers, _ranks(numbers), compared, (seeds, tuple(pairs))), trained


def _ranks(numbers: Mapping[str, Estimate]) -> dict[str, float]:
    """By model, 1 the best, equal ones in the middle of their places; none of a number that is not defined."""
    value = {model: number.value for model, number in numbers.items() if np.isfinite(number.value)}
    return {
        model: 1 + sum(other > own for other in value.values()) + 0.5 * (sum(o == own for o in value.values()) - 1)
        for model, own in value.items()
    }


def _adjusted(rows: list[TaskRow]) -> list[TaskRow]:
    """Holm's method over the tasks, for each model."""
    by_model: defaultdict[str, list[Comparison]] = defaultdict(list)
    for row in rows:
        for model, one in row.against.items():
            by_model[model].append(one)
    of = {model: {one.task: one for one in adjusted(found)} for model, found in by_model.items()}
    return [replace(row, against={model: of[model][row.task] for model in row.against}) for row in rows]


def _clusters(tasks: list[str], clusters: Sequence[Sequence[str]], known: Mapping[str, Any]) -> list[int]:
    """The number of each task's cluster."""
    cluster_of = {task: task for task in tasks}
    for cluster in clusters:
        for task in cluster:
            if task not in known:
                raise ComparisonError(f"clusters: no task {task!r}, expected of {', '.join(known)}")
            cluster_of[task] = cluster[0]
    names = sorted(set(cluster_of.values()))
    return [names.index(cluster_of[task]) for task in tasks]


def _flags_of_rows(rows: list[TaskRow]) -> list[str]:
    """What is said of seeds and comparisons; once what is said of all tasks."""
    told = [
        [pair for said in row.said for pair in zip(flags_of_task("", said), flags_of_task(row.task, said), strict=True)]
        for row in rows
    ]
    of_all = [flag for flag, _ in told[0] if len(rows) > 1 and all(flag in dict(of_row) for of_row in told)]
    return [*of_all, *(of_task for of_row in told for flag, of_task in of_row if flag not in of_all)]


def _flags_of_means(rows: list[TaskRow], whole: list[TaskRow], models: Sequence[str]) -> tuple[str, ...]:
    flags = []
    if missing := [row.task for row in rows if len(row.numbers) < len(models)]:
        flags.append(f"the means leave out what not all models have done: {', '.join(missing)}")
    for row in rows:
        if undefined := [model for model in row.numbers if model not in row.ranks]:
            flags.append(f"the means leave out {row.task}: {row.metric} is not defined of {', '.join(undefined)}")
    metrics = sorted({row.metric for row in whole})
    if len(metrics) > 1:
        flags.append(f"the mean mixes {' and '.join(metrics)}")
    return tuple(flags)


def find_scores(path: str | os.PathLike[str]) -> list[Path]:
    """The files of all scores in a folder and below it, sorted; the path itself where it is no folder."""
    path = Path(path)
    return sorted(path.rglob(f"{FILE}.npz")) if path.is_dir() else [path]


def load_scores(path: str | os.PathLike[str]) -> list[Scores]:
    """All scores in a folder and below it.

    Raises:
        FileNotFoundError: there are none.
    """
    files = find_scores(path)
    if not files:
        raise FileNotFoundError(f"{path}: holds no {FILE}.npz, which `dexcore eval score` writes")
    return [Scores.load(file) for file in files]


def compare_tasks(a: Sequence[Scores], b: Sequence[Scores], metric: str | None = None) -> list[Comparison]:
    """Compare one model with another on every task that both have, adjusted for all of them; flags of the scores too.

    Raises:
        ComparisonError: they share no task, or a side holds several models.
    """
    sides = []
    for name, scores in (("a", a), ("b", b)):
        models = sorted({one.model for one in scores})
        if len(models) > 1:
            raise ComparisonError(f"{name}: holds several models, {', '.join(models)}; expected one")
        of_task: defaultdict[str, list[Scores]] = defaultdict(list)
        for one in scores:
            of_task[one.task].append(one)
        for found in of_task.values():
            if len(found) > 1:
                check_seeds(found)
        sides.append(of_task)
    common = [task for task in sides[0] if task in sides[1]]
    if not common:
        told = " and ".join(", ".join(side) for side in sides)
        raise ComparisonError(f"compare: no task that both have: {told}")
    return adjusted([_with_own_flags(sides[0][task], sides[1][task], metric) for task in common])


def _with_own_flags(a: list[Scores], b: list[Scores], metric: str | None) -> Comparison:
    """A comparison that says what the scores themselves say too: nobody sees them beside it."""
    found = compare(a, b, metric)
    heads = {flag.partition(":")[0] for flag in found.flags}
    own = flags_of_task("", [replace(one, flags=_without(one.flags, heads)) for one in (*a, *b)])
    return replace(found, flags=(*found.flags, *own))


def _without(flags: Sequence[str], heads: set[str]) -> tuple[str, ...]:
    return tuple(flag for flag in flags if flag.partition(":")[0] not in heads)
