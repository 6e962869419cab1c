"""Checkpoints in the layout of the method's authors, read and written.

    authors                                    dexcore
    blocks.i.DEX.director.fc1.weight           blocks.i.mlp.director.fc1.weight
    blocks.i.DEX.experts.j.fc1.weight          blocks.i.mlp.experts.fc1.weight[j]
    blocks.i.DEX.router.linear.weight          blocks.i.mlp.router.weight
    blocks.i.DEX.expert_activation_count       blocks.i.mlp.router.activation_frequency

The rest is named as in MAE: encoder and decoder side by side, where a `MaskedAutoencoder` has the encoder's
names behind ``encoder.``.
"""

import io
import os
import re
from pathlib import Path

import torch
from timm.layers import Mlp
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from dexcore.checks import check_path
from dexcore.files import write_whole
from dexcore.models.mae import MaskedAutoencoder
from dexcore.models.pretrained import (
    ModelFileError,
    check_file,
    check_has_data,
    check_plain,
    load_exactly,
    read_pickle,
    read_safetensors,
)
from dexcore.nn import DEXMlp

_EXPERT = re.compile(r"(blocks\.\d+)\.DEX\.experts\.(0|[1-9]\d{0,4})\.(fc[12]\.(?:weight|bias))")
_RENAMED = {
    "router.linear.weight": "router.weight",
    "expert_activation_count": "router.activation_frequency",
    **{f"director.{name}": f"director.{name}" for name in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")},
}
_RENAMED_BACK = {ours: theirs for theirs, ours in _RENAMED.items()}


def load_reference_checkpoint(model: nn.Module, path: str | os.PathLike[str]) -> list[str]:
    """Load a checkpoint in the authors' layout into ``model``, all of it or nothing.

    Every tensor of the model but a classifier's (``head``, which the authors' files do not have) must be in
    the file, and every tensor of the file must have a place in the model; a `VisionTransformer` has none for
    the decoder (``decoder_*``, ``mask_token``), which is left out. Numbers are copied into the model's own
    dtype. A plain MAE checkpoint loads into a dense `MaskedAutoencoder` in the same way.

    Args:
        model: a `MaskedAutoencoder` or a `VisionTransformer`, with DEX layers or dense.
        path: ``.safetensors``, or what ``torch.save`` wrote (read with ``weights_only=True``); the tensors
            lie at the top or under "model".

    Returns:
        The file's tensors that were left out because ``model`` has no decoder.

    Raises:
        TypeError: ``model`` is neither, or ``path`` is no path.
        ValueError: ``model`` has gated (SwiGLU) DEX layers, which the layout cannot name, or is on the meta device.
        FileNotFoundError: there is no such file.
        ModelFileError: the file is a folder or cannot be read, or its tensors are not the model's; names what is
            missing, unexpected or of another shape. The model is untouched.
    """
    prefix = _encoder_prefix(model)
    check_path("path", path)
    check_has_data(model)
    _refuse_gated(model)
    source = str(path)
    tensors = _from_authors(_read(Path(path)), source)
    decoder = [name for name in tensors if name == "mask_token" or name.startswith("decoder_")]
    left_out = [] if isinstance(model, MaskedAutoencoder) else decoder
    named = {
        name if name in decoder else prefix + name: tensor for name, tensor in tensors.items() if name not in left_out
    }
    for name, tensor in model.state_dict().items():
        if name.startswith(prefix + "head."):
            named.setdefault(name, tensor)
    load_exactly(model, named, source)
    return left_out


def save_reference_checkpoint(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write ``model`` in the authors' layout: ``{"model": tensors}`` by ``torch.save``, whole or not at all.

    `load_reference_checkpoint` into a like model restores every bit.

    Raises:
        TypeError: ``model`` is neither a `MaskedAutoencoder` nor a `VisionTransformer`, or ``path`` is no path.
        ValueError: ``path`` ends in .safetensors, which this file would not be; or ``model`` has gated DEX layers
            (SwiGLU), for which the layout has no names, or is on the meta device.
        OSError: the file, which the error names, cannot be written.
    """
    prefix = _encoder_prefix(model)
    check_path("path", path)
    check_has_data(model)
    _refuse_gated(model)
    if Path(path).suffix == ".safetensors":
        raise ValueError(f"path must not end in .safetensors, which torch.save does not write; got {path}")
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        tensors |= _to_authors(name.removeprefix(prefix), tensor)
    content = io.BytesIO()
    torch.save({"model": tensors}, content)
    # Released also where the write fails: held by the error's traceback, a view is collected together with what it
    # shows, which Python complains of, and 3.12.0 and 3.12.1 crash on (CPython's issue 111049).
    with content.getbuffer() as view:
        write_whole(Path(path), view)


def _encoder_prefix(model: nn.Module) -> str:
    if isinstance(model, MaskedAutoencoder):
        return "encoder."
    if isinstance(model, VisionTransformer):
        return ""
    raise TypeError(f"model must be a MaskedAutoencoder or a VisionTransformer, got {type(model).__name__}")


def _refuse_gated(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, DEXMlp) and not isinstance(module.director, Mlp):
            raise ValueError(
                f"model must have no gated DEX layer, got {name}, whose director is {type(module.director).__name__}; "
                "the authors' layout has no names for it; use save_pretrained and from_pretrained"
            )


def _read(path: Path) -> dict[str, torch.Tensor]:
    check_file(path, "a checkpoint in the authors' layout")
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    content = read_pickle(path)
    tensors = content.get("model", content) if isinstance(content, dict) else None
    if (
        not isinstance(tensors, dict)
        or not tensors
        or not all(isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in tensors.items())
    ):
        raise ModelFileError(f'{path} must hold a dict of tensors by their names, at the top or under "model"')
    check_plain(tensors, str(path))
    return tensors


def _from_authors(tensors: dict[str, torch.Tensor], source: str) -> dict[str, torch.Tensor]:
    """The tensors under dexcore's names, an encoder's without prefix, with the experts stacked."""
    ours: dict[str, torch.Tensor] = {}
    experts: dict[str, dict[int, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if expert := _EXPERT.fullmatch(name):
            block, index, parameter = expert.groups()
            experts.setdefault(f"{block}.mlp.experts.{parameter}", {})[int(index)] = tensor
        else:
            block, _, rest = name.partition(".DEX.")
            ours[f"{block}.mlp.{_RENAMED[rest]}" if rest in _RENAMED else name] = tensor
    for name, pool in experts.items():
        if (
            sorted(pool) != list(range(len(pool)))
            or len({(expert.shape, expert.dtype) for expert in pool.values()}) > 1
        ):
            found = ", ".join(f"{j}: {list(expert.shape)} {expert.dtype}" for j, expert in sorted(pool.items()))
            raise ModelFileError(
                f"{source}: {name} must be numbered from 0 without gaps, of one dtype and one shape, got {found}"
            )
        ours[name] = torch.stack([pool[index] for index in range(len(pool))])
    return ours


def _to_authors(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """One of our tensors, named without ``encoder.``, under the authors' names."""
    block, _, rest = name.partition(".mlp.")
    if rest in _RENAMED_BACK:
        return {f"{block}.DEX.{_RENAMED_BACK[rest]}": tensor}
    kind, _, parameter = rest.partition(".")
    if kind == "experts":
        return {f"{block}.DEX.experts.{j}.{parameter}": expert for j, expert in enumerate(tensor)}
    return {name: tensor}
