"""The labelled images of the corpus as tasks: ``python -m bench.corpus_tasks --out DIR``.

The corpus is a folder of real images with ``labels/*.csv`` (path, label, patient, mask_path), named by
``DEXCORE_CORPUS``. Splits are drawn by patient where patients are known, and written into the tables.

``--rest DIR`` links the files that are of no test split into a folder for ``dexcore mvu build DIR --key
bench/corpus.key``: a model that is pre-trained on it has seen none that it is tested on (the same picture may lie in
the corpus twice: ``dexcore eval check TASK --store STORE`` finds those). The key makes the same store on every machine;
of seven keys its held-out images are of the most modalities and cases (chosen before a model was trained on them).
"""

import argparse
import csv
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dexcore.data.modality import Modality
from dexcore.evaluate.tasks import Task, TaskError
from dexcore.evaluate.tasks.importers.options import plane_rows
from dexcore.evaluate.tasks.importers.raster import Pictures, read_any
from dexcore.evaluate.tasks.table import SPLITS
from dexcore.evaluate.tasks.write import write_task

Rows = list[dict[str, Any]]
KEY = Path(__file__).with_name("corpus.key")  # of the groups, which decide what is held out
_HALF = 127  # of masks in JPEG, whose edges ring


def corpus_tasks(corpus: Path, out: Path, names: tuple[str, ...] = ()) -> list[Task]:
    """Write the tasks of the corpus, each into a folder of its own below ``out``.

    Args:
        corpus: the folder with ``labels``.
        out: the folder.
        names: which; none: all of `TASKS`.

    Raises:
        TaskError: the corpus lacks a file.
    """
    return [TASKS[name](corpus, out / name) for name in names or TASKS]


def link_rest(corpus: Path, tasks: Sequence[Task], out: Path) -> int:
    """Link the corpus's files into ``out``, a folder a modality with its ``dataset.yaml``, but no test image's.

    Returns:
        How many files were linked.

    Raises:
        FileExistsError: ``out`` is there.
    """
    tested = {Path(row.image.partition("#")[0]) for task in tasks for row in task.split("test")}
    out.mkdir(parents=True)
    linked = 0
    for modality in Modality:
        for path in sorted((corpus / modality).rglob("*")):
            inside = path.relative_to(corpus)
            if path.is_file() and inside not in tested:
                (out / inside).parent.mkdir(parents=True, exist_ok=True)
                (out / inside).symlink_to(path.resolve())
                linked += 1
        (out / modality / "dataset.yaml").write_text(f"modality: {modality}\n", encoding="utf-8")
    return linked


def _labels(corpus: Path, name: str) -> Iterator[dict[str, str]]:
    try:
        with open(corpus / "labels" / f"{name}.csv", encoding="utf-8", newline="") as file:
            yield from csv.DictReader(file)
    except OSError as error:
        raise TaskError(f"{corpus}: {error}, expected the corpus of labelled images") from error


def _drawn(*fractions: float, stratify: str | None = None) -> dict[str, Any]:
    return {"by": "case", "fractions": list(fractions), "seed": 0} | ({"stratify": stratify} if stratify else {})


def _labelled(
    corpus: Path,
    out: Path,
    source: str,
    class_of: Callable[[str], str | None],
    modality: str,
    patients: bool,
    **keys: Any,
) -> Task:
    rows = [
        {"image": row["path"], "label": label, "case": row["patient"] if patients else ""}
        for row in _labels(corpus, source)
        if (label := class_of(row["label"])) is not None
    ]
    return write_task(
        out,
        out.name,
        rows,
        root=corpus,
        modality=modality,
        normalization="div255",
        split=_drawn(0.5, 0.15, 0.35, stratify="label"),
        cases="known" if patients else "unknown",
        **keys,
    )


def _masked(corpus: Path, out: Path, source: str, modality: str, **keys: Any) -> Task:
    """Pictures with masks; those in JPEG are drawn anew, 1 where they are brighter than half."""
    rows: Rows = []
    pictures = Pictures(out, out.name)
    for row in _labels(corpus, source):
        mask = row["mask_path"]
        if not mask:
            continue
        if mask.endswith(".jpg"):
            gray = read_any(corpus / mask).reshape(*read_any(corpus / mask).shape[:2], -1).mean(axis=2)
            mask = pictures.save_mask(f"{Path(mask).stem}.png", ((gray > _HALF) * 255).astype(np.uint8))
        rows.append({"image": row["path"], "mask": mask})
    return write_task(
        out,
        out.name,
        rows,
        root=corpus,
        modality=modality,
        kind="segmentation",
        normalization="div255",
        split=_drawn(0.5, 0.15, 0.35),
        cases="unknown",
        **keys,
    )


