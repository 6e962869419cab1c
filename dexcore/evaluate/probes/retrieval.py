"""Retrieval: whether the images of a class are nearest to each other."""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from dexcore.evaluate.probes.settings import Setting, class_shares, estimated
from dexcore.evaluate.probes.splits import Layers, Splits
from dexcore.evaluate.scores.saved import load_numbers, save_numbers
from dexcore.evaluate.scores.score import flags_of
from dexcore.evaluate.tasks import Task, TaskError
from dexcore.measures.bootstrap import Estimate
from dexcore.measures.neighbors import unit
from dexcore.measures.ranking import average_precisions
from dexcore.measures.ratio import ratio

FILE = "retrieval"
_ABOUT = ("task", "fingerprint", "model", "seed", "supports", "chance")
_PAIRS = 1 << 23  # of likenesses held at once


@dataclass(frozen=True, eq=False)
class Retrieved:
    """How well a gallery is ranked for each query.

    Attributes:
        mean: the mean over classes of the mean average precision of their queries (mAP); nan without any.
        chance_n: of each query: the share of what is right in its gallery, which a random order comes near to.
        precision_n: of each query, its average precision; nan where its gallery has nothing of its class.
    """

    mean: float
    chance_n: np.ndarray
    precision_n: np.ndarray


def class_retrieval(
    queries_nd: np.ndarray,
    query_label: np.ndarray,
    gallery_nd: np.ndarray,
    gallery_label: np.ndarray,
    apart_q: np.ndarray | None = None,
    apart_n: np.ndarray | None = None,
    center_d: np.ndarray | None = None,
) -> Retrieved:
    """Rank a gallery by cosine for each query; right is what is of its class. Exact; ties go to the lower index.

    Args:
        queries_nd, gallery_nd: features, finite.
        query_label, gallery_label: int64.
        apart_q, apart_n: cases; what is of a query's own is left out of its gallery.
        center_d: what is subtracted from both, such as the mean of the gallery.

    Raises:
        ValueError: features are not finite.
    """
    center = np.zeros(gallery_nd.shape[1]) if center_d is None else center_d
    queries, gallery = unit(queries_nd, center, "queries")[0], unit(gallery_nd, center, "gallery")[0]
    precision, chance = np.full(len(queries), np.nan), np.full(len(queries), np.nan)
    step = max(1, _PAIRS // max(len(gallery), 1))
    for start in range(0, len(queries), step):
        part = slice(start, start + step)
        likeness = queries[part] @ gallery.T
        right = query_label[part, None] == gallery_label
        asked = np.ones(right.shape, bool)
        if apart_q is not None and apart_n is not None:
            asked = apart_q[part, None] != apart_n
        likeness[~asked] = -np.inf
        order = np.argsort(-likeness, axis=1, kind="stable")
        right = np.take_along_axis(right & asked, order, axis=1)
        count = right.sum(axis=1)
        precision[part] = average_precisions(right)
        size = asked.sum(axis=1)
        chance[part] = ratio(count, size)
    known = np.isfinite(precision)
    of_classes = [precision[known & (query_label == one)].mean() for one in np.unique(query_label[known])]
    return Retrieved(float(np.mean(of_classes)) if of_classes else float("nan"), chance, precision)


@dataclass(frozen=True, eq=False)
class Retrieval:
    """How well test images find those of their class, by layer.

    Attributes:
        task, fingerprint, model: as in `Predictions`.
        supports: SHA-256 of the images of the gallery: equal ones are paired.
        settings: the layers.
        precision_ln: float64 [layers, n], the average precision of each test image that is asked, by their names.
        chance: what a random order comes near to.
        label_n: the class of each.
        case_n: index of its case.
        flags: what a reader of the numbers must know.
        seed: 0, there is no randomness.
    """

    task: str
    fingerprint: str
    model: str
    supports: str
    settings: tuple[tuple[str], ...]
    precision_ln: np.ndarray
    chance: float
    label_n: np.ndarray
    case_n: np.ndarray
    flags: tuple[str, ...]
    seed: int = 0

    metric: ClassVar[str] = "mean_average_precision"

    @cached_property
    def numbers(self) -> tuple[Estimate, ...]:
        """The mean average precision (mAP) of each layer, a mean over classes; drawn are cases."""
        return tuple(estimated(value, self.label_n, self.case_n) for value in self.values())

    def values(self) -> Iterator[np.ndarray]:
        """Of each layer the average precision of each image, float32 [1, n]."""
        for precision in self.precision_ln:
            yield precision[None].astype(np.float32)

    def told(self, _: Setting) -> str:
        """A setting is a layer, there is nothing else to set."""
        return ""

    def as_json(self) -> dict[str, Any]:
        """The numbers, by layer."""
        rows = [
            {"layer": layer, self.metric: number.as_json()}
            for (layer,), number in zip(self.settings, self.numbers, strict=True)
        ]
        about = {name: getattr(self, name) for name in _ABOUT}
        return {**about, "layers": rows, "flags": list(self.flags)}

    def lines(self) -> list[str]:
        """The numbers for a terminal."""
        told = [
            f"task {self.task}, test: mean average precision of {len(self.label_n)} images, {self.model} "
            f"(by chance about {self.chance:.3f})"
        ]
        told += [f"  {layer}  {number}" for (layer,), number in zip(self.settings, self.numbers, strict=True)]
        return [*told, *(f"  note: {flag}" for flag in self.flags)]

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write retrieval.json, to be read, and retrieval.npz, which `load` reads.

        Raises:
            OSError: they cannot be written.
        """
        about = {name: getattr(self, name) for name in (*_ABOUT, "settings", "flags")}
        arrays = {name: getattr(self, name) for name in ("precision_ln", "label_n", "case_n")}
        save_numbers(folder, FILE, self.as_json(), arrays, about)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Retrieval":
        """Read what `save` wrote into a folder, or its retrieval.npz.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged, or of another version.
        """
        path, about, arrays = load_numbers(path, FILE, "retrieval")
        try:
            settings = tuple((str(layer),) for (layer,) in about.pop("settings"))
            about["flags"] = tuple(about["flags"])
            return cls(**about | arrays, settings=settings)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path}: is damaged: {error}") from error


def retrieve(task: Task, layers: Layers, model: str = "") -> Retrieval:
    """Rank the images of train and val for each test image: right is what is of its class.

    Nothing is chosen, every layer is told; so the labels of test may be read. Features are centred on those of train.
    Images of a test image's own case are left out of its gallery; test images whose class the gallery lacks are not
    asked.

    Args:
        task: of classification, one class an image.
        layers: features by layer.
        model: their name.

    Raises:
        TaskError: the task or the features cannot be probed, or no class of test is in the gallery.
    """
    if task.kind == "multilabel":
        raise TaskError(f"task {task.name}: is of kind multilabel: retrieval is for one class an image")
    splits = Splits.of(task)
    features = splits.check(layers)
    known, known_label = splits.known()
    label = task.reference().labels(splits.test.rows)
    found = []
    for of_layer in features.values():
        center = of_layer[splits.train.place_n].mean(axis=0, dtype=np.float64)
        queries, gallery = of_layer[splits.test.place_n], of_layer[known.place_n]
        cases = splits.test.case_n, known.case_n
        found.append(class_retrieval(queries, label, gallery, known_label, *cases, center))
    asked = np.isfinite(found[0].precision_n)
    if not asked.any():
        raise TaskError(f"task {task.name}: no test image's class is in train or val: there is nothing to retrieve")
    flags = flags_of(task, splits.test.rows)
    if not asked.all():
        names = ", ".join(task.classes[number] for number in np.unique(label[~asked]))
        flags.append(f"{np.sum(~asked)} test images are not asked: the gallery has nothing of {names}")
    chance = found[0].chance_n[asked] @ class_shares(label[asked])
    return Retrieval(
        task=task.name,
        fingerprint=task.fingerprint,
        model=model,
        supports=hashlib.sha256(json.dumps([row.image for row in known.rows]).encode()).hexdigest(),
        settings=tuple((layer,) for layer in features),
        precision_ln=np.stack([one.precision_n[asked] for one in found]),
        chance=float(chance),
        label_n=label[asked],
        case_n=np.unique(splits.test.case_n[asked], return_inverse=True)[1].reshape(-1),
        flags=tuple(dict.fromkeys(flags)),
    )
