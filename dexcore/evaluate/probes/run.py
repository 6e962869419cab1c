"""Probes of a task, written into a folder that ``dexcore eval compare`` and ``table`` read.

OUT/MODEL/PROBE/TASK/(all, draw-N or seed-N); of training N of a model in OUT/training-N, but for baselines
    choice.json              what was chosen, on what, by which numbers: no label of test decides a byte of it
    predictions.parquet      of the test images (dense: and a PNG each, in masks/)
    scores.json, scores.npz  as `dexcore eval score` writes them
    fewshot.json, .npz       in the place of the last three where the probe is few-shot
    retrieval.json, .npz     in their place where it is retrieval
    routes.json              of features with gates: what each expert of each layer received of the test images
    made.json                when, by which command and versions
    probe.json               what all of it was made from; written last: with the same again nothing is computed
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from dexcore.evaluate.embedding import FeaturesError, FeatureTable
from dexcore.evaluate.probes.fewshot import FewShot, few_shot, score_few_shot
from dexcore.evaluate.probes.knn import knn_probe
from dexcore.evaluate.probes.linear import linear_probe
from dexcore.evaluate.probes.retrieval import Retrieval, retrieve
from dexcore.evaluate.probes.settings import not_beaten
from dexcore.evaluate.probes.splits import Layers, Probed
from dexcore.evaluate.scores import Scores, compare, score
from dexcore.evaluate.scores.baselines import MAJORITY, is_baseline
from dexcore.evaluate.scores.flags import NOT_BEATEN
from dexcore.evaluate.tasks import Task
from dexcore.files import write_whole

PROTOCOL = 3  # grows when a probe would choose or predict otherwise
LABELLED, DENSE = ("knn", "linear", "fewshot", "retrieval"), ("dense",)
DRAWN = ("knn", "linear")  # without randomness: training cases are drawn in the place of seeds
FIXED = (*DRAWN, "retrieval")  # without seeds
SCORED = ("knn", "linear", "dense")  # into scores: those of several trainings are taken together
ONE_CLASS = ("fewshot", "retrieval")  # of tasks with one class an image
KEPT = "probe.json"
ROUTES = "routes.json"
MADE = "made.json"
_PACKAGES = ("dexcore", "torch", "timm", "scikit-learn", "scipy", "numpy")


@dataclass(frozen=True)
class Probe:
    """One probe of one model on one task.

    Attributes:
        name: "knn", "linear", "fewshot", "retrieval" or "dense".
        draw: key of the training cases that are drawn; None: all of them.
        seed: of episodes, or of a head.
        training: which of a model's trainings has made the features; None: it was trained once.
    """

    name: str
    draw: int | None = None
    seed: int = 0
    training: int | None = None

    def folder(self, out: Path, model: str, task: str) -> Path:
        """Where it is written: what is of all training cases, of a draw of them and of a seed each has its own."""
        own = f"seed-{self.seed}"
        if self.name in FIXED:
            own = "all" if self.draw is None else f"draw-{self.draw}"
        if self.training is not None and not is_baseline(model):
            out = out / _training(self.training)
        return out / safe(model) / self.name / safe(task) / own

    def model(self, features: str) -> str:
        """The name of what predicts: draws are trainings of one model, which is not that of all training cases."""
        return f"{features} {self.name}" + ("" if self.draw is None else ", drawn")


def probes_of(
    task: Task, names: Sequence[str], draws: int = 0, seeds: int | None = None, training: int | None = None
) -> list[Probe]:
    """The probes that are asked for, in their order.

    Args:
        task: that is probed.
        names: of probes; none: all that suit the task.
        draws: how often training cases are drawn, of k-NN and linear; 0: all of them, once.
        seeds: how many, of few-shot and dense.
        training: of the model, where it was trained several times.

    Raises:
        ValueError: a probe is not for such a task; seeds are asked of probes that have no randomness; or a training
            is told where draws or seeds are the trainings, or of a probe whose numbers are no scores.
    """
    suited = (
        DENSE
        if task.spec.is_segmentation
        else tuple(name for name in LABELLED if name not in ONE_CLASS or task.kind != "multilabel")
    )
    if training is not None:
        if draws or (seeds or 1) > 1:
            raise ValueError(
                "training: scores of a model are apart by its trainings, or by draws and seeds, not by both"
            )
        if training < 0:
            raise ValueError(f"training is {training}, expected 0 or more")
        suited = tuple(name for name in suited if name in SCORED)
    names = list(dict.fromkeys(names or suited))
    for name in names:
        if name not in suited:
            raise ValueError(
                f"task {task.name}: is of kind {task.kind}, the probe {name} is not for it"
                f"{'' if training is None else ' with a training'}: {_list(suited)}"
            )
    if seeds is not None and (fixed := [name for name in names if name in FIXED]):
        raise ValueError(
            f"seeds: the probe {_list(fixed)} has no randomness, every seed gives the same numbers: ask for others "
            "(--probe), or draw training cases instead (--draws; of knn and linear)"
        )
    if draws and not any(name in DRAWN for name in names):
        raise ValueError(f"draws: are for {_list(DRAWN)}; {_list(names)} has seeds")
    found = []
    for name in names:
        if name in DRAWN:
            found += [Probe(name, draw) for draw in range(draws)] or [Probe(name)]
        elif name in FIXED:
            found.append(Probe(name))
        else:
            found += [Probe(name, seed=seed) for seed in range(seeds or 1)]
    return [replace(probe, training=training) for probe in found]


def layers_of(table: FeatureTable, task: Task) -> dict[str, np.ndarray]:
    """The features of a task's images by layer, in the order of its table.

    Raises:
        FeaturesError: an image is not in the table.
    """
    ordered = table.of([row.image for row in task.rows])
    return ({} if ordered.cls is None else {"cls": ordered.cls}) | {"mean": ordered.mean}


def run_probe(
    task: Task,
    table: FeatureTable,
    model: str,
    probe: Probe,
    out: Path,
    beside: tuple[str, ...] = (),
    command: str = "",
) -> Scores | FewShot | Retrieval:
    """Run a probe, score and write it; what was written from the same before is read.

    Args:
        task: that is probed.
        table: features of all its images; of the dense probe with patch tokens of whole images.
        model: the name of the features.
        probe: that is run.
        out: the folder of all.
        beside: the models that this one should beat, which were probed before into ``out``: a flag says so otherwise.
        command: that was called, to be told beside the numbers.

    Raises:
        TaskError, FeaturesError: task and features cannot be probed, or the folder holds another model of this name.
        OSError: the folder cannot be written.
    """
    before = {name: probe.folder(out, name, task.name) for name in beside}
    if is_baseline(model):  # no training makes it another: it is probed once
        probe = replace(probe, training=None)
    folder = probe.folder(out, model, task.name)
    _refuse_mixture(probe, out, model, folder)
    made_from = {
        "protocol": PROTOCOL,
        "task": task.fingerprint,
        "key": table.key,
        "features": _features_hash(table, task, probe),
        "model": model,
        "probe": vars(probe),
        "beside": {name: _read(other / KEPT) for name, other in before.items()},
    }
    _make_room(folder.parent, made_from)
    kind: type[Scores | FewShot | Retrieval] = {"fewshot": FewShot, "retrieval": Retrieval}.get(probe.name, Scores)
    if _read(folder / KEPT) == made_from:
        return kind.load(folder)
    (folder / KEPT).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    done, flags = _done(task, table, model, probe, folder)
    for name, other in before.items():
        flags += _flags(done, kind.load(other), name)
    done = replace(done, flags=tuple(dict.fromkeys((*done.flags, *flags))))
    done.save(folder)
    write_routes(folder / ROUTES, table.of([row.image for row in task.split("test")]).gates)
    _write(folder / MADE, made(command))
    _write(folder / KEPT, made_from)
    return done


def made(command: str) -> dict[str, Any]:
    """When and by what numbers are made: plain values, which decide nothing."""
    versions = {}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {"time": datetime.now(UTC).isoformat(timespec="seconds"), "command": command, "versions": versions}


def _done(
    task: Task, table: FeatureTable, model: str, probe: Probe, folder: Path
) -> tuple[Scores | FewShot | Retrieval, list[str]]:
    """What a probe is worth, and what else there is to flag."""
    if probe.name == "fewshot":
        return score_few_shot(few_shot(task, layers_of(table, task), model, probe.seed), task), []
    if probe.name == "retrieval":
        return retrieve(task, layers_of(table, task), model), []
    probed = _probed(task, table, probe.model(model), probe, folder)
    if probe.training is not None:
        probed = replace(probed, predictions=replace(probed.predictions, seed=probe.training))
    probed.predictions.save(folder / "predictions.parquet")
    _write(folder / "choice.json", probed.choice)
    return score(probed.predictions, task), list(probed.flags)


def write_routes(path: Path, gates: np.ndarray | None) -> None:
    """Write the mean gate of each expert over images.

    Args:
        path: of routes.json.
        gates: [images, layers, experts]; None of a model without experts: the file is then removed.
    """
    path.unlink(missing_ok=True)
    if gates is not None:
        _write(path, {"images": len(gates), "gates": gates.mean(axis=0, dtype=np.float64).tolist()})


def run_majority(task: Task, out: Path, command: str = "") -> Scores:
    """The baseline that looks at no image, written as the probes are."""
    from dexcore.evaluate.probes.baselines import majority
    from dexcore.evaluate.probes.dense import majority_masks

    folder = out / MAJORITY / safe(task.name)
    made_from = {"protocol": PROTOCOL, "task": task.fingerprint}
    if _read(folder / KEPT) == made_from:
        return Scores.load(folder)
    (folder / KEPT).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    predictions = majority_masks(task, folder / "masks") if task.spec.is_segmentation else majority(task)
    predictions.save(folder / "predictions.parquet")
    scores = score(predictions, task)
    scores.save(folder)
    _write(folder / MADE, made(command))
    _write(folder / KEPT, made_from)
    return scores


def _probed(task: Task, table: FeatureTable, model: str, probe: Probe, folder: Path) -> Probed:
    if probe.name == "dense":
        from dexcore.evaluate.probes.dense import dense_probe

        return dense_probe(task, table, folder / "masks", model, probe.seed)
    run: Callable[[Task, Layers, str, int | None], Probed] = {"knn": knn_probe, "linear": linear_probe}[probe.name]
    return run(task, layers_of(table, task), model, probe.draw)


def _make_room(place: Path, made_from: dict[str, Any]) -> None:
    """Remove draws and seeds of another state of the task, which no table takes together with new ones.

    Raises:
        FeaturesError: those that are there are of another model, whose name is the same as a folder's.
    """
    for path in sorted(place.glob(f"*/{KEPT}")):
        there = _read(path)
        if not isinstance(there, dict) or any(there.get(name) != made_from[name] for name in ("protocol", "task")):
            shutil.rmtree(path.parent)
        elif any(there[name] != made_from[name] for name in ("model", "key" if made_from["key"] else "features")):
            raise FeaturesError(
                f"{path}: was made from other features under the name {made_from['model']}: expected another name "
                f"(--name), or a folder without {path.parent}"
            )


def _refuse_mixture(probe: Probe, out: Path, model: str, folder: Path) -> None:
    """Refuse a model that is probed with a training here and without one there: no table could take them together.

    Raises:
        FeaturesError: so it is; the message names the other folder.
    """
    if is_baseline(model):
        return
    if probe.training is None:
        others = [one for one in sorted(out.glob("training-*")) if (one / folder.relative_to(out)).exists()]
    else:
        own = out / folder.relative_to(out / _training(probe.training))
        others = [own] if own.exists() else []
    if others:
        how = "as one of several trainings" if probe.training is None else "without a training"
        raise FeaturesError(
            f"{model} was probed {how} in {others[0]}: expected a number of it each time (--training), or a folder "
            "without that"
        )


def _training(number: int) -> str:
    return f"training-{number}"


def _flags(done: Scores | FewShot | Retrieval, other: Scores | FewShot | Retrieval, name: str) -> list[str]:
    """That a model does not beat another one, unless it does."""
    if isinstance(done, Scores) and isinstance(other, Scores):
        found = compare(done, other)
        if found.verdict == "a":
            return []
        more = found.difference
        return [f"{NOT_BEATEN}{name}: {found.metric} {more.value:+.3f} [{more.low:+.3f}, {more.high:+.3f}]"]
    assert not isinstance(done, Scores)
    assert not isinstance(other, Scores)
    lost = not_beaten(done, other)
    every = len(lost) == len(done.settings)
    return [f"{NOT_BEATEN}{name}{' in any setting' if every else ': ' + '; '.join(lost)}"] if lost else []


def _features_hash(table: FeatureTable, task: Task, probe: Probe) -> str:
    """Of all that the probe sees of the features; patch tokens are known by what they were made from."""
    digest = hashlib.sha256()
    if probe.name == "dense":
        ordered = table.of([row.image for row in task.rows])
        digest.update(json.dumps([ordered.key, ordered.row_key, ordered.grid]).encode())
    for name, features in layers_of(table, task).items():
        digest.update(f"{name} {features.dtype} {features.shape}".encode())
        digest.update(np.ascontiguousarray(features).data)
    return digest.hexdigest()


def _read(path: Path) -> Any:
    """JSON that was written; None where it is missing or damaged: it is then made again."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def _write(path: Path, value: Any) -> None:
    write_whole(path, (json.dumps(value, indent=1) + "\n").encode())


def safe(name: str) -> str:
    """A name as a folder."""
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name).strip(".") or "model"


def _list(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
