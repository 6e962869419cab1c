"""Folders of scores, read and put together as the page's numbers."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from dexcore.evaluate.page.cases import mask_classes, shown_cases
from dexcore.evaluate.probes.kept import load_settings
from dexcore.evaluate.probes.retrieval import Retrieval
from dexcore.evaluate.probes.settings import BySetting, SettingTable, setting_table
from dexcore.evaluate.scores import Scores
from dexcore.evaluate.scores.across import PUBLISHED, Table, TaskRow, find_scores, table
from dexcore.evaluate.scores.baselines import HISTOGRAM, is_baseline
from dexcore.evaluate.scores.compare import ComparisonError
from dexcore.evaluate.scores.flags import Flagged, flags_of_task
from dexcore.evaluate.scores.score import LOWER_IS_BETTER, SECONDARY
from dexcore.evaluate.tasks import Task
from dexcore.measures.bootstrap import DRAWS
from dexcore.report.evaluation_cases import Case
from dexcore.report.evaluation_page import AcrossPart, AcrossRow, Detail, EvaluationPage, SettingNumbers, TaskPart
from dexcore.report.evaluation_pictures import ModelRow

LAYER = "mean"  # of few-shot and retrieval: every model has it, or no other


@dataclass(frozen=True, eq=False)
class _Found:
    """Scores, the folder that they lie in, and how the page calls it."""

    folder: Path
    scores: Scores
    place: str


def evaluation_page(
    runs: Sequence[str | os.PathLike[str]],
    tasks: Sequence[Task] = (),
    against: str | None = None,
    clusters: Sequence[Sequence[str]] = (),
    made: Mapping[str, str] | None = None,
    draws: int = DRAWS,
) -> EvaluationPage:
    """Put what lies in folders on one page: probes, fine-tuned models, and whatever `score` wrote.

    Args:
        runs: folders with scores, and those below them.
        tasks: whose images are shown; the others' cases are not.
        against, clusters: as of `table`.
        made: what the page was made by, beside the versions.
        draws: resamples of the comparisons.

    Raises:
        FileNotFoundError: there are no scores.
        ComparisonError: as of `table`; or a task that is given is in no folder, or in another state.
        PredictionsError, TaskError: images or masks cannot be read.
    """
    found = [_found(Path(run), file) for run in runs for file in find_scores(run)]
    settings = [one for run in runs for one in load_settings(run)]
    if not found and not settings:
        raise FileNotFoundError(f"{', '.join(map(str, runs))}: no scores, which `dexcore eval probe` and `score` write")
    known = {one.scores.task: one.scores.fingerprint for one in found}
    known |= {one.task: one.fingerprint for one in settings if one.task not in known}
    _check_tasks(tasks, known)
    if unknown := {task for cluster in clusters for task in cluster} - known.keys():
        raise ComparisonError(f"clusters: no task {min(unknown)!r}, expected of {', '.join(known)}")
    by_setting = setting_table(settings, _features_of(against, settings), LAYER) if settings else None
    opened = {task.name: task for task in tasks}
    tables = _tables([one.scores for one in found], against, clusters, draws)
    parts = []
    for name in dict.fromkeys([*(one.scores.task for one in found), *known]):
        of_task = [one for one in found if one.scores.task == name]
        of_settings = [one for one in settings if one.task == name]
        row = next(((row, of) for of in tables.values() for row in of.rows if row.task == name), None)
        parts.append(_part(name, row, of_task, of_settings, by_setting, opened.get(name)))
    return EvaluationPage(
        title="Evaluation" if len(parts) > 1 else f"Evaluation: {parts[0].name}",
        across=_across([one.scores for one in found], tables, against, clusters, draws),
        tasks=parts,
        published=PUBLISHED,
        made={**(made or {}), "versions": _versions()},
    )


def _tables(
    scores: Sequence[Scores], against: str | None, clusters: Sequence[Sequence[str]], draws: int
) -> dict[str, Table]:
    """A table of the tasks with labels and one of those with masks: probes of one have no numbers of the other."""
    of_kinds: dict[str, list[Scores]] = {}
    for one in scores:
        of_kinds.setdefault("Segmentation" if "segmentation" in one.kind else "Classification", []).append(one)
    tables = {}
    for kind, own in of_kinds.items():
        beside = against if any(one.model == against for one in own) else _usual(own)
        tables[kind] = table(own, beside, _of(clusters, own), draws)
    if against is not None and scores and all(against not in of.models for of in tables.values()):
        models = ", ".join(dict.fromkeys(one.model for one in scores))
        raise ComparisonError(f"against: no model {against!r}, expected one of {models}")
    return tables


def _across(
    scores: Sequence[Scores],
    tables: Mapping[str, Table],
    against: str | None,
    clusters: Sequence[Sequence[str]],
    draws: int,
) -> list[AcrossPart]:
    """The tables with several tasks; that of all tasks goes first, where models have done all."""
    parts = {kind: of for kind, of in tables.items() if len(of.rows) > 1}
    if len(tables) > 1:
        models = set.intersection(*(set(of.models) for of in tables.values()))
        everywhere = [one for one in scores if one.model in models]
        if not all(map(is_baseline, models)):
            beside = against if against in models else _usual(everywhere)
            parts = {"All tasks": table(everywhere, beside, _of(clusters, everywhere), draws), **parts}
    return [AcrossPart(name, of.against, _across_rows(of), of.flags_of_means) for name, of in parts.items()]


def _of(clusters: Sequence[Sequence[str]], scores: Sequence[Scores]) -> list[Sequence[str]]:
    """The clusters whose tasks are all there."""
    tasks = {one.task for one in scores}
    return [cluster for cluster in clusters if tasks.issuperset(cluster)]


def _found(run: Path, file: Path) -> _Found:
    inside = file.parent.relative_to(run) if run.is_dir() else Path()
    return _Found(file.parent, Scores.load(file), (Path(run.resolve().name) / inside).as_posix())


def _usual(scores: Sequence[Scores]) -> str | None:
    """The baseline that models are compared with: a histogram's, of most tasks; None without any: the first model."""
    tasks: dict[str, set[str]] = {}
    for one in scores:
        if is_baseline(one.model):
            tasks.setdefault(one.model, set()).add(one.task)
    return max(
        tasks, key=lambda model: (model.startswith(HISTOGRAM), len(tasks[model]), "linear" in model), default=None
    )


