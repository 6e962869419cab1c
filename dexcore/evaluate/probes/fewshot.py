"""Few-shot: what a handful of labelled images a class are worth, over many episodes that are the same for every model.

Axes: e episodes, n test images, d width.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from dexcore.evaluate.probes.settings import Setting, class_shares, compare_settings, estimated
from dexcore.evaluate.probes.splits import Layers, Splits
from dexcore.evaluate.scores.saved import load_numbers, save_numbers
from dexcore.evaluate.scores.score import flags_of
from dexcore.evaluate.tasks import Task, TaskError
from dexcore.extras import require
from dexcore.measures.bootstrap import Estimate
from dexcore.measures.neighbors import unit

SHOTS = (1, 2, 4, 8, 16, 32)
EPISODES = 200
METHODS = ("centroid", "logistic")
COST = 10.0  # scikit-learn's C, fixed: there is nothing to choose it on
FILE = "fewshot"
_ABOUT = ("task", "fingerprint", "model", "seed", "supports")


@dataclass(frozen=True, eq=False, kw_only=True)
class FewShotPredictions:
    """What few-shot classifiers said of the test images.

    Attributes:
        task, fingerprint, model: as in `Predictions`.
        seed: of the episodes.
        supports: SHA-256 of the images of all episodes: equal ones are paired.
        settings: (layer, shots, method) of each row of ``predicted``.
        predicted: uint16 [settings, e, n], the class of each test image, sorted by their names.
        case_n: index of its case.
        flags: what a reader of the numbers must know.
    """

    task: str
    fingerprint: str
    model: str
    seed: int
    supports: str
    settings: tuple[tuple[str, int, str], ...]
    predicted: np.ndarray
    case_n: np.ndarray
    flags: tuple[str, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class FewShot(FewShotPredictions):
    """The same, and what was true.

    Attributes:
        label_n: the class of each test image.
    """

    label_n: np.ndarray

    metric: ClassVar[str] = "balanced_accuracy"

    @cached_property
    def numbers(self) -> tuple[Estimate, ...]:
        """The balanced accuracy of each setting, a mean over episodes; drawn are cases and episodes."""
        return tuple(estimated(right, self.label_n, self.case_n) for right in self.values())

    def deviations(self) -> tuple[float, ...]:
        """Of each setting, between episodes: what other supports would do."""
        shares = class_shares(self.label_n)
        return tuple(float((right @ shares).std(ddof=1)) if len(right) > 1 else np.nan for right in self.values())

    def values(self) -> Iterator[np.ndarray]:
        """Of each setting, whether each test image is right in each episode: float32 [e, n]."""
        for predicted in self.predicted:
            yield (predicted == self.label_n).astype(np.float32)

    def told(self, setting: Setting) -> str:
        """A setting in words, but for its layer."""
        _, shots, method = setting
        return f"{shots} a class, {method}"

    def as_json(self) -> dict[str, Any]:
        """The numbers, by setting."""
        rows = [
            {
                "layer": layer,
                "shots": shots,
                "method": method,
                "balanced_accuracy": number.as_json(),
                "deviation": spread if np.isfinite(spread) else None,
            }
            for (layer, shots, method), number, spread in zip(
                self.settings, self.numbers, self.deviations(), strict=True
            )
        ]
        about = {name: getattr(self, name) for name in _ABOUT}
        return {**about, "episodes": self.predicted.shape[1], "settings": rows, "flags": list(self.flags)}

    def lines(self) -> list[str]:
        """The numbers for a terminal."""
        told = [f"task {self.task}, test: balanced accuracy of {self.predicted.shape[1]} episodes, {self.model}"]
        for (layer, shots, method), number in zip(self.settings, self.numbers, strict=True):
            told.append(f"  {shots:2} a class, {method:8} on {layer}  {number}")
        return [*told, *(f"  note: {flag}" for flag in self.flags)]

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write fewshot.json, to be read, and fewshot.npz, which `load` reads.

        Raises:
            OSError: they cannot be written.
        """
        about = {name: getattr(self, name) for name in (*_ABOUT, "settings", "flags")}
        arrays = {name: getattr(self, name) for name in ("predicted", "label_n", "case_n")}
        save_numbers(folder, FILE, self.as_json(), arrays, about)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "FewShot":
        """Read what `save` wrote into a folder, or its fewshot.npz.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged, or of another version.
        """
        path, about, arrays = load_numbers(path, FILE, "few-shot predictions")
        try:
            settings = tuple((str(layer), int(shots), str(method)) for layer, shots, method in about.pop("settings"))
            about["flags"] = tuple(about["flags"])
            return cls(**about | arrays, settings=settings)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path}: is damaged: {error}") from error


def episodes(task: Task, seed: int = 0, count: int = EPISODES) -> list[list[np.ndarray]]:
    """The supports of each episode: round after round one image of every class, as indices into the sorted train split.

    Those of n shots are the first n rounds. No two images of an episode are of one case. What is drawn depends on
    task, seed, episode, and the names of the images and cases of train; on no model, and on no order of the table.

    Returns:
        [episodes] lists of rounds, int64 [classes]; an episode ends before the first round that lacks a class.
    """
    splits = Splits.of(task)
    _check(task)
    return [list(_rounds(splits, task.name, seed, episode)) for episode in range(count)]


