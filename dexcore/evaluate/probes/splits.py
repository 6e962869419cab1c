"""What a probe may see of a task: the labels of train and val, and the features of test.

Axes: n images, d width, c classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dexcore.evaluate.scores import Predictions
from dexcore.evaluate.scores.gather import classified_of
from dexcore.evaluate.tasks import Row, Task, TaskError
from dexcore.evaluate.tasks.table import SPLITS

Layers = Mapping[str, np.ndarray]  # features by layer, float [rows of the task, d], in the order of Task.rows


@dataclass(frozen=True, eq=False)
class Part:
    """The images of one split, sorted by name.

    Attributes:
        rows: of the task.
        place_n: of each among the task's rows.
        case_n: index of its case, over the whole task.
    """

    rows: tuple[Row, ...]
    place_n: np.ndarray
    case_n: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, chosen: np.ndarray) -> "Part":
        """Some of the images, by index."""
        return Part(tuple(self.rows[n] for n in chosen.tolist()), self.place_n[chosen], self.case_n[chosen])

    def with_(self, other: "Part") -> "Part":
        """These images, and behind them others."""
        places, cases = (np.concatenate([getattr(self, one), getattr(other, one)]) for one in ("place_n", "case_n"))
        return Part(self.rows + other.rows, places, cases)


@dataclass(frozen=True, eq=False)
class Splits:
    """A task, as a probe sees it: no label of test can be had through it.

    Attributes:
        task: that is probed.
        train, val, test: its images.
        train_label, val_label: int64 [n]; of kind multilabel bool [n, c].
    """

    task: Task
    train: Part
    val: Part
    test: Part
    train_label: np.ndarray
    val_label: np.ndarray

    @classmethod
    def of(cls, task: Task, draw: int | None = None) -> "Splits":
        """Read the labels of train and val.

        Args:
            task: of classification.
            draw: a key: the cases of train are drawn with replacement, as often as there are; None for all, once.

        Raises:
            TaskError: the task has masks, or no image of train or test, or a label that is no class.
        """
        if task.spec.is_segmentation:
            raise TaskError(f"task {task.name}: is of kind {task.kind}: its probe is dense, on patch tokens")
        parts = {name: _part(task, name) for name in SPLITS}
        for name in ("train", "test"):
            if not len(parts[name]):
                raise TaskError(f"task {task.name}: has no image of split {name}: there is nothing to probe")
        if draw is not None:
            parts["train"] = _drawn(parts["train"], draw)
        labels = {name: task.labels(parts[name].rows) for name in ("train", "val")}
        return cls(task, parts["train"], parts["val"], parts["test"], labels["train"], labels["val"])

    @property
    def classes(self) -> int:
        """How many there are."""
        return len(self.task.classes)

    def known(self) -> tuple[Part, np.ndarray]:
        """Train and val together, and their labels: what fits once everything is chosen."""
        if not len(self.val):
            return self.train, self.train_label
        return self.train.with_(self.val), np.concatenate([self.train_label, self.val_label])

    def check(self, layers: Layers) -> dict[str, np.ndarray]:
        """The same features, float32 or float64; refused where they do not fit or are not finite.

        Raises:
            TaskError: the message names the task, the layer and the image.
        """
        if not layers:
            raise TaskError(f"task {self.task.name}: there are no features, expected one layer at least")
        found = {}
        for name, features in layers.items():
            features = np.asarray(features)
            if features.ndim != 2 or len(features) != len(self.task.rows):
                raise TaskError(
                    f"task {self.task.name}: features {name} have shape {features.shape}, expected "
                    f"[{len(self.task.rows)}, width]: one row an image, in the order of the task's table"
                )
            finite = np.isfinite(features).all(axis=1)
            if not finite.all():
                image = self.task.rows[int(np.argmin(finite))].image
                raise TaskError(f"task {self.task.name}: features {name} of {image} are not finite")
            found[name] = features.astype(np.float32) if features.dtype == np.float16 else features
        return found

    def predictions(self, probability_nc: np.ndarray, model: str, seed: int | None) -> Predictions:
        """Probabilities of the test images, to be saved and scored."""
        images = [row.image for row in self.test.rows]
        return Predictions.of(self.task, "probabilities", images, probability_nc, model, seed)


@dataclass(frozen=True, eq=False)
class Probed:
    """What a probe made of features.

    Attributes:
        predictions: of the test images.
        choice: what was chosen, on what, and by which numbers: plain values, which depend on no label of test.
        flags: what a reader of the numbers must know.
    """

    predictions: Predictions
    choice: dict[str, Any]
    flags: tuple[str, ...]


def one_hot(label: np.ndarray, classes: int) -> np.ndarray:
    """Labels as bool [n, c]."""
    return label if label.ndim == 2 else np.eye(classes, dtype=bool)[label]


def value_of(task: Task, part: Part, label: np.ndarray, probability_nc: np.ndarray) -> tuple[float, str]:
    """The task's number of images whose labels are known, and its name; larger is better.

    Where it is not defined, as AUROC is not of one class, it is minus the Brier score.
    """
    whole, _ = classified_of(task, part.rows, label, probability_nc)
    statistics = whole.statistics()
    weight = np.ones((1, len(whole.cases)))
    with np.errstate(invalid="ignore"):  # what is not defined is nan, and asked for right here
        value = float(statistics[task.spec.metric](weight)[0])
    if np.isfinite(value):
        return value, task.spec.metric
    return -float(statistics["brier"](weight)[0]), "-brier"


def undefined_flag(task: Task, measured: str) -> list[str]:
    """What is said where the task's number could not choose."""
    if measured == task.spec.metric:
        return []
    return [f"{task.spec.metric} is not defined where the choice was made: chosen by the Brier score"]


def absent_flag(task: Task, label: np.ndarray) -> list[str]:
    """Which classes no image of train shows."""
    found = np.flatnonzero(one_hot(label, len(task.classes)).any(axis=0))
    absent = [name for number, name in enumerate(task.classes) if number not in found]
    return [f"no training image of {', '.join(absent)}: never predicted"] if absent else []


def _part(task: Task, name: str) -> Part:
    cases = {case: index for index, case in enumerate(sorted({row.case for row in task.rows}))}
    found = sorted((row.image, place) for place, row in enumerate(task.rows) if row.split == name)
    rows = tuple(task.rows[place] for _, place in found)
    return Part(
        rows,
        np.array([place for _, place in found], dtype=np.int64),
        np.array([cases[row.case] for row in rows], dtype=np.int64),
    )


def _drawn(part: Part, key: int) -> Part:
    cases = np.unique(part.case_n)
    drawn = np.sort(np.random.default_rng([key, 3]).choice(cases, len(cases)))
    return part.take(np.concatenate([np.flatnonzero(part.case_n == case) for case in drawn]))
