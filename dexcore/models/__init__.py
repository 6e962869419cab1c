"""Vision transformers and masked autoencoders with DEX layers, and their files."""

from dexcore.models.dense_checkpoint import DenseLoad, load_dense_checkpoint
from dexcore.models.description import NotDescribableError
from dexcore.models.mae import MAEOutput, MaskedAutoencoder
from dexcore.models.pretrained import ModelFileError
from dexcore.models.reference_checkpoint import load_reference_checkpoint, save_reference_checkpoint
from dexcore.models.vit import DEXVisionTransformer

__all__ = [
    "DEXVisionTransformer",
    "DenseLoad",
    "MAEOutput",
    "MaskedAutoencoder",
    "ModelFileError",
    "NotDescribableError",
    "load_dense_checkpoint",
    "load_reference_checkpoint",
    "save_reference_checkpoint",
]
