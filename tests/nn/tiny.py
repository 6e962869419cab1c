"""Small dense ViTs, and what to look at in models made of them."""

import torch
from timm.models.vision_transformer import VisionTransformer

from dexcore.nn import DEXMlp

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 5}
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def layers(model):
    return [module for module in model.modules() if isinstance(module, DEXMlp)]


def shake(model, amount=0.2):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=amount)
    return model


def dense(**kwargs):
    return shake(VisionTransformer(**{**TINY, **kwargs}))
