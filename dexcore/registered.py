"""The ``dex_vit_*`` models as timm knows them.

They are registered as soon as timm is imported (`dexcore`), which a layer may be the first to do: what builds them is
imported when one is built.
"""

from typing import Any

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import generate_default_cfgs, register_model
from torch import nn


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": None,
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "fixed_input_size": True,
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "license": "apache-2.0",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "dex_vit": _cfg(),
        "dex_vit_tiny_patch16_224": _cfg(),
        "dex_vit_small_patch16_224": _cfg(),
        "dex_vit_base_patch16_224": _cfg(),
        "dex_vit_base_patch16_256": _cfg(input_size=(3, 256, 256)),
        "dex_vit_large_patch16_224": _cfg(),
        "dex_vit_huge_patch14_224": _cfg(),
    }
)


def _create(variant: str, pretrained: bool, architecture: dict[str, int], **kwargs: Any) -> nn.Module:
    from dexcore.models.vit import create_registered

    return create_registered(variant, pretrained, architecture, **kwargs)


@register_model
def dex_vit(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DEX ViT of any size: what a saved model of another than the sizes below is to timm. Alone it is ViT-B/16."""
    return _create("dex_vit", pretrained, {}, **kwargs)


@register_model
def dex_vit_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DEX ViT-Ti/16."""
    architecture = {"patch_size": 16, "embed_dim": 192, "depth": 12, "num_heads": 3}
    return _create("dex_vit_tiny_patch16_224", pretrained, architecture, **kwargs)


@register_model
def dex_vit_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DEX ViT-S/16."""
    architecture = {"patch_size": 16, "embed_dim": 384, "depth": 12, "num_heads": 6}
    return _create("dex_vit_small_patch16_224", pretrained, architecture, **kwargs)


@register_model
def dex_vit_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DEX ViT-B/16."""
    architecture = {"patch_size": 16, "embed_dim": 768, "depth": 12, "num_heads": 12}
    return _create("dex_vit_base_patch16_224", pretrained, architecture, **kwargs)


@register_model
def dex_vit_base_patch16_256(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DEX ViT-B/16 at 256 px: the paper's encoder."""
    architecture = {"patch_size": 16, "embed_dim": 768, "depth": 12, "num_heads": 12}
    return _create("dex_vit_base_patch16_256", pretrained, architecture, **kwargs)


@register_model
def dex_vit_large_patch16_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DEX ViT-L/16."""
    architecture = {"patch_size": 16, "embed_dim": 1024, "depth": 24, "num_heads": 16}
    return _create("dex_vit_large_patch16_224", pretrained, architecture, **kwargs)


@register_model
def dex_vit_huge_patch14_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DEX ViT-H/14."""
    architecture = {"patch_size": 14, "embed_dim": 1280, "depth": 32, "num_heads": 16}
    return _create("dex_vit_huge_patch14_224", pretrained, architecture, **kwargs)
