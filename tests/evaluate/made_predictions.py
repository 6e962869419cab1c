"""Tasks and what was predicted of them, small and in memory's reach."""

from pathlib import Path

import numpy as np
from made_tasks import picture, save, write

from dexcore.evaluate.scores import Predictions, write_mask
from dexcore.evaluate.tasks import Task


def classified(
    folder: Path, labels: list[int], classes: int = 2, images: int = 1, **keys: object
) -> tuple[Task, np.ndarray]:
    """A task with a test case of each label and so many images a case; and the labels of its test rows, in order."""
    rows, of_rows = [], []
    save(folder / "one.png", picture(0))
    names = [f"class {number}" for number in range(classes)]
    for case, label in enumerate(labels):
        for image in range(images):
            rows.append(_row(f"case{case:04}-{image}.png", names[label], f"c{case:04}"))
            of_rows.append(label)
    rows += [{**_row(f"train{number}.png", name, f"t{number}"), "split": "train"} for number, name in enumerate(names)]
    return Task.open(write(folder, rows, **{"classes": names} | keys)), np.array(of_rows)


def _row(image: str, label: str, case: str) -> dict[str, str]:
    return {"image": image, "label": label, "split": "test", "case": case}


def logits_of(task: Task, values: np.ndarray, **about: object) -> Predictions:
    """Logits of the test rows, in the table's order."""
    return predictions(task, "logits", [row.image for row in task.split("test")], values, **about)


def predictions(task: Task, kind: str, image: list[str], values, **about: object) -> Predictions:
    return Predictions.of(task, kind, image, values, **about)


def segmented(
    folder: Path,
    masks: list[list[np.ndarray]],
    classes: int = 2,
    columns: dict[str, str] | None = None,
    **keys: object,
) -> Task:
    """A task with a test case of each list of masks, and their images; ``columns`` are the same in each row."""
    rows = []
    for case, of_case in enumerate(masks):
        for number, mask in enumerate(of_case):
            name = f"case{case:02}-{number:02}"
            save(folder / f"{name}.png", picture(case, mask.shape))
            save(folder / f"{name}_mask.png", mask.astype(np.uint8))
            row = {"image": f"{name}.png", "mask": f"{name}_mask.png", "split": "test", "case": f"c{case:02}"}
            rows.append(row | (columns or {}))
    names = ["background", *(f"class {number}" for number in range(1, classes))]
    return Task.open(write(folder, rows, **{"kind": "segmentation", "classes": names} | keys))


def masks_of(task: Task, folder: Path, masks: list[np.ndarray], **about: object) -> Predictions:
    """Masks of the test rows, in the table's order."""
    images = [row.image for row in task.split("test")]
    paths = tuple(write_mask(folder, image, mask) for image, mask in zip(images, masks, strict=True))
    return predictions(task, "mask", images, paths, **about)


def part(whole: Predictions, rows: list[int]) -> Predictions:
    """Some rows of predictions, in this order."""
    values = tuple(whole.values[row] for row in rows) if whole.kind == "mask" else np.asarray(whole.values)[rows]
    about = {name: getattr(whole, name) for name in ("task", "fingerprint", "classes", "kind", "model", "seed")}
    return Predictions(**about, image=tuple(whole.image[row] for row in rows), values=values)
