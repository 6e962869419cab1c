"""Small tasks on disk: pictures, masks, a table and a YAML."""

import csv
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

SPLITS = ("train", "train", "val", "test", "test", "test")


def picture(seed: int, shape: tuple[int, ...] = (20, 24)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def write(folder: Path, rows: list[dict], name: str = "made", **keys: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{name}.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    path = folder / f"{name}.yaml"
    said = {"modality": "X-ray", "kind": "classification", "classes": ["sound", "ill"]} | keys
    path.write_text(yaml.safe_dump(said, sort_keys=False))
    return path


def labelled(folder: Path, copies: int = 2) -> list[dict]:
    """Pictures of two classes: a train, a train, a val and three test cases of each, with so many images a case."""
    rows = []
    for label in ("sound", "ill"):
        for number, split in enumerate(SPLITS):
            for copy in range(copies):
                name = f"{label}-{number}-{copy}.png"
                save(folder / name, picture(len(rows)))
                rows.append({"image": name, "label": label, "split": split, "case": f"{label}-{number}"})
    return rows


def masked(folder: Path, values: tuple[int, ...] = (0, 1), kind: type = np.uint8) -> list[dict]:
    """Pictures with masks of these values: two train, one val, three test cases."""
    rows = []
    for number, split in enumerate(SPLITS):
        save(folder / f"{number}.png", picture(number))
        mask = np.random.default_rng(100 + number).choice(np.array(values, kind), (20, 24))
        save(folder / f"{number}_mask.png", mask)
        rows.append({"image": f"{number}.png", "mask": f"{number}_mask.png", "split": split, "case": f"p{number}"})
    return rows


SEGMENTATION = {"kind": "segmentation", "classes": ["background", "lesion"]}
