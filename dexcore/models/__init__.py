"""Vision transformers and masked autoencoders with DEX layers, and their files."""

from dexcore.models.mae import MAEOutput, MaskedAutoencoder
from dexcore.models.vit import DEXVisionTransformer

__all__ = [
    "DEXVisionTransformer",
    "MAEOutput",
    "MaskedAutoencoder",
]
