"""nnU-Net's raw data: imagesTr, labelsTr, dataset.json; imagesTs and labelsTs where there are any.

Medical Segmentation Decathlon's, whose images have no number of a channel, are read too.
"""

import json
from pathlib import Path
from typing import Any

from dexcore.evaluate.tasks.importers.options import Imported, Options, case_of, plane_rows
from dexcore.evaluate.tasks.pixels import PixelsError, geometry_problem
from dexcore.evaluate.tasks.spec import TaskError
from dexcore.evaluate.tasks.write import write_task


def import_nnunet(src: Path, out: Path, options: Options) -> Imported:
    """Write the task of a raw data set. A case is a file of labels, unless ``options.case`` says otherwise.

    Of its channels ``options.channel`` is the image. Regions become channels that may overlap. Without labelsTs the
    split is drawn.

    Raises:
        TaskError: dataset.json is none; an image or a mask is missing; their affines, spacings or shapes differ.
    """
    said = _read(src / "dataset.json")
    ending = said.get("file_ending", ".nii.gz")
    labels = said["labels"]
    if all(isinstance(name, str) and name.isdecimal() for name in labels):  # of version 1: {"0": "background"}
        labels = {name: int(value) for value, name in labels.items()}
    ignore = labels.pop("ignore", None)
    regions = {name: value for name, value in labels.items() if isinstance(value, list)}
    if regions and ignore is not None:
        raise TaskError(f"{src / 'dataset.json'}: has regions and an ignore label, expected one of both")
    rows, left = [], []
    has_test = (src / "labelsTs").is_dir()
    for suffix, split in (("Tr", "train"), ("Ts", "test")):
        for mask in sorted((src / f"labels{suffix}").glob(f"*{ending}")):
            case = mask.name.removesuffix(ending)
            image = src / f"images{suffix}" / f"{case}_{options.channel:04d}{ending}"
            if not image.is_file() and (image.parent / mask.name).is_file():
                image = image.parent / mask.name
            if not image.is_file():
                raise TaskError(f"{image}: is missing, {mask} is its mask")
            shown = [path.relative_to(src).as_posix() for path in (image, mask)]
            _check_geometry(image, mask)
            cells = {"case": case_of(options.case, case) or case, "split": split if has_test else ""}
            rows += plane_rows(image, shown[0], cells, {"mask": shown[1]}, options.axis)
    known = {row["volume"] if "volume" in row else row["image"] for row in rows}
    for image in sorted(src.glob(f"images*/*_{options.channel:04d}{ending}")):
        if image.relative_to(src).as_posix() not in known:
            left.append((image.relative_to(src).as_posix(), "no mask"))
    common: dict[str, Any] = {"normalization": options.normalization, "units": options.units}
    if regions:
        every = {name: value if isinstance(value, list) else [value] for name, value in labels.items() if value != 0}
        common |= {"kind": "multilabel_segmentation", "regions": every}
    else:
        ordered = sorted(labels, key=lambda name: labels[name])
        if [labels[name] for name in ordered] != list(range(len(ordered))):
            raise TaskError(f"{src / 'dataset.json'}: labels are {labels}, expected 0 to {len(ordered) - 1}")
        common |= {"kind": "segmentation", "classes": ordered, "ignore": ignore}
    task = write_task(
        out,
        options.name or src.resolve().name,
        rows,
        root=src,
        modality=options.modality,
        split="column" if has_test else options.drawn,
        unit="case",
        **common,
    )
    return Imported(task, left)


def _read(path: Path) -> dict[str, Any]:
    try:
        said = json.loads(path.read_bytes())
    except OSError as error:
        raise TaskError(f"{path}: {error.strerror}, expected nnU-Net's description of its data") from error
    except ValueError as error:
        raise TaskError(f"{path}: is no JSON: {error}") from error
    if not isinstance(said, dict) or not isinstance(said.get("labels"), dict):
        raise TaskError(f"{path}: has no labels, expected their names and values")
    return said


def _check_geometry(image: Path, mask: Path) -> None:
    try:
        problem = geometry_problem(str(image), str(mask))
    except (PixelsError, OSError) as error:
        raise TaskError(str(error)) from error
    if problem:
        raise TaskError(problem)