def _features_of(against: str | None, settings: Sequence[Any]) -> str | None:
    """The model that few-shot is compared with: none where the one that was asked for has no such numbers."""
    models = {one.model for one in settings}
    return against if against and any(f"{against} ".startswith(f"{model} ") for model in models) else None


def _check_tasks(tasks: Sequence[Task], fingerprints: Mapping[str, str]) -> None:
    for task in tasks:
        if task.name not in fingerprints:
            known = ", ".join(fingerprints) or "none"
            raise ComparisonError(f"task {task.name}: is in none of the folders, which hold {known}")
        if task.fingerprint != fingerprints[task.name]:
            raise ComparisonError(
                f"task {task.name}: the scores are of another state of it: fingerprint "
                f"{fingerprints[task.name][:12]}, the task's is {task.fingerprint[:12]}"
            )


def _across_rows(whole: Table) -> list[AcrossRow]:
    order = sorted(whole.models, key=lambda model: whole.rank.get(model, 0.0))
    return [
        AcrossRow(
            model,
            whole.mean.get(model),
            whole.mean_of_other_tasks.get(model),
            whole.rank.get(model),
            None if model == whole.against else whole.outcomes(model),
        )
        for model in order
    ]


def _part(
    name: str,
    row_of: tuple[TaskRow, Table] | None,
    found: Sequence[_Found],
    of_settings: Sequence[BySetting],
    by_setting: SettingTable | None,
    task: Task | None,
) -> TaskPart:
    settings = _settings(of_settings, by_setting)
    scores = [one.scores for one in found]
    flags = _in_short(scores)
    if scores and not any(is_baseline(one.model) for one in scores):
        flags.append("no baseline stands beside these models: what they must beat is not known")
    said = row_of[0].said if row_of else ()
    flags += [flag for of_seeds_or_pairs in said for flag in _in_short(of_seeds_or_pairs)]
    flags += [f"few-shot, retrieval: {flag}" for flag in _in_short(of_settings) if flag not in flags]
    of_table = by_setting.flags if by_setting and of_settings else ()
    known = flags_of_task(name, of_settings)
    flags += [flag.removeprefix(f"{name}: ") for flag in of_table if flag.startswith(f"{name}: ") and flag not in known]
    in_full = list(dict.fromkeys(flag for every in (scores, *said, of_settings) for flag in flags_of_task("", every)))
    if row_of is None:
        return TaskPart(name, "", "", False, "", "Few-shot and retrieval alone.", (), (), {}, settings, flags, in_full)
    row, of = row_of
    first = found[0].scores
    lower = row.metric in LOWER_IS_BETTER
    rows = sorted(
        (_model_row(row, model, found) for model in of.models if model in row.numbers),
        key=lambda one: (one.rank is None, one.number.value if lower else -one.number.value),
    )
    shown = [one for one in rows if not one.baseline] or rows
    details: list[Detail] = []
    for one in shown:
        of_model = sorted((x for x in found if x.scores.model == one.name), key=lambda x: x.scores.seed or 0)
        details.append(_detail(of_model, task, with_cases=not details))
    return TaskPart(
        name=name,
        kind=first.kind,
        metric=row.metric,
        lower_is_better=lower,
        against=of.against,
        about=f"{first.kind.replace('_', ' ')}, split {first.split}: {row.cases} cases that all models have; the "
        f"number is {row.metric.replace('_', ' ')}; task {first.fingerprint[:12]}.",
        models=rows,
        details=details,
        routes=_routes(found),
        settings=settings,
        flags=flags,
        flags_in_full=in_full,
    )


