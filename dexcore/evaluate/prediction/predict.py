"""A fine-tuned model on a file: probabilities, masks at native size, and what it looked at."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dexcore.evaluate.embedding.view import Preprocessing
from dexcore.evaluate.prediction.files import AskedFile
from dexcore.evaluate.prediction.images import input_of
from dexcore.evaluate.prediction.looked import Looked, look
from dexcore.evaluate.prediction.native import at_size, decided
from dexcore.evaluate.scores.predictions import packed_mask
from dexcore.evaluate.tasks.pixels import PixelsError
from dexcore.models import TaskModel
from dexcore.models.hub import CONFIG_FILE
from dexcore.models.pretrained import OtherModelError
from dexcore.nn import DEXMlp, route_by_rule
from dexcore.task_kinds import Kind


class NoHeadError(ValueError):
    """A saved model was not fine-tuned for a task."""


@dataclass(frozen=True, eq=False)
class Predicted:
    """What a model says of a file.

    Attributes:
        file: its images.
        probabilities: float32 [images, classes]; None of masks.
        masks: of each image, whole numbers [height, width] at its own size: indices of classes, or of a
            multilabel_segmentation bits, bit c for channel c. Empty of labels.
        pictured: the number of the image that a picture is of: the one with most pixels of a class other than the
            first (of channels: any), or the one that is most of the file's class.
        shown: that image as the network saw it, float32 in [0, 1], [S, S] or [S, S, 3]; None where nobody asked.
        looked: what happened to it; None where nobody asked, or it cannot be told.
        unseen: why it cannot be told; empty where it can.
    """

    file: AskedFile
    probabilities: np.ndarray | None
    masks: tuple[np.ndarray, ...]
    pictured: int
    shown: np.ndarray | None = None
    looked: Looked | None = None
    unseen: str = ""

    @property
    def of_file(self) -> np.ndarray:
        """Probabilities [classes] of the file as a whole: the mean over its images."""
        assert self.probabilities is not None
        return self.probabilities.mean(axis=0)

    def shares(self, classes: int) -> np.ndarray:
        """Of masks: the share of all pixels that is of each class, or channel, [classes]."""
        bits = self.file.task.is_multilabel
        counts = sum(pixels_of(mask, classes, bits) for mask in self.masks)
        return np.asarray(counts) / sum(mask.size for mask in self.masks)


def pixels_of(mask: np.ndarray, classes: int, bits: bool) -> np.ndarray:
    """How many pixels are of each class, or have each channel's bit."""
    if bits:
        return np.array([np.count_nonzero(mask >> channel & 1) for channel in range(classes)])
    return np.bincount(mask.ravel(), minlength=classes)


def labels_of(kind: Kind, classes: tuple[str, ...], probabilities: np.ndarray) -> tuple[str, ...]:
    """The class with the highest probability; of a multilabel task those above 0.5, perhaps none."""
    if kind == "multilabel":
        return tuple(name for name, value in zip(classes, probabilities, strict=True) if value > 0.5)
    return (classes[int(probabilities.argmax())],)


def open_task_model(folder: str | os.PathLike[str]) -> TaskModel:
    """A fine-tuned model of a folder: one that ``save_pretrained`` wrote, or a run of fine-tuning around it.

    Raises:
        NoHeadError: it holds a pre-trained model without a head, or several models.
        FileNotFoundError, ModelFileError: as `TaskModel.from_pretrained`.
    """
    path = Path(folder)
    inside = sorted(
        one.parent for one in [*path.glob(f"model/{CONFIG_FILE}"), *path.glob(f"seed-*/model/{CONFIG_FILE}")]
    )
    if inside and not (path / CONFIG_FILE).exists():
        if len(inside) > 1:
            raise NoHeadError(f"{folder} holds {len(inside)} models, expected one: pass {inside[0]}")
        folder = inside[0]
    try:
        return TaskModel.from_pretrained(folder)
    except OtherModelError as error:
        raise NoHeadError(
            f"{folder} holds a pre-trained {error.found}, which has no head for a task: fine-tune it (dexcore "
            f"finetune TASK {folder}), and pass the fine-tuned model; for its features use dexcore embed"
        ) from error


@torch.inference_mode()
def predict_file(model: TaskModel, file: AskedFile, batch_size: int = 16, *, looking: bool = True) -> Predicted:
    """Predict every image of a file. The model is in evaluation mode, on any device.

    Args:
        model: fine-tuned.
        file: its images.
        batch_size: images a forward.
        looking: also tell of one image where the model looked. What goes wrong there leaves the prediction as it is.

    Raises:
        PixelsError: an image cannot be read, or its values are not as the task's; or experts are chosen by a rule that
            does not know its modality.
        FeaturesError: the encoder does not say how its images are made.
    """
    task, view = model.task, input_of(model.encoder, model.task)
    weight = model.encoder.patch_embed.proj.weight
    probabilities: list[np.ndarray] = []
    masks: list[np.ndarray] = []
    for names, sizes, inputs in _batches(file, view, batch_size):
        _route(model, names, file)
        logits = model(inputs.to(weight)).float()
        if not task.is_segmentation:
            probabilities += list(model.probabilities(logits).cpu().numpy())
            continue
        for name, (height, width), own in zip(names, sizes, logits, strict=True):
            masks.append(packed_mask(name, decided(task.kind, at_size(own[None], height, width)[0])))
    if task.is_segmentation:
        most = [np.count_nonzero(mask) for mask in masks]
    else:
        most = [row[int(np.mean(probabilities, axis=0).argmax())] for row in probabilities]
    pictured = int(np.argmax(most)) if any(most) else len(most) // 2
    found = Predicted(file, None if task.is_segmentation else np.stack(probabilities), tuple(masks), pictured)
    if not looking:
        return found
    shown = view(file.image(file.images[pictured]))
    found = replace(found, shown=_as_seen(shown, view))
    try:
        _route(model, [file.images[pictured]], file)
        return replace(found, looked=look(model, shown.to(weight)))
    except Exception as error:  # whatever an encoder is built of: the answer is there
        return replace(found, unseen=str(error) or type(error).__name__)


def _route(model: TaskModel, names: list[str], file: AskedFile) -> None:
    """Give images the experts of the model's rule, where it has one and experts run."""
    if any(isinstance(part, DEXMlp) and part.mode == "experts" for part in model.modules()):
        try:
            route_by_rule(model, names, [file.modality.value] * len(names))
        except ValueError as error:
            raise PixelsError(f"{file.path}: {error}") from error


def _batches(
    file: AskedFile, view: Preprocessing, batch_size: int
) -> Iterator[tuple[list[str], list[tuple[int, int]], Tensor]]:
    """Names, native sizes and inputs [b, C, S, S]."""
    names: list[str] = []
    sizes: list[tuple[int, int]] = []
    inputs: list[Tensor] = []
    for number, (name, image) in enumerate(file, start=1):
        names.append(name)
        sizes.append((image.shape[0], image.shape[1]))
        inputs.append(view(image))
        if len(names) == batch_size or number == len(file):
            yield names, sizes, torch.stack(inputs)
            names, sizes, inputs = [], [], []


def _as_seen(shown: Tensor, view: Preprocessing) -> np.ndarray:
    """The input [C, S, S] in [0, 1] again: [S, S, 3] of three channels, else the first."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (view.mean, view.std))
    pixels = (shown * std + mean).clamp(0, 1).numpy()
    return np.moveaxis(pixels, 0, 2) if len(pixels) == 3 else pixels[0]
