"""Checkpoints of dense vision transformers, loaded into DEX models: MAE, timm, DINO and DINOv2.

The layouts are read in `dexcore.models.dense_layouts`; here they are fitted to a model:

    in the file                             in the model
    blocks.i.mlp.fc1.weight [H, D]          blocks.i.mlp.director.fc1.weight, and each of the R in
                                            blocks.i.mlp.experts.fc1.weight [R, H, D]; SwiGLUs alike
    pos_embed, patch_embed.proj.weight      the same, resampled where grid or patch size differ
"""

import logging
import math
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.layers import GluMlp, PatchEmbed, SwiGLU, resample_abs_pos_embed, resample_patch_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from dexcore.checks import check_kind, check_path, check_whole
from dexcore.models.dense_layouts import PATCHES, Found, of_decoder, read_dense_layout, refuse_gated
from dexcore.models.mae import MaskedAutoencoder
from dexcore.models.pretrained import ModelFileError, check_fit, check_has_data, shorten
from dexcore.nn import DEXMlp

_log = logging.getLogger(__name__)

Grid = tuple[int, int]

_DIRECTOR, _EXPERTS = ".mlp.director.", ".mlp.experts."
_TOKENS = ("cls_token", "dist_token", "reg_token")  # before the patches, in timm's order
# What decides a transformer's features: without a place in the model it would be another network.
_TRUNK = ("blocks.", "patch_embed.", "pos_embed", "norm_pre.", "dist_token", "reg_token")
# What a model may have beyond its file.
_OWN = re.compile(r"head\.|head_dist\.|fc_norm\.|attn_pool\.|.*\.mlp\.router\.(?:weight|activation_frequency)$")


@dataclass(frozen=True)
class DenseLoad:
    """What `load_dense_checkpoint` did; ``str()`` of it is a list to read.

    Attributes:
        path: the file.
        prefix: where in the file the transformer was, "" at its top.
        used: the file's tensors that were copied as they are.
        resampled: the file's tensors that had to be fitted to the model -> how.
        unused: the file's tensors that were left out -> why.
        kept: the model's tensors that the file does not fill: they stay as they were.
    """

    path: str
    prefix: str
    used: list[str] = field(default_factory=list)
    resampled: dict[str, str] = field(default_factory=dict)
    unused: dict[str, str] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [
            f"{self.path}{', ' + self.prefix + '*' if self.prefix else ''}: {len(self.used)} tensors used, "
            f"{len(self.resampled)} resampled, {len(self.unused)} not used; {len(self.kept)} of the model's kept"
        ]
        lines += [f"  resampled  {name}: {how}" for name, how in self.resampled.items()]
        lines += _grouped("not used", [f"{name}: {why}" for name, why in self.unused.items()])
        lines += _grouped("kept", self.kept)
        return "\n".join(lines)


def _grouped(what: str, lines: list[str]) -> list[str]:
    """One line for the names of all blocks."""
    groups = Counter(re.sub(r"\.\d+\.", ".*.", line) for line in lines)
    return [f"  {what:9}  {line}{f'  ({count} times)' if count > 1 else ''}" for line, count in groups.items()]


