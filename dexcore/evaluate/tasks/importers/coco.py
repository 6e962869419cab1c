"""Plain COCO: instances become masks of classes. A later annotation wins, a crowd is ignored."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from dexcore.evaluate.tasks.importers.options import Imported, Options, case_of, split_word
from dexcore.evaluate.tasks.importers.raster import Pictures
from dexcore.evaluate.tasks.spec import TaskError
from dexcore.evaluate.tasks.write import free, write_task
from dexcore.extras import require

_IGNORE = 255


def import_coco(src: Path, out: Path, options: Options) -> Imported:
    """Write the task of one JSON file, or of all below a folder; masks are drawn into ``OUT/NAME/masks``.

    The split is that which a JSON file's name says (instances_train.json), else it is drawn.

    Raises:
        TaskError: a file is no COCO, an image is missing, two files call a category differently, or an annotation has
            no outline.
    """
    folder = options.root or (src if src.is_dir() else src.parent)
    jsons = sorted(src.rglob("*.json")) if src.is_dir() else [src]
    found = {path: said for path in jsons if (said := _read(path))}
    if not found:
        raise TaskError(f"{src}: holds no JSON of COCO, expected images, annotations and categories in it")
    names: dict[int, str] = {}
    for path, said in found.items():
        for category in said["categories"]:
            number, name = category["id"], category["name"]
            if names.setdefault(number, name) != name:
                raise TaskError(f"{path}: calls category {number} {name!r}, another file {names[number]!r}")
    index_of = {number: index for index, number in enumerate(sorted(names), 1)}
    if len(index_of) >= _IGNORE:
        raise TaskError(f"{src}: holds {len(index_of)} categories, expected at most {_IGNORE - 1}")
    files: defaultdict[str, list[Path]] = defaultdict(list)  # by their last names
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix != ".json":
            files[path.name].append(path)
    name = options.name or src.resolve().stem
    free(out, name)
    with Pictures(out, name) as pictures:
        rows = []
        for path, said in found.items():
            split = next(
                (split for word in path.stem.replace("-", "_").split("_") if (split := split_word(word))), None
            )
            rows += _rows(path, said, split, folder, files, index_of, pictures, options)
        splits = {row["split"] for row in rows}
        if None in splits and len(splits) > 1:
            raise TaskError(
                f"{src}: some JSON files name a split and some do not, expected train, val and test, or one file"
            )
        task = write_task(
            out,
            name,
            rows,
            root=folder,
            modality=options.modality,
            kind="segmentation",
            classes=["background", *(names[number] for number in sorted(names))],
            ignore=_IGNORE,
            normalization=options.normalization,
            split=options.drawn if None in splits else "column",
            cases="known" if options.case else "unknown",
        )
    return Imported(task)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        said = json.loads(path.read_bytes())
    except OSError as error:
        raise TaskError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise TaskError(f"{path}: is no JSON: {error}") from error
    lists = [
        isinstance(said, dict) and isinstance(said.get(key), list) for key in ("images", "annotations", "categories")
    ]
    return said if all(lists) else None


def _rows(
    path: Path,
    said: dict[str, Any],
    split: str | None,
    folder: Path,
    files: dict[str, list[Path]],
    index_of: dict[int, int],
    pictures: Pictures,
    options: Options,
) -> list[dict[str, Any]]:
    of_image: defaultdict[int, list[dict]] = defaultdict(list)
    for annotation in said["annotations"]:
        if annotation.get("category_id") not in index_of:
            raise TaskError(f"{path}: annotation {annotation.get('id')} is of category {annotation.get('category_id')}")
        of_image[annotation["image_id"]].append(annotation)
    rows = []
    for image in said["images"]:
        file = _image(path, image["file_name"], split, files)
        shown = file.relative_to(folder).as_posix()
        mask = np.zeros((image["height"], image["width"]), np.uint8)
        # A crowd lies below the instances in it.
        for annotation in sorted(of_image[image["id"]], key=lambda one: not one.get("iscrowd")):
            value = _IGNORE if annotation.get("iscrowd") else index_of[annotation["category_id"]]
            mask[_outline(path, annotation, *mask.shape)] = value
        rows.append(
            {
                "image": shown,
                "mask": pictures.save_mask(f"{shown}.png", mask),
                "split": split,
                "case": case_of(options.case, shown),
            }
        )
    return rows


def _image(path: Path, name: str, split: str | None, files: dict[str, list[Path]]) -> Path:
    ends = [file for file in files.get(name.rpartition("/")[2], ()) if file.as_posix().endswith(f"/{name}")]
    if len(ends) > 1 and split is not None:
        ends = [file for file in ends if any(split_word(part) == split for part in file.parts)] or ends
    if len(ends) != 1:
        there = f"{ends[0]} and {ends[1]} are both" if ends else "no file is"
        raise TaskError(f"{path}: names the image {name}: {there} called so, expected one")
    return ends[0]


def _outline(path: Path, annotation: dict[str, Any], height: int, width: int) -> np.ndarray:
    """bool [height, width]."""
    masks = require("pycocotools.mask", "eval")
    segmentation = annotation.get("segmentation")
    try:
        if isinstance(segmentation, list) and segmentation:
            runs = masks.merge(masks.frPyObjects(segmentation, height, width))
        elif isinstance(segmentation, dict) and isinstance(segmentation["counts"], list):
            runs = masks.frPyObjects(segmentation, height, width)
        elif isinstance(segmentation, dict):
            runs = segmentation
        else:
            raise ValueError("no segmentation, expected polygons or run lengths (boxes alone are no masks)")
        drawn = masks.decode(runs).astype(bool)
        if drawn.shape != (height, width):
            raise ValueError(f"shape {drawn.shape}, its image has {(height, width)}")
        return drawn
    except Exception as error:  # the library raises whatever a broken outline makes it stumble over
        raise TaskError(f"{path}: annotation {annotation.get('id')}: {error}") from error
