"""The layouts of dense vision transformers' checkpoints, brought to timm's names.

    in the file                                     here
    blocks.i.gamma_1 (DeiT3)                        blocks.i.ls1.gamma
    blocks.c.i.norm1.weight (DINOv2, in chunks)     blocks.i.norm1.weight
    register_tokens (DINOv2)                        reg_token
    blocks.i.attn.{q,k,v}.weight, in_proj_weight    blocks.i.attn.qkv.weight
    blocks.i.mlp.w12.weight, w3 (DINOv2's giant)    blocks.i.mlp.fc1.weight, fc2

All may lie in dicts and behind prefixes (``teacher``, ``state_dict``, ``module.``, ``backbone.``): the transformer is
where a ``patch_embed.proj.weight`` is.
"""

import re
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dexcore.models.pretrained import ModelFileError, check_file, is_plain, read_pickle, read_safetensors, shorten

PATCHES = "patch_embed.proj.weight"
_PREFERRED = ("teacher", "ema")
_RENAMED = (
    (re.compile(r"^register_tokens$"), "reg_token"),
    (re.compile(r"^blocks\.\d+\.(\d+)\."), r"blocks.\1."),
    (re.compile(r"\.gamma_([12])$"), r".ls\1.gamma"),
    (re.compile(r"\.attn\.in_proj_(weight|bias)$"), r".attn.qkv.\1"),
    (re.compile(r"\.attn\.out_proj\."), ".attn.proj."),
    (re.compile(r"\.mlp\.w12\."), ".mlp.fc1."),
    (re.compile(r"\.mlp\.w3\."), ".mlp.fc2."),
)
_QKV_PART = re.compile(r"(.+\.attn)\.(?:(?P<part>[qkv])(?:_proj)?\.(?P<kind>weight|bias)|(?P<bias>[qv])_bias)")
_ROTARY = re.compile(r"(^|\.)rope(_embed)?\.")
_FIRST_LAYER = re.compile(r"(.+\.mlp)\.fc1(_[gx])?\.weight")


class Found(NamedTuple):
    """One of the file's tensors under timm's name."""

    origin: str
    tensor: Tensor


class DenseLayout(NamedTuple):
    """A file's transformer under timm's names."""

    prefix: str  # what stood before the transformer's names
    found: dict[str, Found]  # a decoder's tensors included
    unused: dict[str, str]  # the file's other tensors -> why they are left out


def read_dense_layout(path: Path) -> DenseLayout:
    """Read a ``.safetensors`` file, or what ``torch.save`` wrote with ``weights_only=True``.

    Raises:
        FileNotFoundError: there is no such file.
        ModelFileError: the file is a folder, cannot be read, holds no vision transformer or several, or one with
            experts or rotary positions.
    """
    tensors = _read(path)
    prefix = _choose_prefix(tensors, str(path))
    return DenseLayout(prefix, *_under_timm_names(tensors, prefix, str(path)))


def of_decoder(name: str, found: dict[str, Found]) -> bool:
    # DINOv2 has a mask token too, but no decoder.
    return name.startswith("decoder_") or (name == "mask_token" and "decoder_embed.weight" in found)


def _read(path: Path) -> dict[str, Tensor]:
    """All tensors of the file; those in dicts of dicts by their keys, joined with dots."""
    check_file(path, "a dense vision transformer's checkpoint")
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    content = read_pickle(path)
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()  # a pickle may hold a dict that holds itself
    waiting = [("", content)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, Tensor) and is_plain(value):
            tensors[name] = value
        elif isinstance(value, dict) and id(value) not in seen:
            seen.add(id(value))
            children = [(f"{name}.{key}" if name else key, child) for key, child in value.items() if type(key) is str]
            waiting.extend(reversed(children))
    return tensors


def _choose_prefix(tensors: dict[str, Tensor], path: str) -> str:
    """What stands before the transformer's names; of several the teacher or the moving average."""
    prefixes = [name.removesuffix(PATCHES) for name in tensors if name.endswith(PATCHES)]
    prefixes = [prefix for prefix in prefixes if not prefix or prefix.endswith(".")]
    if len(prefixes) > 1:
        prefixes = [p for p in prefixes if any(word in re.split(r"[._]", p) for word in _PREFERRED)] or prefixes
    if len(prefixes) == 1:
        return prefixes[0]
    if prefixes:
        raise ModelFileError(f"{path} holds several vision transformers: {', '.join(prefixes)}; save one of them alone")
    names = shorten(list(tensors)) or "no tensor at all"
    raise ModelFileError(f"{path} holds no vision transformer of timm, MAE, DINO or DINOv2: no {PATCHES}, but {names}")