def load_dense_checkpoint(model: nn.Module, path: str | os.PathLike[str], *, grid: Grid | None = None) -> DenseLoad:
    """Start ``model`` from a dense vision transformer's weights, all of it or nothing.

    Each MLP goes into the director and into every expert (the method's section 3, "upcycling"). Positions are
    resampled where the grid of patches differs, and the patch embedding where the patch size does, both with timm's
    functions; a token's row of the positions is added to the token where the model embeds patches alone, and is
    zeros where the file does. Numbers are copied into the model's own dtype.

    The features must be those of the file, so everything in ``blocks``, the patch embedding, positions and registers
    needs its place. Left out, and listed, is what only heads and decoders see: another number of classes, ``norm``
    where the model has ``fc_norm``, a decoder, a projection head; a class token that the model has no use for; a
    student beside its teacher. The model keeps, and lists, its routers and what the file does not have of these.
    What leaves no trace in tensors (the number of heads, the activation, whether a packed SwiGLU has its gate first,
    rotary positions that the file does not name) cannot be checked.

    Args:
        model: a `MaskedAutoencoder` or a timm `VisionTransformer`, DEX, upcycled or dense. An autoencoder's
            positions, fixed as they are, become the file's; its decoder is loaded where the file has one.
        path: ``.safetensors``, or what ``torch.save`` wrote (read with ``weights_only=True``).
        grid: rows and columns of the file's patches. None: a square, else the model's own grid.

    Returns:
        What was used, resampled, not used and kept. It is also logged at level INFO.

    Raises:
        TypeError: ``model`` is neither of the two, or has another patch embedding than timm's `PatchEmbed`; ``path``
            is no path; or ``grid`` is no pair of whole numbers.
        ValueError: ``model`` is on the meta device, or ``grid`` is not two numbers from 1 on.
        FileNotFoundError: there is no such file.
        ModelFileError: the file is a folder, cannot be read, holds no vision transformer or several, has gated MLPs
            (SwiGLU, as DINOv2's giant) where the model has none, or experts, or rotary positions; its tensors are not
            the model's (names those that are missing, unexpected or of another shape, with both shapes), or its
            numbers are not all finite in the model's dtype (names the tensors). The model is untouched.
    """
    vit = _vision_transformer(model)
    check_path("path", path)
    if grid is not None:
        check_kind("grid", grid, tuple | list, "the rows and columns of the file's patches")
        if len(grid) != 2:
            raise ValueError(f"grid must be the rows and columns of the file's patches, got {grid}")
        for side in grid:
            check_whole("grid", side, 1)
    prefix, found, unused = read_dense_layout(Path(path))
    if not any(isinstance(module, GluMlp | SwiGLU) for module in vit.modules()):
        refuse_gated(found, str(path))
    load = DenseLoad(str(path), prefix, unused=unused)
    encoder = {name: part for name, part in found.items() if not of_decoder(name, found)}
    decoder = {name: part for name, part in found.items() if name not in encoder}
    tokens = {name: found[name].tensor.shape[1] for name in _TOKENS if name in found and found[name].tensor.ndim == 3}
    _leave_out_unplaced(vit, encoder, load)
    values = _fit_to_model(vit, encoder, tokens, grid, load)
    if isinstance(model, MaskedAutoencoder):
        values = {f"encoder.{name}": tensor for name, tensor in values.items()}
        if decoder:
            values |= _fit_decoder(model, decoder, tokens, grid, load)
    else:
        load.unused.update({part.origin: "the model has no decoder" for part in decoder.values()})
    _load_into(model, values, found, load)
    _log.info("%s", load)
    return load


def _vision_transformer(model: nn.Module) -> VisionTransformer:
    vit = model.encoder if isinstance(model, MaskedAutoencoder) else model
    if not isinstance(vit, VisionTransformer):
        raise TypeError(f"model must be a MaskedAutoencoder or a VisionTransformer, got {type(model).__name__}")
    if not isinstance(vit.patch_embed, PatchEmbed):
        raise TypeError(f"model must embed patches with timm's PatchEmbed, got {type(vit.patch_embed).__name__}")
    check_has_data(model)
    return vit


def _load_into(model: nn.Module, values: dict[str, Tensor], found: dict[str, Found], load: DenseLoad) -> None:
    """Load values that have a dense model's names; an MLP's go into the director and into every expert."""
    state = model.state_dict()
    own = {_dense_name(name): tensor for name, tensor in state.items() if _EXPERTS not in name}
    load.kept.extend(name for name in own if name not in values and _may_be_kept(name, found))
    values = {name: own[name] for name in load.kept} | values
    origins = {name: found[name.removeprefix("encoder.")].origin for name in values if name not in load.kept}
    check_fit(model, own, values, load.path, origins)
    if odd := [name for name in origins if not values[name].to(own[name].dtype).isfinite().all()]:
        told = shorten([f"{origins[name]} (as {own[name].dtype})" for name in odd])
        raise ModelFileError(f"{load.path} holds numbers that are not finite: {told}")
    # Not strictly: experts are written below, and `check_fit` has seen the rest.
    model.load_state_dict({name: values[_dense_name(name)] for name in state if _EXPERTS not in name}, strict=False)
    for layer in model.modules():
        if isinstance(layer, DEXMlp):
            layer.copy_director()


