"""The teacher of a run: opened once, known by its content."""

import hashlib
from pathlib import Path

import torch

from dexcore.data.feed.augment import channel_statistics
from dexcore.engine.config import ConfigError
from dexcore.engine.folder import RunFolderError
from dexcore.evaluate.embedding import FeaturesError, open_model
from dexcore.models import ModelFileError, Teacher
from dexcore.models.inputs import slices_of
from dexcore.report.starts import read_starts
from dexcore.train.config import PretrainConfig

TEACHER = "teacher_sha256"  # in a line of starts.jsonl


def open_teacher(config: PretrainConfig, device: torch.device) -> Teacher | None:
    """The teacher that ``config.objective`` names, on ``device``; None of a run without one.

    Raises:
        ConfigError: it cannot be opened, or cannot teach a model with such patches, channels and slices.
    """
    if config.objective.kind != "distill":
        return None
    rows = config.model.image_size // config.model.patch_size
    statistics = channel_statistics(config.data.statistics, config.model.in_chans)
    try:
        model = open_model(config.objective.teacher, config.objective.weights or None)
        if (slices := slices_of(model)) != config.data.slices:
            raise ValueError(f"expected one whose channels are data.slices = {config.data.slices}, got {slices}")
        return Teacher(model, (rows, rows), *statistics).to(device)
    except (FeaturesError, FileNotFoundError, ModelFileError, ValueError) as error:
        raise ConfigError(f"objective.teacher: {error}") from error


def content_of(teacher: Teacher) -> str:
    """SHA-256 of a teacher's weights, by name, wherever they come from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(teacher.model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def check_teacher(folder: Path, teacher: Teacher | None) -> None:
    """Refuse to resume a run with another teacher than it began with.

    Raises:
        RunFolderError: the weights are others.
    """
    if teacher is None:
        return
    then = next((start[TEACHER] for start in read_starts(folder) if TEACHER in start), None)
    if then is not None and then != content_of(teacher):
        raise RunFolderError(
            f"objective.teacher: its weights are not those that {folder} was begun with; expected the same ones"
        )