def _under_timm_names(tensors: dict[str, Tensor], prefix: str, path: str) -> tuple[dict[str, Found], dict[str, str]]:
    """The transformer's tensors, and a decoder's beside it, under timm's names; and why others are left out."""
    found: dict[str, Found] = {}
    unused: dict[str, str] = {}
    beside = prefix.removesuffix("encoder.")  # an autoencoder of ours has its decoder there
    for origin, tensor in tensors.items():
        if origin.startswith(prefix):
            name = origin.removeprefix(prefix)
        elif origin.startswith(beside) and re.match(r"decoder_|mask_token$", origin.removeprefix(beside)):
            name = origin.removeprefix(beside)
        else:
            unused[origin] = f"not under {prefix}"
            continue
        for pattern, replacement in _RENAMED:
            name = pattern.sub(replacement, name)
        if name in found:
            raise ModelFileError(f"{path}: {origin} and {found[name].origin} are the same tensor of a transformer")
        found[name] = Found(origin, tensor)
    _refuse_experts(found, path)
    _refuse_rotary(found, path)
    return _join_qkv(found, path), unused


def _refuse_experts(found: dict[str, Found], path: str) -> None:
    for name, (origin, _) in found.items():
        if ".DEX." in name or ".mlp.experts." in name:
            raise ModelFileError(
                f"{path} is not dense: {origin} belongs to a DEX layer; use from_pretrained or "
                "load_reference_checkpoint"
            )


def _refuse_rotary(found: dict[str, Found], path: str) -> None:
    gated = any(_is_gated(name, found) for name in found)
    for name, (origin, _) in found.items():
        # timm saves no rotation; of its models EVA-02 alone has such biases beside gated MLPs.
        if _ROTARY.search(name) or (gated and name.endswith(".attn.q_bias")):
            raise ModelFileError(
                f"{path} has rotary positions ({origin}), which a VisionTransformer has not (DINOv3, EVA-02); upcycle "
                "timm's own model of it: dexcore.nn.upcycle(timm.create_model(NAME, pretrained=True))"
            )


def refuse_gated(found: dict[str, Found], path: str) -> None:
    """Raise ModelFileError where an MLP has a gate, for a model whose MLPs have none."""
    for name, (origin, tensor) in found.items():
        if _is_gated(name, found):
            raise ModelFileError(
                f"{path}: {name.partition('.fc1')[0]} is a gated MLP (SwiGLU, as in DINOv2's giant): {origin} "
                f"{list(tensor.shape)} has no counterpart in a plain MLP; build the model with timm's "
                "mlp_layer=SwiGLUPacked (SwiGLU where gate and value are apart) and act_layer=nn.SiLU"
            )


def _is_gated(name: str, found: dict[str, Found]) -> bool:
    """Whether a tensor is the first layer's weight of an MLP with a gate."""
    first = _FIRST_LAYER.fullmatch(name)
    if first is None or first.group(2):
        return first is not None
    second = found.get(f"{first.group(1)}.fc2.weight")
    tensor = found[name].tensor
    return second is not None and second.tensor.ndim == tensor.ndim == 2 and len(tensor) == 2 * second.tensor.shape[1]


def _join_qkv(found: dict[str, Found], path: str) -> dict[str, Found]:
    """Queries, keys and values that are apart as ``attn.qkv``; keys without a bias (BEiT) have zeros."""
    joined: dict[str, Found] = {}
    parts: dict[str, dict[str, Found]] = {}
    for name, part in found.items():
        if match := _QKV_PART.fullmatch(name):
            target = f"{match.group(1)}.qkv.{match['kind'] or 'bias'}"
            parts.setdefault(target, {})[match["part"] or match["bias"]] = part
        else:
            joined[name] = part
    for target, three in parts.items():
        shapes = {letter: list(part.tensor.shape) for letter, part in three.items()}
        if target.endswith("bias") and shapes.keys() == {"q", "v"}:
            three = {**three, "k": Found("no k", torch.zeros_like(three["q"].tensor))}
        widths = {part.tensor.shape[1:] if part.tensor.ndim else None for part in three.values()}
        if three.keys() != {"q", "k", "v"} or len(widths) > 1 or None in widths:
            raise ModelFileError(f"{path}: {target} needs q, k and v of one width, got {shapes}")
        ordered = [three[letter] for letter in "qkv"]
        joined[target] = Found(
            " + ".join(part.origin for part in ordered), torch.cat([part.tensor for part in ordered])
        )
    return joined
