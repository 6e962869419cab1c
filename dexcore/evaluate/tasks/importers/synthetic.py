"""The lesions of SyntheticMVU as tasks: many cases, with masks and labels that are known."""

from pathlib import Path
from typing import Any

import numpy as np

from dexcore.data.modality import Modality
from dexcore.data.synthetic import SyntheticMVU
from dexcore.evaluate.tasks.importers.raster import save_mask, save_png
from dexcore.evaluate.tasks.task import Task
from dexcore.evaluate.tasks.write import write_task

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

    Each image is a case of its own. Image and mask number ``index`` are those of ``SyntheticMVU(modalities, size,
    seed).sample(index)``, in 8 bits. Both tasks share a table, and so a split.

    Args:
        out: the folder; of the pictures too.
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
    rows = []
    for index in range(images):
        sample = drawn.sample(index)
        name = f"{index:06d}.png"
        rows.append(
            {
                "image": save_png(out / "images" / name, np.round(sample.image * 255).astype(np.uint8), out),
                "mask": save_mask(out, name, sample.mask.astype(np.uint8)),
                "label": drawn.labels[sample.label],
                "modality": str(sample.modality),
                "case": f"{index:06d}",
            }
        )
    common: dict[str, Any] = {
        "modality": "column",
        "normalization": "div255",
        "split": {"by": "case", "stratify": "label", "fractions": list(fractions), "seed": seed},
        "about": f"SyntheticMVU, seed {seed}, {size} x {size} pixels",
    }
    lesions = write_task(
        out, "lesions", rows, kind="segmentation", classes=["background", "lesion"], positive="lesion", **common
    )
    findings = write_task(
        out, "findings", None, table="lesions.csv", kind="classification", classes=list(drawn.labels), **common
    )
    return lesions, findings
