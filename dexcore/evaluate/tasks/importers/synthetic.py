"""The lesions of SyntheticMVU as tasks: many cases, with masks and labels that are known."""

from pathlib import Path
from typing import Any

import numpy as np

from dexcore.data.modality import Modality
from dexcore.data.synthetic import SyntheticMVU
from dexcore.evaluate.tasks.importers.raster import Pictures
from dexcore.evaluate.tasks.task import Task
from dexcore.evaluate.tasks.write import free, write_task

SEED = 1  # runs pre-train on seed 0: these images are none of theirs


def synthetic_tasks(
    out: Path,
    images: int = 600,
    size: int = 64,
    seed: int = SEED,
    modalities: tuple[Modality, ...] | None = None,
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2),
) -> tuple[Task, Task]:
    """Draw images, and write two tasks about them: ``OUT/lesions.yaml`` (masks) and ``OUT/findings.yaml`` (labels).

    Where both are there already, and are of these images, they are opened.

    Each image is a case of its own. Image and mask number ``index`` are those of ``SyntheticMVU(modalities, size,
    seed).sample(index)``, in 8 bits. Both tasks share a table, and so a split.

    Args:
        out: the folder; both tasks' pictures lie in ``OUT/lesions``.
        images: how many.
        size: side of them, pixels.
        seed: of `SyntheticMVU`, and of the split.
        modalities: which; all ten without it.
        fractions: of train, val and test.

    Raises:
        OSError: a file cannot be written.
        ValueError: as `SyntheticMVU`.
    """
    drawn = SyntheticMVU(modalities, size=size, seed=seed)
    about = f"SyntheticMVU({', '.join(drawn.modalities)}), seed {seed}, {images} images of {size} x {size} pixels"
    common: dict[str, Any] = {
        "modality": "column",
        "normalization": "div255",
        "split": {"by": "case", "stratify": "label", "fractions": list(fractions), "seed": seed},
        "about": about,
    }
    first, second = (out / f"{name}.yaml" for name in ("lesions", "findings"))
    lesions = Task.open(first) if first.is_file() else None
    if lesions is None or lesions.spec.about != about:
        for path in (first, second):
            free(out, path.stem)
        with Pictures(out, "lesions") as pictures:
            rows = [_row(drawn, index, pictures) for index in range(images)]
            lesions = write_task(
                out, "lesions", rows, kind="segmentation", classes=["background", "lesion"], positive="lesion", **common
            )
    if second.is_file():
        return lesions, Task.open(second)
    classes = list(drawn.labels)
    return lesions, write_task(
        out, "findings", None, table="lesions.csv", kind="classification", classes=classes, **common
    )


def _row(drawn: SyntheticMVU, index: int, pictures: Pictures) -> dict[str, str]:
    """Draw and write one image and its mask."""
    sample = drawn.sample(index)
    name = f"{index:06d}.png"
    return {
        "image": pictures.save_image(name, np.round(sample.image * 255).astype(np.uint8)),
        "mask": pictures.save_mask(name, sample.mask.astype(np.uint8)),
        "label": drawn.labels[sample.label],
        "modality": str(sample.modality),
        "case": f"{index:06d}",
    }
