"""``dexcore predict``: labels or masks of images, by a fine-tuned model, with pictures of what it looked at.

Heavy imports wait until the command runs.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dexcore.evaluate.prediction.predict import Predicted
    from dexcore.models import TaskDescription, TaskModel

_PREDICT = (
    "Predict labels or masks of images by a fine-tuned model. IMAGE is a file of any kind that dexcore reads (PNG, "
    "JPEG, TIFF, DICOM, NIfTI, NRRD, a video, ...), or a folder with such files in it or below it; of a volume every "
    "slice is predicted, and the mask of a NIfTI volume is one too, with its affine. One image of a file is asked for "
    "as scan.nii.gz#axial=12 or stack.tif#3. In a folder, what is no image, masks beside their images, results of "
    "earlier calls, and what cannot be predicted is left out, and counted. "
    "Written: predictions.csv, masks at the images' own size (whole numbers, the indices of classes), and of each file "
    "a picture of where the model looked and which experts took the image."
)
_EXIT_SOME = 2  # some files could not be predicted; the others were
_NAMED = 3  # classes told on a line


def add_predict_command(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``dexcore predict`` to its parser."""
    parser.description = _PREDICT
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGE", help="files, or folders with images")
    add(
        "--model",
        required=True,
        metavar="DIR",
        help="a fine-tuned model's folder, or its run's; or user/name on the Hub",
    )
    add("--out", type=Path, default=Path("predictions"), metavar="DIR", help="default: predictions")
    add("--modality", metavar="M", help="of the images, where the model is for several and files do not say theirs")
    add("--axis", choices=("sagittal", "coronal", "axial"), help="across which volumes are cut (default: the task's)")
    add(
        "--spacing",
        nargs=2,
        type=float,
        metavar=("ROWS", "COLUMNS"),
        help="mm between rows and between columns, of labels (default: as the files say)",
    )
    add(
        "--mode",
        choices=("experts", "director"),
        help="of a model with experts (default: as it was fine-tuned, which its head is for)",
    )
    add("--device", default="auto", metavar="D", help="auto, cpu, cuda, mps (default: auto)")
    add("--batch-size", type=int, default=16, metavar="N", help="images a forward (default: 16)")
    add("--no-pictures", action="store_true", help="write no pictures")


def run_predict(arguments: argparse.Namespace) -> int:
    """Run ``dexcore predict``; the return value is the process's: 2 where a file that was named failed, or all did."""
    from dexcore.checks import check_whole
    from dexcore.engine.device import choose_device
    from dexcore.evaluate.prediction.files import AskedFile, asked_modality
    from dexcore.evaluate.prediction.predict import open_task_model, predict_file
    from dexcore.evaluate.prediction.written import TABLE, Table, write_prediction

    check_whole("--batch-size", arguments.batch_size, 1)
    out: Path = arguments.out
    asked, left = _asked(arguments.images, out)
    model = open_task_model(arguments.model)
    _choose_mode(model, arguments.mode, arguments.model)
    modality = None if arguments.modality is None else asked_modality(model.task, arguments.modality)
    spacing = None if arguments.spacing is None else _spacing(arguments.spacing, model.task)
    table = Table(out / TABLE, model.task)
    model = model.to(choose_device(arguments.device))
    failed = done = 0
    for path, named in asked.items():
        try:
            file = AskedFile(path, model.task, modality, arguments.axis, spacing)
            found = predict_file(model, file, arguments.batch_size, looking=not arguments.no_pictures)
            out.mkdir(parents=True, exist_ok=True)
            write_prediction(found, out, table)
        except ValueError as error:  # of this file; the others are predicted all the same
            print(f"{'error' if named else 'left out'}: {error}", file=sys.stderr)
            failed += named
            left += not named
            continue
        done += 1
        for note in _notes(found):
            print(f"note: {path} {note}", file=sys.stderr)
        print(f"{path}: {_told(found)}")
    if done:
        masks = ["masks"] if model.task.is_segmentation else []
        pictures = [] if arguments.no_pictures else ["pictures"]
        print(f"written to {out}: {', '.join([TABLE, *masks, *pictures])}{f'; {left} left out' if left else ''}")
    if failed:
        print(f"error: {failed} of {len(asked)} files could not be predicted", file=sys.stderr)
    elif not done:
        print(f"error: none of {len(asked)} image files could be predicted", file=sys.stderr)
    return _EXIT_SOME if failed or not done else 0


