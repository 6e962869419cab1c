"""Models by name: a folder of dexcore's, or any of timm's with weights from a file, from timm, or drawn."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from dexcore.evaluate.embedding.table import FeaturesError
from dexcore.models import DEXVisionTransformer, DistilledEncoder, MaskedAutoencoder, TaskModel, load_dense_checkpoint
from dexcore.models.hub import model_folder
from dexcore.models.pretrained import OtherModelError, load_exactly, read_pickle, read_safetensors

PRETRAINED, RANDOM = "pretrained", "random"


def open_model(
    name: str | os.PathLike[str],
    weights: str | os.PathLike[str] | None = None,
    *,
    img_size: int | None = None,
    seed: int = 0,
) -> nn.Module:
    """A model whose features are wanted, on the CPU, in evaluation.

    Args:
        name: a folder of dexcore's (``save_pretrained``'s, a run's ``model``, or a run's), or the name of one of timm's
            models, `dex_vit_*` among them.
        weights: of a model of timm's: a file (of a vision transformer MAE's, DINO's or timm's, as
            `load_dense_checkpoint` reads them; of others timm's, tensor for tensor but the classifier);
            "pretrained", which timm fetches from the network; or "random", the baseline that has seen nothing.
        img_size: pixels, in place of the model's own; positions are resampled.
        seed: of random weights.

    Raises:
        FeaturesError: there is no such model, its weights are not said, or it takes no ``img_size``.
        ModelFileError: a file cannot be read, or holds another model.
    """
    folder = Path(name)
    if folder.is_dir():
        if weights is not None:
            raise FeaturesError(f"{name} is a folder with its own weights: expected no others, got {weights}")
        return _of_folder(folder, img_size)
    name = os.fspath(name)
    if not timm.is_model(name):
        raise FeaturesError(f"{name}: expected a folder of dexcore's, or the name of a model of timm's")
    if weights is None:
        raise FeaturesError(
            f"{name} is a model of timm's: expected weights beside it: a file, {PRETRAINED} (timm fetches them from "
            f"the network) or {RANDOM}"
        )
    arguments: dict[str, Any] = {"num_classes": 0} | ({} if img_size is None else {"img_size": img_size})
    if weights == RANDOM:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _created(name, **arguments).eval()
    if weights == PRETRAINED:
        return _created(name, pretrained=True, **arguments).eval()
    return _of_file(name, Path(weights), arguments)


def _created(name: str, **arguments: Any) -> Any:
    """timm's model; an error where an ``img_size`` is asked of one that has none."""
    try:
        return timm.create_model(name, **arguments)
    except TypeError as error:
        if "img_size" not in arguments or "img_size" not in str(error):
            raise
        raise FeaturesError(
            f"{name}: expected a vision transformer, whose img_size can be set; this model of timm's takes none"
        ) from error


def _of_folder(folder: Path, img_size: int | None) -> nn.Module:
    folder = model_folder(folder)
    try:
        return DEXVisionTransformer.from_pretrained(folder, img_size=img_size)
    except OtherModelError as error:
        around: tuple[Any, ...] = (MaskedAutoencoder, DistilledEncoder, TaskModel)  # a dense encoder
        for kind in around:
            with suppress(OtherModelError):
                return kind.from_pretrained(folder, img_size=img_size).encoder
        raise error from None


def _of_file(name: str, weights: Path, arguments: dict[str, Any]) -> nn.Module:
    if not weights.is_file():
        raise FileNotFoundError(f"{weights}: no such file; expected weights of {name}, {PRETRAINED} or {RANDOM}")
    model = _created(name, **arguments)
    if isinstance(model, VisionTransformer):
        load_dense_checkpoint(model, weights)
        return model.eval()
    tensors = read_safetensors(weights) if weights.suffix == ".safetensors" else read_pickle(weights)
    for wrapper in ("state_dict", "model"):
        tensors = tensors.get(wrapper, tensors) if isinstance(tensors, dict) else {}
    # timm itself would leave what does not fit as it was drawn.
    head = model.pretrained_cfg.get("classifier") or ()
    heads = tuple(f"{part}." for part in ((head,) if isinstance(head, str) else head))
    kept = {part: tensor for part, tensor in tensors.items() if not (heads and part.startswith(heads))}
    load_exactly(model, kept, str(weights))
    return model.eval()