def _dense_name(name: str) -> str:
    return name.replace(_DIRECTOR, ".mlp.")


def _leave_out_unplaced(vit: VisionTransformer, encoder: dict[str, Found], load: DenseLoad) -> None:
    """Move to ``load.unused`` what features do not depend on and the model has no place for."""
    own = vit.state_dict()
    resized = {
        name.rpartition(".")[0]
        for name in ("head.weight", "head_dist.weight")
        if name in encoder and name in own and encoder[name].tensor.shape[:1] != own[name].shape[:1]
    }
    for name, part in list(encoder.items()):
        if name.rpartition(".")[0] in resized:
            load.unused[part.origin] = f"the model has another number of classes ({vit.num_classes})"
            del encoder[name]
        elif not name.startswith(_TRUNK) and name not in own:
            load.unused[part.origin] = "no place in the model"
            del encoder[name]


def _may_be_kept(name: str, found: dict[str, Found]) -> bool:
    if name.startswith("decoder_") or name == "mask_token":
        return "decoder_embed.weight" not in found
    name = name.removeprefix("encoder.")
    normed_after_pooling = name.startswith("norm.") and "fc_norm.weight" in found
    return bool(_OWN.match(name)) or name in _TOKENS or normed_after_pooling


def _fit_to_model(
    vit: VisionTransformer, encoder: dict[str, Found], tokens: dict[str, int], grid: Grid | None, load: DenseLoad
) -> dict[str, Tensor]:
    """The encoder's values, resampled."""
    values = {name: part.tensor for name, part in encoder.items()}
    changes: dict[str, str] = {}
    patches, place = values[PATCHES], vit.patch_embed.proj.weight
    if patches.ndim == 4 and patches.shape[:2] == place.shape[:2] and patches.shape != place.shape and patches.numel():
        values[PATCHES] = resample_patch_embed(patches, list(place.shape[2:]))
        changes[PATCHES] = f"patches of {_by(patches.shape[2:])} pixels to {_by(place.shape[2:])}"
    changes |= _fit_positions(vit, values, tokens, grid, load.path)
    for name, part in encoder.items():
        if name in changes:
            load.resampled[part.origin] = changes[name]
        else:
            load.used.append(part.origin)
    return values


def _fit_positions(
    vit: VisionTransformer, values: dict[str, Tensor], tokens: dict[str, int], grid: Grid | None, path: str
) -> dict[str, str]:
    """Put ``values["pos_embed"]`` into the model's shape; returns what was changed."""
    positions, own = values.get("pos_embed"), vit.pos_embed
    if positions is None or own is None or positions.ndim != 3 or positions.shape[::2] != own.shape[::2]:
        return {}  # missing, unexpected or of another width: an error that names it follows
    rows, patches, old = _split_positions("pos_embed", positions, tokens, vit.patch_embed.grid_size, grid, path)
    changes: dict[str, str] = {}
    own_rows: list[Tensor] = []
    if vit.no_embed_class:
        for name, row in rows.items():
            if getattr(vit, name, None) is not None and values[name].shape == row.shape:
                values[name] = values[name] + row
                changes[name] = "with its row of pos_embed, since the model embeds patches alone"
    else:
        own_rows = _prefix_rows(rows, tokens, _own_tokens(vit), own)
    values["pos_embed"] = torch.cat([*own_rows, _resampled(patches, old, vit.patch_embed.grid_size)], dim=1)
    if change := _told(rows, own_rows, old, vit.patch_embed.grid_size):
        changes["pos_embed"] = change
    return changes


