"""What images a model expects: timm's ``pretrained_cfg`` on the encoder, and the view that `preprocess` makes.

Beside the weights, config.json says it in timm's words, so that `timm.create_model("local-dir:...")` and
`timm.data.resolve_model_data_config` answer with it:

    architecture, num_classes, model_args     what timm builds the encoder from (a DEX encoder's only)
    pretrained_cfg                            image size, mean, deviation, interpolation, crop
    normalization                             modality -> how its raw pixels came to lie in [0, 1]
    slices                                    that its channels are so many neighbouring slices of a volume
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.layers import to_2tuple
from timm.models import adapt_input_conv, is_model
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from dexcore.checks import check_kind, check_number, check_odd, check_whole
from dexcore.models.description import describe_vit
from dexcore.view import as_pixels, evaluation_view

GENERIC = "dex_vit"  # the registered model of any size
# `evaluation_view` in timm's words: "box" is its nearest, the difference is told in docs/saved_models.md.
AREA_VIEW = {"interpolation": "box", "crop_pct": 1.0, "crop_mode": "center"}
_STATISTICS = ("mean", "std")
_LARGEST = 1e6


def set_inputs(
    vit: VisionTransformer,
    mean: Sequence[float],
    std: Sequence[float],
    normalization: Mapping[str, Sequence[str]],
    slices: int = 1,
) -> None:
    """Note that the model sees `evaluation_view`; see `PretrainedMixin.set_preprocessing`."""
    noted = {"mean": list(mean), "std": list(std)}
    _check_statistics(noted, vit.in_chans)
    check_kind("normalization", normalization, Mapping, "a dict, modality -> list of names")
    methods = {modality: list(names) for modality, names in normalization.items()}
    _check_normalization(methods)
    _check_slices(slices, vit.in_chans)
    _note(vit, {**AREA_VIEW, **noted}, methods, slices)


def described_inputs(vit: VisionTransformer) -> dict[str, Any]:
    """The keys of config.json that timm reads, ``normalization``, and ``slices`` where they are the channels.

    A dense encoder gets no ``architecture``: no registered model of timm's reads it out of an autoencoder's file.
    """
    said = _said(vit)
    cfg = {
        "input_size": (vit.in_chans, *vit.patch_embed.img_size),
        "fixed_input_size": not vit.dynamic_img_size,
        "num_classes": vit.num_classes,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        **{name: said[name] for name in AREA_VIEW if said.get(name) is not None},
        **{name: per_channel(said[name], vit.in_chans) for name in _STATISTICS if said.get(name) is not None},
    }
    arguments = describe_vit(vit)
    built_by = {"architecture": _architecture(said.get("architecture")), "model_args": arguments}
    described = {"num_classes": vit.num_classes, "pretrained_cfg": cfg, "normalization": normalization_of(vit)}
    slices = {"slices": slices_of(vit)} if slices_of(vit) > 1 else {}
    return (built_by if "num_experts" in arguments else {}) | described | slices


def restore_inputs(vit: VisionTransformer, config: Mapping[str, Any]) -> None:
    """Note on a loaded encoder what a config.json, which may hold anything or nothing, says of its images.

    Raises:
        TypeError, ValueError: a value is of another kind or out of its range; the message names it.
    """
    cfg, methods = config.get("pretrained_cfg", {}), config.get("normalization", {})
    check_kind("pretrained_cfg", cfg, dict, "an object")
    said = {name: cfg[name] for name in (*AREA_VIEW, *_STATISTICS) if name in cfg}
    for name in ("interpolation", "crop_mode"):
        if name in said:
            check_kind(name, said[name], str, "a name")
    if "crop_pct" in said:
        check_number("crop_pct", said["crop_pct"], "above 0 and at most 1", lambda x: 0 < x <= 1)
    _check_statistics(said, vit.in_chans)
    _check_normalization(methods)
    slices = config.get("slices", 1)
    _check_slices(slices, vit.in_chans)
    _note(vit, {"architecture": config.get("architecture"), **said}, methods, slices)


def normalization_of(vit: VisionTransformer) -> dict[str, list[str]]:
    """Modality -> how its raw pixels came to lie in [0, 1] (`dexcore.data.normalize`); empty where nothing is known."""
    return dict(getattr(vit, "input_normalization", {}))


def slices_of(model: Any) -> int:
    """How many neighbouring slices of a volume are the model's channels, as it says; 1: they are an image's own."""
    return getattr(model, "input_slices", 1)


def knows_view(vit: VisionTransformer) -> bool:
    """Whether the model says that it sees `evaluation_view`, and with which statistics."""
    said = _said(vit)
    return all(said.get(name) == value for name, value in AREA_VIEW.items()) and all(map(said.get, _STATISTICS))


def adapt(vit: VisionTransformer, num_classes: int | None, in_chans: int | None, img_size: Any) -> None:
    """Give a loaded model another classifier, other channels or another size, its weights adapted as timm does.

    A classifier of another size is drawn anew; the patch embedding is summed or repeated over channels
    (`adapt_input_conv`), mean and deviation become their average, and they are neighbouring slices no more; positions
    are resampled.

    Raises:
        TypeError, ValueError: a size is no whole number in its range; the message names it.
    """
    slices = slices_of(vit) if in_chans in (None, vit.in_chans) else 1
    if num_classes is not None:
        check_whole("num_classes", num_classes, 0)
        if num_classes != vit.num_classes:
            vit.reset_classifier(num_classes)
    if in_chans is not None and in_chans != vit.in_chans:
        check_whole("in_chans", in_chans, 1)
        projection = vit.patch_embed.proj
        weight = adapt_input_conv(in_chans, projection.weight.detach(), base_chans=vit.in_chans)
        projection.weight = nn.Parameter(weight.contiguous(), requires_grad=projection.weight.requires_grad)
        projection.in_channels = vit.in_chans = in_chans
    if img_size is not None:
        vit.set_input_size(img_size=checked_size(img_size))
    _note(vit, _said(vit), normalization_of(vit), slices)


def carry_inputs(vit: VisionTransformer, other: VisionTransformer) -> None:
    """Note on ``other`` what ``vit`` says of its images."""
    _note(other, _said(vit), normalization_of(vit), slices_of(vit))


def checked_size(img_size: Any) -> tuple[int, int]:
    """Height and width of ``img_size``, one number or two.

    Raises:
        TypeError, ValueError: it is neither.
    """
    sides = to_2tuple(img_size)
    if len(sides) != 2:
        raise ValueError(f"img_size must be a number or height and width, got {img_size!r}")
    for side in sides:
        check_whole("img_size", side, 1)
    return sides


def preprocess(vit: VisionTransformer, images: Any) -> torch.Tensor:
    """The run's evaluation view of one image or several; see `PretrainedMixin.preprocess`."""
    if not knows_view(vit):
        said = _said(vit)
        told = {name: said.get(name) for name in (*AREA_VIEW, *_STATISTICS)}
        raise ValueError(
            f"preprocess makes the view of dexcore's runs, and this model does not say that it saw it: {told}; use "
            "timm.data.create_transform(**timm.data.resolve_model_data_config(model)), or tell with set_preprocessing"
        )
    height, width = vit.patch_embed.img_size
    if height != width:
        raise ValueError(f"preprocess makes square images, the model takes {vit.in_chans} x {height} x {width}")
    mean, std = (per_channel(_said(vit)[name], vit.in_chans) for name in _STATISTICS)
    if isinstance(images, list | tuple) or getattr(images, "ndim", 0) == 4:
        if not len(images):
            raise ValueError("images must be at least one, got none")
        return torch.stack([evaluation_view(as_pixels(image, vit.in_chans), height, mean, std) for image in images])
    return evaluation_view(as_pixels(images, vit.in_chans), height, mean, std)


