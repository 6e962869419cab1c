"""Vision transformers and masked autoencoders with DEX layers, heads for tasks, and their files."""

from dexcore.models.dense_checkpoint import DenseLoad, load_dense_checkpoint
from dexcore.models.description import NotDescribableError
from dexcore.models.distillation import DistillationOutput, DistilledEncoder, Teacher, TeacherShape
from dexcore.models.mae import MAEOutput, MaskedAutoencoder
from dexcore.models.pretrained import ModelFileError
from dexcore.models.pyramid import FeaturePyramid
from dexcore.models.reference_checkpoint import load_reference_checkpoint, save_reference_checkpoint
from dexcore.models.task_model import ClassificationHead, TaskDescription, TaskModel
from dexcore.models.unetr import UNETRDecoder
from dexcore.models.vit import DEXVisionTransformer

__all__ = [
    "ClassificationHead",
    "DEXVisionTransformer",
    "DenseLoad",
    "DistillationOutput",
    "DistilledEncoder",
    "FeaturePyramid",
    "MAEOutput",
    "MaskedAutoencoder",
    "ModelFileError",
    "NotDescribableError",
    "TaskDescription",
    "TaskModel",
    "Teacher",
    "TeacherShape",
    "UNETRDecoder",
    "load_dense_checkpoint",
    "load_reference_checkpoint",
    "save_reference_checkpoint",
]