def _in_short(found: Sequence[Flagged]) -> list[str]:
    """A flag that all have as it is; of others what goes before the colon, and the models."""
    models = {one.model for one in found}
    by: dict[str, dict[str, set[str]]] = {}
    for one in found:
        for flag in one.flags:
            by.setdefault(flag.partition(":")[0], {}).setdefault(flag, set()).add(one.model)
    told = []
    for head, flags in by.items():
        if len(flags) == 1 and set.union(*flags.values()) == models:
            told += list(flags)
        else:
            told.append(f"{head}: {', '.join(sorted(set.union(*flags.values())))}")
    return told


def _model_row(row: TaskRow, model: str, found: Sequence[_Found]) -> ModelRow:
    better = {"a": "+", "b": "-", "tie": ""}[row.against[model].verdict] if model in row.against else ""
    seeds = sum(one.scores.model == model for one in found)
    return ModelRow(model, row.numbers[model], is_baseline(model), better, row.ranks.get(model), seeds)


def _detail(of_model: Sequence[_Found], task: Task | None, with_cases: bool) -> Detail:
    first = of_model[0]
    scores, told = first.scores, first.scores.as_json()
    cases: list[Case] = []
    without = ""
    if with_cases and task is None:
        without = "No pictures of cases: give the task (--task) to see them."
    elif with_cases and task is not None:
        cases, without = shown_cases(scores, task, first.folder)
    bins = [(one["items"], one["confidence"], one["right"]) for one in told.get("reliability", ())]
    several = f"the first of {len(of_model)} trainings, seed {scores.seed}; " if len(of_model) > 1 else ""
    return Detail(
        model=scores.model,
        about=f"{several}in {first.place}",
        numbers={name + (" (secondary)" if name in SECONDARY else ""): one for name, one in scores.numbers.items()},
        per_class=scores.per_class,
        counts=scores.cases_of_class,
        confusion_cc=np.array(told["confusion"]) if "confusion" in told else None,
        reliability=bins,
        cases=cases,
        masks=mask_classes(task) if task else (),
        without=without,
        made=_made(first),
    )


def _made(found: _Found) -> dict[str, object]:
    """What was chosen, and what the numbers were made by: what lies beside them."""
    choice, made, kept, tuned = (
        _read(found.folder / f"{name}.json") for name in ("choice", "made", "probe", "finetune")
    )
    told: dict[str, object] = {}
    for words, values in (("chosen", choice), ("trained", tuned)):
        plain = {
            name: float(f"{value:.4g}") if isinstance(value, float) else value
            for name, value in values.items()
            if isinstance(value, str | int | float)
        }
        told |= {words: plain} if plain else {}
    for name in ("command", "time"):
        told |= {name: str(made[name])} if made.get(name) else {}
    told |= {"versions": _joined(made["versions"])} if isinstance(made.get("versions"), dict) else {}
    told["task"] = found.scores.fingerprint
    for name, words in (("key", "features"), ("features", "features' numbers"), ("protocol", "protocol")):
        told |= {words: str(kept[name])} if kept.get(name) else {}
    return told


def _routes(found: Sequence[_Found]) -> dict[str, tuple[np.ndarray, int]]:
    """Mean gates by features, where they lie beside the scores; models of the same features have the same."""
    routes: dict[str, tuple[np.ndarray, int]] = {}
    for one in found:
        said = _read(one.folder / "routes.json")
        features = str(_read(one.folder / "probe.json").get("model") or one.scores.model)
        gates = np.array(said.get("gates", ()), dtype=float)
        if gates.ndim == 2 and gates.size and features not in routes and not is_baseline(features):
            routes[features] = gates, int(said["images"])
    return routes


def _settings(found: Sequence[BySetting], by_setting: SettingTable | None) -> SettingNumbers | None:
    if not found or by_setting is None:
        return None
    rows = [row for row in by_setting.rows if row.task == found[0].task]
    shots: dict[str, dict[str, dict[int, Any]]] = {}
    retrieval: dict[str, Any] = {}
    metric = ""
    for row in rows:
        for model, number in row.numbers.items():
            if row.parts:
                count, method = row.parts
                metric = row.metric
                shots.setdefault(method, {}).setdefault(model, {})[int(count)] = number
            else:
                retrieval[model] = number
    chance = next((one.chance for one in found if isinstance(one, Retrieval)), np.nan)
    return SettingNumbers(shots, metric, retrieval, chance, by_setting.layer)


def _read(path: Path) -> dict[str, Any]:
    """JSON that lies beside the scores; {} where it is missing or damaged, or something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _versions() -> str:
    found = {}
    for package in ("dexcore", "numpy", "scipy", "matplotlib"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return _joined(found)


def _joined(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