def _fit_decoder(
    model: MaskedAutoencoder, decoder: dict[str, Found], tokens: dict[str, int], grid: Grid | None, load: DenseLoad
) -> dict[str, Tensor]:
    """The decoder's values, its positions resampled."""
    values = {name: part.tensor for name, part in decoder.items()}
    changes: dict[str, str] = {}
    name, own, new = "decoder_pos_embed", model.decoder_pos_embed, model.encoder.patch_embed.grid_size
    positions = values.get(name)
    if positions is not None and positions.ndim == 3 and positions.shape[::2] == own.shape[::2]:
        rows, patches, old = _split_positions(name, positions, tokens, new, grid, load.path)
        own_rows = _prefix_rows(rows, tokens, _own_tokens(model.encoder), own)
        values[name] = torch.cat([*own_rows, _resampled(patches, old, new)], dim=1)
        if change := _told(rows, own_rows, old, new):
            changes[name] = change
    load.resampled.update({decoder[changed].origin: how for changed, how in changes.items()})
    load.used.extend(part.origin for name, part in decoder.items() if name not in changes)
    return values


def _split_positions(
    name: str, positions: Tensor, tokens: dict[str, int], own: Grid, grid: Grid | None, path: str
) -> tuple[dict[str, Tensor], Tensor, Grid]:
    """Positions [1, P + L, D] as the tokens' rows, the patches' [1, L, D] and their grid.

    P may be all ``tokens`` (their numbers, by name), those but the registers (DINOv2), or none.
    """
    without_registers = {token: count for token, count in tokens.items() if token != "reg_token"}
    total = positions.shape[1]
    for embedded in (tokens, without_registers, {}):
        count = total - sum(embedded.values())
        side = math.isqrt(max(count, 0))
        square, as_own = side * side == count and side > 0, own[0] * own[1] == count
        if grid is None and square and as_own and own != (side, side):
            raise ModelFileError(
                f"{path}: {name} {list(positions.shape)} may be of {side} x {side} patches or of the model's "
                f"{_by(own)}: say which with grid=(rows, columns)"
            )
        if grid is not None:
            found = grid if grid[0] * grid[1] == count else None
        else:
            found = (side, side) if square else own if as_own else None
        if found is not None:
            *parts, patches = positions.split([*embedded.values(), count], dim=1)
            return dict(zip(embedded, parts, strict=True)), patches, found
    expected = f"{_by(grid)}" if grid else "a square"
    raise ModelFileError(
        f"{path}: {name} {list(positions.shape)} is not {expected} of patches behind any of its tokens {tokens}; "
        "say the rows and columns of its patches with grid=(rows, columns)"
    )


def _own_tokens(vit: Any) -> dict[str, int]:
    tokens = {name: getattr(vit, name, None) for name in _TOKENS}
    return {name: token.shape[1] for name, token in tokens.items() if token is not None}


def _prefix_rows(
    rows: dict[str, Tensor], tokens: dict[str, int], own_tokens: dict[str, int], own: Tensor
) -> list[Tensor]:
    """The rows before the patches: the file's; zeros for its tokens without one; the model's for tokens of its own."""
    own_rows = own.detach()[:, : sum(own_tokens.values())].cpu().split(list(own_tokens.values()), dim=1)
    return [
        rows[name] if name in rows else torch.zeros_like(row) if name in tokens else row
        for name, row in zip(own_tokens, own_rows, strict=True)
    ]


def _resampled(patches: Tensor, old: Grid, new: Grid) -> Tensor:
    return resample_abs_pos_embed(patches, list(new), list(old), num_prefix_tokens=0)


def _told(rows: dict[str, Tensor], own_rows: list[Tensor], old: Grid, new: Grid) -> str:
    """What was done to positions, "" for nothing."""
    changes = [f"{_by(old)} patches to {_by(new)}"] if old != new else []
    before, after = (sum(row.shape[1] for row in part) for part in (rows.values(), own_rows))
    if before != after:
        changes.append(f"{before} rows of tokens before the patches to {after}")
    return ", ".join(changes)


def _by(sizes: Any) -> str:
    return " x ".join(str(size) for size in sizes)
