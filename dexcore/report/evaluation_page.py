"""The evaluation page: models on tasks, one HTML file that carries its pictures, made from numbers alone."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from dexcore.measures.bootstrap import Estimate
from dexcore.report.evaluation_cases import Case, case_strips
from dexcore.report.evaluation_pictures import (
    ModelRow,
    confusion_picture,
    forest_picture,
    reliability_picture,
    routes_by_task_picture,
    routes_picture,
    shots_picture,
)
from dexcore.report.html import document, figure, folded, mapping, scrolled, table

_MOST_DETAILS = 6  # models a task whose classes are shown: a page of a few MB


@dataclass(frozen=True, eq=False)
class Detail:
    """One model on one task.

    Attributes:
        model: as in the table.
        about: which of its trainings, and where it lies.
        numbers: every number of the task, by name; those that only stand beside the others are marked in the name.
        per_class: the same of each class alone.
        counts: of each class, how many cases or items there are of each kind.
        confusion_cc: counts [label, prediction]; None where there is none.
        reliability: items, confidence and share that is right, of each bin; empty where there is none.
        cases: to look at.
        masks: the classes of the cases' masks.
        without: why there are no cases; "" where there are.
        made: what was chosen, and what all was made by, in words.
    """

    model: str
    about: str
    numbers: Mapping[str, Estimate]
    per_class: Mapping[str, Mapping[str, Estimate]]
    counts: Mapping[str, Mapping[str, int]]
    confusion_cc: np.ndarray | None
    reliability: Sequence[tuple[int, float, float]]
    cases: Sequence[Case]
    masks: Sequence[str]
    without: str
    made: Mapping[str, object]


@dataclass(frozen=True, eq=False)
class SettingNumbers:
    """Few-shot and retrieval numbers of a task.

    Attributes:
        shots: by classifier, model and number of images a class.
        shots_metric: what they are.
        retrieval: by model.
        chance: what a random order comes near to in retrieval.
        layer: of the features.
    """

    shots: Mapping[str, Mapping[str, Mapping[int, Estimate]]]
    shots_metric: str
    retrieval: Mapping[str, Estimate]
    chance: float
    layer: str


@dataclass(frozen=True, eq=False)
class TaskPart:
    """All that is told of a task.

    Attributes:
        name, kind, metric: of the task; ``metric`` is "" where no scores are there but few-shot's.
        lower_is_better: of the metric.
        against: the model that all are compared with.
        about: what it is, in words.
        models: the best one first.
        details: of the models that are shown closer, the best one first.
        routes: mean gates [layers, experts] and test images, by features.
        settings: few-shot and retrieval; None without any.
        flags: what a reader must know, in short.
        flags_in_full: the same with all numbers, each flag with the models that it is of.
    """

    name: str
    kind: str
    metric: str
    lower_is_better: bool
    against: str
    about: str
    models: Sequence[ModelRow]
    details: Sequence[Detail]
    routes: Mapping[str, tuple[np.ndarray, int]]
    settings: SettingNumbers | None
    flags: Sequence[str]
    flags_in_full: Sequence[str]


@dataclass(frozen=True, eq=False)
class AcrossRow:
    """A model over all tasks: mean, the same for other tasks, mean rank, and wins, ties and losses."""

    model: str
    mean: Estimate | None
    other_tasks: Estimate | None
    rank: float | None
    outcomes: tuple[int, int, int] | None


@dataclass(frozen=True, eq=False)
class AcrossPart:
    """Models over several tasks.

    Attributes:
        name: of the tasks.
        against: the model that all are compared with.
        rows: a model each.
        flags: of the means.
    """

    name: str
    against: str
    rows: Sequence[AcrossRow]
    flags: Sequence[str]


@dataclass(frozen=True, eq=False)
class EvaluationPage:
    """What the page is made from.

    Attributes:
        title: of the page.
        across: over the tasks.
        tasks: one by one.
        published: what was published, with its mark; never beside our numbers.
        made: command and versions of the page.
    """

    title: str
    across: Sequence[AcrossPart]
    tasks: Sequence[TaskPart]
    published: str
    made: Mapping[str, str]

    def html(self) -> str:
        """The whole page."""
        several = len(self.tasks) > 1
        parts = [(f"task-{number}", task.name) for number, task in enumerate(self.tasks)]
        links = [*([("across", "Over all tasks")] if several else []), *parts, ("made", "How it was made")]
        body = [
            f"<h1>{escape(self.title)}</h1>",
            f'<p class="quiet">{escape(self._standing())}</p>',
            '<p class="headline">Read intervals, not dots: a difference counts where its own interval, over the same '
            "cases, excludes 0. What a model does not beat among the gray baselines it did not learn.</p>",
            '<p class="quiet">95 % intervals: of one training a model over cases alone, percentiles of draws; of '
            "several trainings over seeds and cases, Student's t.</p>",
            "<nav>" + "".join(f'<a href="#{name}">{escape(text)}</a>' for name, text in links) + "</nav>",
        ]
        if several:
            body += ['<h2 id="across">Over all tasks</h2>', *self._across()]
        for (name, _), task in zip(parts, self.tasks, strict=True):
            body += [f'<h2 id="{name}">{escape(task.name)}</h2>', *_task(task)]
        body += ['<h2 id="made">How it was made</h2>', *(mapping(name, value) for name, value in self.made.items())]
        body += ["<h3>Published averages</h3>", f'<p class="warning">{escape(self.published)}</p>']
        if any(detail.cases for task in self.tasks for detail in task.details):
            body.append(
                '<p class="quiet">This page shows images of the tasks: give it to nobody who may not see them.</p>'
            )
        return document(self.title, body)

    def _standing(self) -> str:
        models = len({row.name for task in self.tasks for row in task.models})
        baselines = len({row.name for task in self.tasks for row in task.models if row.baseline})
        return f"{_counted(len(self.tasks), 'task')}, {_counted(models, 'model')}, {baselines} of them baselines."

    def _across(self) -> Iterator[str]:
        if self.across:
            yield (
                "<p>The mean over the tasks that all models have done, with its interval over cases and seeds; under "
                "other tasks the interval is of tasks too: what others of their kind would do. Rank 1 is the best.</p>"
            )
        for part in self.across:
            yield f"<h3>{escape(part.name)}</h3>"
            yield f'<p class="quiet">Wins, ties and losses are against {escape(part.against)}, a task each.</p>'
            yield scrolled(
                table(("model", "mean", "rank", "win / tie\n/ loss", "other tasks"), map(_across_cells, part.rows))
            )
            yield from _flags(part.flags)
        routed: dict[str, dict[str, np.ndarray]] = {}
        for task in self.tasks:
            for features, (gates, _) in task.routes.items():
                routed.setdefault(features, {})[task.name] = gates
        for features, gates_of in routed.items():
            if len(gates_of) > 1 and len({gates.shape for gates in gates_of.values()}) == 1:
                yield figure(routes_by_task_picture(gates_of, features))


def _across_cells(row: AcrossRow) -> tuple[str, ...]:
    return (
        row.model,
        _cell(row.mean),
        "–" if row.rank is None else f"{row.rank:.2f}",
        "–" if row.outcomes is None else " / ".join(map(str, row.outcomes)),
        _cell(row.other_tasks),
    )


def _task(task: TaskPart) -> Iterator[str]:
    yield f'<p class="quiet">{escape(task.about)}</p>'
    yield from _flags(task.flags)
    if task.flags_in_full:
        yield folded("Flags in full", (f"<p>{escape(flag)}</p>" for flag in task.flags_in_full))
    if task.models:
        yield figure(forest_picture(task.models, task.metric, task.against, task.lower_is_better))
    if task.settings is not None:
        yield from _settings(task.settings)
    for number, detail in enumerate(task.details[:_MOST_DETAILS]):
        if number == 0:
            yield f"<h3>In detail: {escape(detail.model)}</h3>"
            yield (
                '<p class="quiet">The best of those that are no baseline, by the number above; '
                f"{escape(detail.about)}. The others are folded away below.</p>"
            )
            yield from _detail(detail)
        else:
            yield folded(
                f"In detail: {detail.model}", [f'<p class="quiet">{escape(detail.about)}.</p>', *_detail(detail)]
            )
    if len(task.details) > _MOST_DETAILS:
        names = ", ".join(detail.model for detail in task.details[_MOST_DETAILS:])
        yield f'<p class="quiet">Without details: {escape(names)}.</p>'
    for features, (gates, images) in task.routes.items():
        yield figure(routes_picture(gates, images, features))


def _flags(flags: Sequence[str]) -> Iterator[str]:
    yield from (f'<p class="warning">{escape(flag)}</p>' for flag in flags)


def _settings(settings: SettingNumbers) -> Iterator[str]:
    if settings.shots:
        yield figure(shots_picture(settings.shots, settings.shots_metric, settings.layer))
    if settings.retrieval:
        yield "<h3>Retrieval</h3>"
        yield (
            '<p class="quiet">Mean average precision of ranking the images of train and val for every test image; '
            f"right is what is of its class. By chance about {settings.chance:.3f}. Features: "
            f"{escape(settings.layer)}, or the only ones.</p>"
        )
        yield table(("model", "mAP"), [(model, _cell(number)) for model, number in settings.retrieval.items()])


def _detail(detail: Detail) -> Iterator[str]:
    yield "<h3>Class by class</h3>"
    yield scrolled(table(*_class_table(detail)))
    if detail.confusion_cc is not None:
        yield figure(confusion_picture(detail.confusion_cc, list(detail.per_class)))
    if detail.reliability and "ece" in detail.numbers:
        yield figure(reliability_picture(detail.reliability, detail.numbers["ece"]))
    if detail.cases:
        yield "<h3>Worst and median cases</h3>"
        yield '<p class="quiet">Chosen by rule, not by hand.</p>'
        yield from case_strips(detail.cases, detail.masks)
    elif detail.without:
        yield f'<p class="quiet">{escape(detail.without)}</p>'
    numbers = [(name.replace("_", " "), _cell(number)) for name, number in detail.numbers.items()]
    yield folded("All numbers", [table(("", "value"), numbers)])
    yield folded("Choice, command, versions, hashes", (mapping(name, value) for name, value in detail.made.items()))


def _class_table(detail: Detail) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    metrics = list(dict.fromkeys(metric for numbers in detail.per_class.values() for metric in numbers))
    rows = [
        (
            name,
            "\n".join(f"{count} {kind}".removesuffix(" items") for kind, count in detail.counts[name].items()),
            *(_cell(numbers.get(metric)) for metric in metrics),
        )
        for name, numbers in detail.per_class.items()
    ]
    head = ("class", "n", *(metric.replace("_", " ") for metric in metrics))
    return head, rows


def _cell(number: Estimate | None) -> str:
    """A number, its interval in a line of its own."""
    if number is None or not np.isfinite(number.value):
        return "–"
    if not np.isfinite(number.low):
        return f"{number.value:.3f}"
    return f"{number.value:.3f}\n{number.low:.2f} to {number.high:.2f}"


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"