def per_channel(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """One number a channel; where there are other channels than numbers their average, as timm does."""
    given = tuple(float(value) for value in values)
    return given if len(given) == channels else (sum(given) / len(given),) * channels


def _said(vit: VisionTransformer) -> dict[str, Any]:
    """timm's configuration of the model; {} where it has none."""
    return getattr(vit, "pretrained_cfg", None) or {}


def _note(vit: Any, said: Mapping[str, Any], normalization: Mapping[str, list[str]], slices: int) -> None:
    """Write ``pretrained_cfg`` (with ``said`` of the view), the arguments that rebuild the model, normalization and
    ``slices``.
    """
    vit.pretrained_cfg = dict(said)
    described = described_inputs(vit)
    architecture = described.get("architecture", said.get("architecture"))
    vit.pretrained_cfg = vit.default_cfg = {**described["pretrained_cfg"], "architecture": architecture}
    vit.input_normalization, vit.input_slices = dict(normalization), slices
    if "model_args" in described:
        vit._model_args = described["model_args"]


def _architecture(name: Any) -> str:
    """The registered model that timm builds: the one it was made as, else that of any size."""
    return name if isinstance(name, str) and name.startswith(f"{GENERIC}_") and is_model(name) else GENERIC


def _check_statistics(said: Mapping[str, Any], channels: int) -> None:
    for name in _STATISTICS:
        if name in said:
            check_kind(name, said[name], list, "a list of numbers")
            if len(said[name]) not in (1, channels):
                raise ValueError(f"{name} must be one number or {channels}, one a channel, got {len(said[name])}")
            for value in said[name]:
                check_number(name, value, f"below {_LARGEST:g}", lambda x: -_LARGEST < x < _LARGEST)
                if name == "std":
                    check_number(name, value, "above 0", lambda x: x > 0)


def _check_slices(slices: Any, channels: int) -> None:
    check_odd("slices", slices)
    if slices not in (1, channels):
        raise ValueError(f"slices must be 1, or {channels} as the channels, got {slices}")


def _check_normalization(methods: Any) -> None:
    check_kind("normalization", methods, dict, "an object, modality -> list of names")
    for modality, names in methods.items():
        check_kind("normalization", modality, str, "of modalities by their names")
        check_kind(f"normalization of {modality[:40]}", names, list, "a list of names")
        for name in names:
            check_kind(f"normalization of {modality[:40]}", name, str, "a list of names")