def _volumes(corpus: Path, out: Path, sources: dict[str, str], modality: str, **keys: Any) -> Task:
    """Volumes with masks: every slice is a row, a patient is a case."""
    rows: Rows = []
    for source, of in sources.items():
        for row in _labels(corpus, source):
            said = {"case": row["patient"], "modality": of}
            rows += plane_rows(corpus / row["path"], row["path"], said, {"mask": row["mask_path"]}, None)
    return write_task(
        out,
        out.name,
        rows,
        root=corpus,
        modality=modality,
        kind="segmentation",
        split=_drawn(0.5, 0.15, 0.35),
        **keys,
    )


def _pneumonia(corpus: Path, out: Path) -> Task:
    return _labelled(
        corpus,
        out,
        "kermany-cxr",
        lambda label: "normal" if label == "normal" else "pneumonia",
        Modality.XRAY.value,
        patients=True,
        kind="classification",
        classes=["normal", "pneumonia"],
        positive="pneumonia",
    )


def _breast(corpus: Path, out: Path) -> Task:
    classes = ["benign", "malignant", "normal"]
    return _labelled(
        corpus,
        out,
        "busi-256",
        str,
        Modality.ULTRASOUND.value,
        patients=False,
        kind="classification",
        classes=classes,
    )


def _skin(corpus: Path, out: Path) -> Task:
    names = {"benign;nevus": "nevus", "malignant;melanoma": "melanoma"}
    return _labelled(
        corpus,
        out,
        "isic-uda1",
        names.get,
        Modality.PHOTO.value,
        patients=False,
        kind="classification",
        classes=["nevus", "melanoma"],
        positive="melanoma",
    )


def _platelets(label: str) -> str:
    counts = dict(one.split("=") for one in label.split(";"))
    return str(min(int(counts.get("Platelets", 0)), 2))


def _blood(corpus: Path, out: Path) -> Task:
    classes = ["no platelet", "one platelet", "two or more"]
    return _labelled(
        corpus,
        out,
        "bccd",
        lambda label: classes[int(_platelets(label))],
        Modality.PATHOLOGY.value,
        patients=False,
        kind="ordinal",
        classes=classes,
    )


_TUMOUR = {"classes": ["background", "tumour"], "positive": "tumour", "mask_values": {0: 0, 1: 1}}

TASKS: dict[str, Callable[[Path, Path], Task]] = {
    "pneumonia": _pneumonia,
    "breast-class": _breast,
    "breast-lesion": lambda corpus, out: _masked(
        corpus,
        out,
        "busi",
        Modality.ULTRASOUND.value,
        classes=["background", "lesion"],
        mask_values={0: 0, 255: 1},
        positive="lesion",
    ),
    "polyps": lambda corpus, out: _masked(
        corpus,
        out,
        "kvasir-seg-256",
        Modality.ENDOSCOPY.value,
        classes=["background", "polyp"],
        mask_values={0: 0, 255: 1},
        positive="polyp",
    ),
    "skin-class": _skin,
    "skin-lesion": lambda corpus, out: _masked(
        corpus,
        out,
        "isic-uda1",
        Modality.PHOTO.value,
        classes=["background", "lesion"],
        mask_values={0: 0, 255: 1},
        positive="lesion",
    ),
    "blood-cells": _blood,
    "nuclei": lambda corpus, out: _masked(
        corpus,
        out,
        "dsb2018-he",
        Modality.PATHOLOGY.value,
        classes=["background", "nucleus"],
        mask_values={0: 0, "1-65535": 1},
        positive="nucleus",
    ),
    "hippocampus": lambda corpus, out: _volumes(
        corpus, out, {"msd-hippocampus": "MR"}, "MR", classes=["background", "anterior", "posterior"]
    ),
    "tumour-pet": lambda corpus, out: _volumes(corpus, out, {"ibsi-sts-nifti-PET": "PET"}, "PET", **_TUMOUR),
    "tumour": lambda corpus, out: _volumes(
        corpus, out, {f"ibsi-sts-nifti-{modality}": modality for modality in ("PET", "MR", "CT")}, "column", **_TUMOUR
    ),
}


def main() -> None:
    """Write the tasks that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="TASK", help=f"{', '.join(TASKS)} (default: all)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder of the tasks")
    parser.add_argument("--rest", type=Path, metavar="DIR", help="link the images that no task tests into this folder")
    given = parser.parse_args()
    unknown = sorted(set(given.names) - set(TASKS))
    if unknown:
        parser.error(f"{unknown[0]} is no task, expected one of {', '.join(TASKS)}")
    corpus = os.environ.get("DEXCORE_CORPUS")
    if corpus is None:
        parser.error("DEXCORE_CORPUS is not set: expected the folder of the corpus")
    tasks = corpus_tasks(Path(corpus), given.out, tuple(given.names))
    for task in tasks:
        counts = ", ".join(f"{split} {len(task.split(split))}" for split in SPLITS)
        print(f"{task.spec.path}: {counts}")
    if given.rest is not None:
        linked = link_rest(Path(corpus), tasks, given.rest)
        print(f"{given.rest}: {linked} files that no task tests")
        print(f"dexcore mvu build {given.rest} --key {KEY} --out STORE")


if __name__ == "__main__":
    main()