def _asked(images: Sequence[str], out: Path) -> tuple[dict[str, bool], int]:
    """The files to be predicted, each with whether it was named or found in a folder; how many of folders are left out.

    Raises:
        ValueError: there is none, or results could lie over the user's own files.
    """
    from dexcore.data.assemble.image_files import image_files
    from dexcore.evaluate.prediction.written import holds_predictions

    _check_out(out, images)
    asked: dict[str, bool] = {}
    left = 0
    without: list[str] = []
    for image in images:
        folder = Path(image)
        if not folder.is_dir():
            asked[image] = True
            continue
        found, rejects = image_files(folder, out, holds_predictions)
        for reject in rejects:
            print(f"left out: {folder / reject.path}: {reject.reason}", file=sys.stderr)
        for path in found:
            asked.setdefault(str(path), False)
        left += len(rejects)
        if not found:
            without.append(f"{folder}: holds no image that dexcore reads")
    if not asked and len(without) == 1:
        raise ValueError(f"{without[0]}{f' ({left} left out)' if left else ''}")
    for line in without:
        print(f"left out: {line}", file=sys.stderr)
    if not asked:
        raise ValueError(f"none of {len(without)} folders holds an image that dexcore reads")
    return asked, left + len(without)


def _notes(found: "Predicted") -> Iterator[str]:
    """What of a file should be known, to be read after its path."""
    file = found.file
    if file.said not in (None, file.modality):
        yield f"says that it is {file.said}, it was predicted as {file.modality}"
    if file.doubtful is not None:
        rows, columns = file.doubtful
        yield (
            f"says that its pixels are {rows:g} x {columns:g} mm; of the training's images a table said it (--spacing "
            "says another)"
        )
    if file.volumes > 1:
        yield f"holds {file.volumes} volumes, the first was predicted"
    if found.unseen:
        yield f"gets no picture: {found.unseen}"


def _choose_mode(model: "TaskModel", wanted: str | None, folder: str) -> None:
    """Set the mode of a model with experts."""
    from dexcore.nn import DEXMlp, set_mode

    saved = {layer.mode for layer in model.modules() if isinstance(layer, DEXMlp)}
    if wanted and not saved:
        raise ValueError(f"--mode is {wanted}, but {folder} is a dense model: it has no experts")
    if wanted is None or saved == {wanted}:
        return
    print(
        f"note: {folder} was fine-tuned and saved in {' and '.join(sorted(saved))} mode; in {wanted} mode its head "
        "reads what it was not trained on: expect other and worse answers",
        file=sys.stderr,
    )
    set_mode(model, wanted)


def _check_out(out: Path, images: Sequence[str]) -> None:
    """Refuse a folder in which results could lie over the user's own files: many a data set has an NAME_mask.png."""
    from dexcore.evaluate.prediction.written import TABLE
    from dexcore.evaluate.tasks.places import located

    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file: expected a folder")
    own = not out.exists() or not any(out.iterdir()) or (out / TABLE).is_file()
    for image in images:
        folder, place = Path(image), out.resolve()
        if folder.is_dir():
            foreign = place == folder.resolve() or (not own and place.is_relative_to(folder.resolve()))
            where = "is, or lies in,"
        else:
            foreign = place == located(image)[0].parent.resolve()
            where = "holds"
        if foreign:
            raise ValueError(
                f"--out {out} {where} {image}, and results could lie over files of yours: pass another folder"
            )


def _spacing(given: Sequence[float], task: "TaskDescription") -> tuple[float, float]:
    if task.is_segmentation:
        raise ValueError("--spacing is for labels: masks are made of the images' own pixels")
    rows, columns = given
    if not (0 < rows < float("inf") and 0 < columns < float("inf")):
        raise ValueError(f"--spacing must be mm between rows and between columns, above 0, got {rows:g} {columns:g}")
    return rows, columns


def _told(found: "Predicted") -> str:
    """One line."""
    from dexcore.evaluate.prediction.predict import labels_of

    task = found.file.task
    images = f" ({len(found.file)} images)" if len(found.file) > 1 else ""
    if task.is_segmentation:
        shares = found.shares(len(task.classes))
        told = list(zip(task.classes, shares, strict=True))[0 if task.is_multilabel else 1 :]
        parts = [f"{name} {100 * share:.2f} %" for name, share in sorted(told, key=lambda one: -one[1])]
        return ", ".join(parts[:_NAMED]) + images
    label = ", ".join(labels_of(task.kind, task.classes, found.of_file)) or "none of the classes"
    order = sorted(zip(task.classes, found.of_file, strict=True), key=lambda one: -one[1])
    return f"{label} ({', '.join(f'{name} {value:.3f}' for name, value in order[:_NAMED])}){images}"
