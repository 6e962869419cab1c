"""The teacher of a run: opened once, known by its content."""

from pathlib import Path
from typing import Any

import torch

from dexcore.data.feed.augment import channel_statistics
from dexcore.engine.config import ConfigError
from dexcore.engine.folder import RunFolderError
from dexcore.evaluate.embedding import FeaturesError, open_model
from dexcore.models import ModelFileError, Teacher, TeacherShape
from dexcore.models.inputs import slices_of
from dexcore.report.starts import read_starts
from dexcore.train.config import PretrainConfig

TEACHER = "teacher"  # in a line of starts.jsonl


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


def shape_of(teacher: Teacher | None) -> TeacherShape | None:
    """Of a teacher, if there is one."""
    return None if teacher is None else teacher.shape


def told_of(teacher: Teacher) -> dict[str, Any]:
    """What a line of starts.jsonl says of a teacher."""
    return {TEACHER: {"sha256": teacher.sha256, **teacher.shape._asdict()}}


def shape_told(folder: Path) -> TeacherShape | None:
    """The shape of the teacher that a run was begun with; None of one without."""
    told = _told(folder)
    return None if told is None else TeacherShape(int(told["dim"]), bool(told["has_class"]))


def check_teacher(folder: Path, teacher: Teacher | None) -> None:
    """Refuse to resume a run with another teacher than it began with.

    Raises:
        RunFolderError: the weights are others.
    """
    told = _told(folder)
    if teacher is not None and told is not None and told["sha256"] != teacher.sha256:
        raise RunFolderError(
            f"objective.teacher: its weights are not those that {folder} was begun with; expected the same ones"
        )


def _told(folder: Path) -> dict[str, Any] | None:
    return next((start[TEACHER] for start in read_starts(folder) if TEACHER in start), None)
