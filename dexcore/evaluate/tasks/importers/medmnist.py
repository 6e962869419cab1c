"""MedMNIST: one .npz with {train,val,test}_{images,labels}. Nothing is unpickled; sizes are those of the arrays.

It has no ids: its images are taken as independent.
"""

import zipfile
from pathlib import Path

import numpy as np

from dexcore.evaluate.tasks.importers.options import Imported, Options
from dexcore.evaluate.tasks.spec import TaskError
from dexcore.evaluate.tasks.table import SPLITS
from dexcore.evaluate.tasks.write import write_task


def import_medmnist(src: Path, out: Path, options: Options) -> Imported:
    """Write the task of a MedMNIST file of 2-D images.

    Raises:
        TaskError: it is none, or holds Python objects, volumes, or labels that are no class.
    """
    rows: list[dict[str, str]] = []
    labels: dict[str, np.ndarray] = {}
    try:
        with np.load(src, allow_pickle=False) as arrays:
            for split in SPLITS:
                images, labels[split] = arrays[f"{split}_images"], arrays[f"{split}_labels"]
                _check(src, split, images, labels[split])
                side = " x ".join(map(str, images.shape[1:3]))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        if isinstance(error, TaskError):
            raise
        raise TaskError(f"{src}: is no MedMNIST file: {error}") from error
    multilabel = labels["train"].shape[1] > 1
    count = labels["train"].shape[1] if multilabel else 1 + max(int(found.max(initial=0)) for found in labels.values())
    classes = options.classes or tuple(map(str, range(count)))
    if len(classes) != count:
        raise TaskError(f"{src}: holds {count} classes, --classes names {len(classes)}")
    for part, found in labels.items():
        for index, label in enumerate(found):
            names = [classes[number] for number in (np.flatnonzero(label) if multilabel else label)]
            rows.append({"image": f"{src.name}#{part}_images={index}", "label": ";".join(names), "split": part})
    task = write_task(
        out,
        options.name or src.stem,
        rows,
        root=src.parent,
        modality=options.modality,
        kind=options.kind or ("multilabel" if multilabel else "classification"),
        classes=list(classes),
        normalization=options.normalization or "div255",
        split="column",
        cases="unknown",
        about=f"MedMNIST, {src.name}: images of {side} pixels, enlarged or shrunk by its makers",
    )
    return Imported(task)


def _check(src: Path, split: str, images: np.ndarray, labels: np.ndarray) -> None:
    if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)):
        raise TaskError(f"{src}: {split}_images is {images.dtype} {images.shape}, expected uint8 images, gray or RGB")
    if labels.ndim != 2 or len(labels) != len(images) or labels.dtype.kind not in "iu" or (labels < 0).any():
        raise TaskError(
            f"{src}: {split}_labels is {labels.dtype} {labels.shape}, expected whole numbers, a row an image"
        )
