"""What a fine-tuned model is shown of an image: the same in training, in evaluation and of a file by itself."""

from typing import Any

import numpy as np
from timm.models.vision_transformer import VisionTransformer

from dexcore.data.assemble.slices import square
from dexcore.data.modality import Modality
from dexcore.data.sources.recipe import AXES
from dexcore.evaluate.embedding.view import Preprocessing, declared_preprocessing
from dexcore.evaluate.tasks import Row, Task
from dexcore.evaluate.tasks.pixels import Plane, normalised
from dexcore.evaluate.tasks.places import parted
from dexcore.models import TaskDescription


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
    )


def task_image(task: Task, row: Row) -> np.ndarray:
    """An image of a task in [0, 1], before `input_of`: for masks on their own pixels, else with square pixels.

    Raises:
        TaskError: it cannot be read, or holds values beyond the declared range; with task, file and line.
    """
    return task.image(row) if task.spec.is_segmentation else task.record(row).image


def plane_image(plane: Plane, task: TaskDescription, modality: Modality) -> np.ndarray:
    """The same of a file's image, outside of any task: what `task_image` gives of it.

    Raises:
        PixelsError: its values cannot be brought to [0, 1] as the model's were.
    """
    units: Any = task.units
    image, _ = normalised(plane, modality, task.normalization, units, task.range)
    if task.is_segmentation:
        return image
    try:
        return square(image, plane.spacing)[0]
    except ValueError:  # pixels too long to be made square: shown as they are, as `Task.record` does
        return image


def input_of(encoder: VisionTransformer, task: TaskDescription) -> Preprocessing:
    """What makes the network's input [C, S, S] of an image in [0, 1], as the encoder and the task say.

    Raises:
        FeaturesError: the encoder does not say how its images are made.
    """
    return declared_preprocessing(encoder, task.crop)
