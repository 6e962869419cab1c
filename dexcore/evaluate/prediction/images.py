"""What a fine-tuned model is shown of an image: the same in training, in evaluation and of a file by itself."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from timm.models.vision_transformer import VisionTransformer

from dexcore.data.assemble.slices import square
from dexcore.data.modality import Modality
from dexcore.data.record import AXES
from dexcore.evaluate.embedding.view import Preprocessing, declared_preprocessing
from dexcore.evaluate.tasks import Row, Task
from dexcore.evaluate.tasks.pixels import PixelsError, Plane, normalised, read_plane
from dexcore.evaluate.tasks.places import parted
from dexcore.models import TaskDescription

_SAME_SHAPE = 1e-3  # of rows to columns
_LOOKED_AT = 8


def described(task: Task, crop: str | None = None) -> TaskDescription:
    """What a model that is fine-tuned on a task carries of it.

    Args:
        task: whose training images say modalities and the axis of volumes.
        crop: "center" or "whole"; None: "whole" for masks, else "center".
    """
    spec = task.spec
    rows = task.split("train") or task.rows
    axes = {inside for _, inside, _ in (parted(row.image) for row in rows) if inside in AXES}
    return TaskDescription(
        name=spec.name,
        kind=spec.kind,
        classes=spec.classes,
        modalities=tuple(modality.value for modality in task.modalities),
        normalization=spec.normalization,
        units=spec.units,
        range=spec.range,
        crop=crop or ("whole" if spec.is_segmentation else "center"),
        axis=axes.pop() if len(axes) == 1 else None,
        table_spacing=not spec.is_segmentation and _table_shapes(task, rows),
    )


def _table_shapes(task: Task, rows: Sequence[Row]) -> bool:
    """Whether pixels have another shape by the table than by their files; of many rows some are looked at.

    An imported table says what the files say: then a file by itself says it too.
    """
    said = [(row, row.spacing[0] / row.spacing[1]) for row in rows if row.spacing is not None]
    uneven = [one for one in said if abs(one[1] - 1) > _SAME_SHAPE]
    even = [one for one in said if abs(one[1] - 1) <= _SAME_SHAPE]
    for row, shape in (one for some in (uneven, even) for one in some[:: -(-len(some) // _LOOKED_AT) or 1]):
        try:
            spacing = read_plane(task.spec.located(row.image)).spacing
        except PixelsError:  # which whoever needs its pixels will be told
            continue
        own = 1.0 if spacing is None else spacing[0] / spacing[1]
        if abs(shape / own - 1) > _SAME_SHAPE:
            return True
    return False


def task_image(task: Task, row: Row) -> np.ndarray:
    """An image of a task in [0, 1], before `input_of`: for masks on their own pixels, else with square pixels.

    Raises:
        TaskError: it cannot be read, or holds values beyond the declared range; with task, file and line.
    """
    return task.image(row) if task.spec.is_segmentation else task.record(row).image


def plane_image(
    plane: Plane, task: TaskDescription, modality: Modality, spacing: tuple[float, float] | None = None
) -> np.ndarray:
    """The same of a file's image, outside of any task: what `task_image` gives of it.

    ``spacing``, mm between rows and between columns, stands for what a task's table says; None: what the file says.

    Raises:
        PixelsError: its values cannot be brought to [0, 1] as the model's were.
    """
    units: Any = task.units
    image, _ = normalised(plane, modality, task.normalization, units, task.range)
    if task.is_segmentation:
        return image
    try:
        return square(image, spacing or plane.spacing)[0]
    except ValueError:  # pixels too long to be made square: shown as they are, as `Task.record` does
        return image


def input_of(encoder: VisionTransformer, task: TaskDescription) -> Preprocessing:
    """What makes the network's input [C, S, S] of an image in [0, 1], as the encoder and the task say.

    Raises:
        FeaturesError: the encoder does not say how its images are made.
    """
    return declared_preprocessing(encoder, task.crop)