def _rounds(splits: Splits, task: str, seed: int, episode: int) -> Iterator[np.ndarray]:
    key = hashlib.sha256(json.dumps([task, seed, episode]).encode()).digest()
    random = np.random.default_rng(int.from_bytes(key, "big"))
    label, case = splits.train_label, splits.train.case_n
    order = random.permutation(len(label))  # the first image of a case that is met stands for it
    queues = [iter(order[label[order] == number].tolist()) for number in range(splits.classes)]
    used: set[int] = set()
    for _ in range(max(SHOTS)):
        chosen = []
        for queue in queues:
            image = next((image for image in queue if case[image] not in used), None)
            if image is None:
                return
            used.add(case[image])
            chosen.append(image)
        yield np.array(chosen)


def few_shot(
    task: Task,
    layers: Layers,
    model: str = "",
    seed: int = 0,
    count: int = EPISODES,
    shots: Sequence[int] = SHOTS,
) -> FewShotPredictions:
    """Classify the whole test split from few training images a class, in many episodes.

    Features are centred on those of train and brought to length 1, without labels. The classifiers are the nearest
    centroid (cosine) and logistic regression with a fixed C; nothing is chosen, so val takes no part.

    Args:
        task: of classification, one class an image.
        layers: features by layer; every layer is told.
        model: their name.
        seed: of the episodes.
        count: of episodes.
        shots: images a class, from few to many.

    Raises:
        TaskError: the task or the features cannot be probed, or train has no case of a class.
        MissingExtraError: scikit-learn is not installed.
    """
    splits = Splits.of(task)
    features = splits.check(layers)
    drawn = episodes(task, seed, count)
    most = min(map(len, drawn))
    possible = [number for number in shots if number <= most]
    if not possible:
        raise TaskError(f"task {task.name}: train has no case of a class: no episode of {min(shots)} images a class")
    settings = [(layer, number, method) for layer in features for number in possible for method in METHODS]
    predicted = np.zeros((len(settings), count, len(splits.test)), dtype=np.uint16)
    warned = 0
    for layer, of_layer in features.items():
        rows = of_layer[splits.train.place_n]
        center = rows.mean(axis=0, dtype=np.float64)
        known, queries = (unit(part, center)[0] for part in (rows, of_layer[splits.test.place_n]))
        for episode, rounds in enumerate(drawn):
            for number in possible:
                support = known[np.concatenate(rounds[:number])]
                label = np.tile(np.arange(splits.classes), number)
                for method in METHODS:
                    found, said = _classify(method, support, label, queries)
                    predicted[settings.index((layer, number, method)), episode] = found
                    warned += said
    flags = []
    if len(possible) < len(shots):
        flags.append(f"no episode of {shots[len(possible)]} images a class: a class has too few training cases")
    if warned:
        flags.append(f"the solver warned in {warned} fits")
    images = [[splits.train.rows[n].image for one in rounds for n in one.tolist()] for rounds in drawn]
    return FewShotPredictions(
        task=task.name,
        fingerprint=task.fingerprint,
        model=model,
        seed=seed,
        supports=hashlib.sha256(json.dumps([images, possible]).encode()).hexdigest(),
        settings=tuple(settings),
        predicted=predicted,
        case_n=np.unique(splits.test.case_n, return_inverse=True)[1].reshape(-1),
        flags=tuple(flags),
    )


def score_few_shot(predictions: FewShotPredictions, task: Task) -> FewShot:
    """The same with the labels of test, and so with numbers.

    Raises:
        ValueError: they were predicted for another task, or another state of it.
    """
    if predictions.fingerprint != task.fingerprint:
        raise ValueError(f"task {task.name}: these few-shot predictions are of another task or another state of it")
    rows = sorted(task.split("test"), key=lambda row: row.image)
    flags = dict.fromkeys((*flags_of(task, rows), *predictions.flags))
    return FewShot(**vars(predictions) | {"flags": tuple(flags)}, label_n=task.reference().labels(rows))


def compare_few_shot(a: FewShot, b: FewShot) -> list[tuple[tuple[str, int, str], Estimate]]:
    """A minus B, by A's settings: the same episodes, and the same draws of cases and episodes of both.

    Layers are compared with those of the same name; the one layer of a model that has but one with all.

    Raises:
        ComparisonError: they are of other tasks, episodes, or have no setting in common.
    """
    return [((layer, shots, method), number) for (layer, shots, method), number in compare_settings(a, b)]


def _check(task: Task) -> None:
    if task.kind == "multilabel":
        raise TaskError(f"task {task.name}: is of kind multilabel: few-shot is for one class an image")


def _classify(method: str, support: np.ndarray, label: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, bool]:
    if method == "centroid":
        centroids = np.stack([support[label == number].mean(axis=0) for number in np.unique(label)])
        centroids /= np.maximum(np.linalg.norm(centroids, axis=1, keepdims=True), 1e-12)
        return (queries @ centroids.T).argmax(axis=1), False
    solver = require("sklearn.linear_model", "eval").LogisticRegression(C=COST, max_iter=1000, tol=1e-6)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        solver.fit(support, label)
    return solver.predict(queries), bool(said)
