"""From a dense timm model to Director-Experts layers, and back."""

import copy
import inspect
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from timm.layers import AttentionPoolLatent, LayerNorm, RelPosMlp
from timm.models import is_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dexcore.checks import check_kind
from dexcore.nn.dense_mlp import (
    activation_like,
    check_dense_mlp,
    constructor_of,
    expert_pieces,
    first_layers,
    hidden_features_of,
    pieces,
)
from dexcore.nn.mlp import DEXMlp

COLLAPSE_TO = ("director", "average")
_ANY_SIZE = "vit_base_patch16_224"  # of timm's: what a model that is no size of timm's is, with all its arguments
_TIMM_NORM_EPS = 1e-6  # of timm's vision transformers, unless norm_layer says another
ExpertWeights = Tensor | Sequence[Tensor | Sequence[float]]


def per_block(name: str, value: int | Sequence[int], depth: int) -> list[int]:
    """One number a block, from one for all or a sequence of ``depth``.

    Raises:
        TypeError: neither an int nor a sequence; the message calls it ``name``.
        ValueError: a sequence of another length.
    """
    if isinstance(value, int):
        return [value] * depth
    if not isinstance(value, Sequence):
        raise TypeError(f"{name} must be an int or a sequence with one for each block, got {value!r}")
    if len(value) != depth:
        raise ValueError(f"{name} must be one number or one for each of {depth} blocks, got {len(value)}")
    return list(value)


def upcycle(
    model: nn.Module,
    num_experts: int | Sequence[int] = 8,
    top_k: int | Sequence[int] = 2,
    *,
    tau: float = 0.5,
    pool: str = "cls",
    align: str = "kd",
    mode: str = "experts",
    keep: str = "both",
    precision: str = "ieee",
    backend: str = "auto",
) -> nn.Module:
    """Replace every block's MLP by a `DEXMlp` whose director and experts are copies of it, in place.

    The gates of an image sum to 1, so the model still computes what it computed before, up to rounding; to the bit in
    ``mode="director"``, and on the CPU for a single image, with gradients and without. Device, dtype and training mode
    stay, and what was frozen stays frozen: a layer whose MLP required no gradient has experts and a router that require
    none, until `set_mode` says otherwise.

    What timm saves of an upcycled model (``timm.models.save_for_hf(model, folder)``) it opens when told of the layers
    and their settings, which the folder does not hold:
    ``timm.create_model(f"local-dir:{folder}", pretrained=True, mlp_layer=partial(DEXMlp, num_experts=8))``. A model
    without ``mlp_layer``, or with numbers that vary by block, is created dense, upcycled, and given the state dict.

    Args:
        model: a timm model whose blocks hold a plain timm `Mlp`, or a SwiGLU (timm's `SwiGLUPacked` or `SwiGLU`), as
            ``.mlp`` and give it tokens [B, N, D]; or a module around one or several of them (``features_only=True``,
            a backbone with a head of your own).
        num_experts: experts in each pool; a sequence has one number a block.
        top_k: experts that process an image; a sequence has one number a block.
        tau, pool, align, mode, keep, precision, backend: as for `DEXMlp`.

    Returns:
        ``model`` itself.

    Raises:
        TypeError: no model, or one of the settings is of another type.
        ValueError: the model cannot be upcycled; the message names the module and the reason: another MLP
            (MlpMixer's), a norm, dropout or convolution in the MLP, an activation the ops do not have, a gate that is
            no SiLU, a bias on one of its layers only, tokens that are not [B, N, D] (ConvNeXt), ``pool="cls"`` where
            the blocks see no class token; or the tokens cannot be looked at, for which the nearest module around a
            block that embeds patches is run on zeros (shapes alone). The model is left as it was.
    """
    check_kind("model", model, nn.Module, "a torch.nn.Module")
    places = [(name, block) for name, block in model.named_modules() if _holds_mlp(block)]
    if not places:
        kinds = sorted({type(block).__name__ for block in getattr(model, "blocks", ())})
        blocks = f" (but {', '.join(kinds)})" if kinds else ""
        raise ValueError(f"{type(model).__name__} has no blocks with an MLP as .mlp{blocks}: it cannot be upcycled")
    for name, block in places:
        check_dense_mlp(f"{type(model).__name__}.{name}.mlp", block.mlp)
    _check_tokens(model, dict(places), pool)
    experts = per_block("num_experts", num_experts, len(places))
    chosen = per_block("top_k", top_k, len(places))
    layers = [
        _upcycle_mlp(
            block.mlp,
            num_experts=experts[i],
            top_k=chosen[i],
            tau=tau,
            pool=pool,
            align=align,
            mode=mode,
            keep=keep,
            precision=precision,
            backend=backend,
        )
        for i, (_, block) in enumerate(places)
    ]
    for (_, block), layer in zip(places, layers, strict=True):
        block.mlp = layer
    return model


def collapse(model: nn.Module, to: str = "director", weights: ExpertWeights | None = None) -> nn.Module:
    """The plain timm model in which every DEX layer is one MLP; ``model`` stays as it is.

    A timm model's classes are timm's again: its state dict loads into, and its pickle opens with, timm alone; so does
    what ``timm.models.save_for_hf`` writes of it. A class around it that is not timm's stays: a `MaskedAutoencoder`
    becomes a dense one, still of dexcore, with a plain timm model as its ``encoder``.

    Args:
        model: any model with `DEXMlp` layers.
        to: "director": the network that all experts taught; computes what ``model`` does in director mode, to
            the bit. "average": the weighted mean of the experts' parameters, theta = sum_r w_r theta_r.
        weights: for "average", w: one row [R] a layer in order of depth, as a sequence or a tensor [L, R]; at
            least 0, and divided by their sum. None: the experts' running use (``router.activation_frequency``).

    Returns:
        A copy that shares no tensor with ``model``; all parameters of its MLPs require gradients.

    Raises:
        TypeError: no model, or ``weights`` hold something other than numbers.
        ValueError: ``to`` is another word, ``model`` has no DEX layer, or the weights do not fit its layers; among
            them an experts' use that was never counted. For "director" also: experts were trained and the director
            never followed, since `update_directors` was not called.
    """
    check_kind("model", model, nn.Module, "a torch.nn.Module")
    if to not in COLLAPSE_TO:
        raise ValueError(f"to must be one of {', '.join(COLLAPSE_TO)}, got {to!r}")
    if weights is not None and to != "average":
        raise ValueError(f'weights are for to="average", got to={to!r}')
    layers = [module for module in model.modules() if isinstance(module, DEXMlp)]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no DEX layer to collapse")
    plain_mlps = [copy.deepcopy(layer.director).requires_grad_() for layer in layers]
    if to == "director":
        _refuse_unmoved_directors(layers)
    else:
        for mlp, layer, w in zip(plain_mlps, layers, _expert_weights(layers, weights), strict=True):
            _fill_with_mean(mlp, layer, w)
    # deepcopy takes what its memo holds for an object instead of copying it: the experts are never copied.
    plain = copy.deepcopy(model, {id(layer): mlp for layer, mlp in zip(layers, plain_mlps, strict=True)})
    for module in plain.modules():
        kind = type(module)
        if _is_of_dexcore(kind):
            module.__class__ = next((base for base in kind.__mro__ if base.__module__.startswith("timm.")), kind)
        _name_plain_architecture(module)
    return plain


def _refuse_unmoved_directors(layers: list[DEXMlp]) -> None:
    """Raise ValueError where experts have moved and the director, as their use says, never has.

    Experts begin as copies of the director, so that they differ from each other (a single one from the director) once
    they were trained.
    """
    if any(layer.record.pending is not None and not layer.record.updated for layer in layers):
        warnings.warn(
            "the model ran in training and update_directors was not called since it was made or loaded: if an "
            "optimizer step followed, collapse returns directors that are behind their experts",
            stacklevel=3,
        )
    for i, layer in enumerate(layers):
        frequency = layer.router.activation_frequency
        if layer.mode == "director" or frequency.is_meta or frequency.any():
            continue
        for experts, director in layer.expert_director_pairs():
            others = director[None] if layer.num_experts == 1 else experts[1:]
            if not torch.equal(experts[:1].expand_as(others), others):
                raise ValueError(
                    f"DEX layer {i} (counted from 0) has trained experts and a director that never followed them: "
                    "collapse would return the MLP of before the training. Call update_directors(model, momentum) "
                    'after each optimizer step, or collapse(model, to="average", weights=...)'
                )


def _expert_weights(layers: list[DEXMlp], weights: ExpertWeights | None) -> list[Tensor]:
    """One row [R] a layer that sums to 1, on the layer's device and in float32 at least; see `collapse`."""
    if weights is None:
        frequencies = [layer.router.activation_frequency for layer in layers]
        unused = [i for i, row in enumerate(frequencies) if not row.any()]
        if unused:
            raise ValueError(f"no use of experts was counted yet in DEX layers {unused}: give weights, one row a layer")
        weights = frequencies
    check_kind("weights", weights, Sequence | Tensor, "one row for each DEX layer")
    if isinstance(weights, Tensor) and (weights.ndim == 0 or weights.is_meta or weights.layout is not torch.strided):
        raise ValueError(
            f"weights must be a dense tensor [L, R] with data, got {list(weights.shape)}, {weights.layout} on "
            f"{weights.device}"
        )
    if len(weights) != len(layers):
        raise ValueError(f"weights must have one row for each of the {len(layers)} DEX layers, got {len(weights)}")
    rows = []
    for i, (layer, given) in enumerate(zip(layers, weights, strict=True)):
        parameter = layer.experts.fc1.weight
        precision = torch.promote_types(parameter.dtype, torch.float32)
        try:
            row = torch.as_tensor(given).to(parameter.device, precision)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"weights[{i}] must hold numbers, got {given!r}") from error
        if row.shape != (layer.num_experts,):
            raise ValueError(f"weights[{i}] must be [{layer.num_experts}], one an expert, got {list(row.shape)}")
        if not (row.isfinite().all() and (row >= 0).all() and row.sum() > 0):
            raise ValueError(f"weights[{i}] must be finite, at least 0 and not all 0, got {row.tolist()}")
        rows.append(row / row.sum())
    return rows


@torch.no_grad()
def _fill_with_mean(mlp: nn.Module, layer: DEXMlp, weights_r: Tensor) -> None:
    for target, experts in zip(pieces(mlp), expert_pieces(layer.experts, mlp), strict=True):
        target.copy_(torch.tensordot(weights_r, experts.to(weights_r.dtype), 1))


def _name_plain_architecture(plain: Any) -> None:
    """Let timm's record of how the model was built, which it saves, name what timm alone can build."""
    ours = {name for name, p in inspect.signature(DEXMlp).parameters.items() if p.kind is p.KEYWORD_ONLY}
    arguments = getattr(plain, "_model_args", {})
    foreign = {name for name, value in arguments.items() if name in ours or _is_of_dexcore(value)}
    if foreign:
        plain._model_args = {name: value for name, value in arguments.items() if name not in foreign}
    if "norm_eps" in arguments and (eps := plain._model_args.pop("norm_eps")) != _TIMM_NORM_EPS:
        # JSON has no layers: timm refuses to write this one, where it would rebuild the model with its own epsilon.
        plain._model_args["norm_layer"] = partial(LayerNorm, eps=eps)
    cfg = getattr(plain, "pretrained_cfg", None) or {}
    name = cfg.get("architecture") or ""
    if name.startswith("dex_"):
        name = name.removeprefix("dex_")
        if not is_model(name):  # a size of ours: timm saves the image size beside the name
            size = f"{name.rpartition('_')[0]}_224"
            name = size if is_model(size) else _ANY_SIZE
        plain.pretrained_cfg = plain.default_cfg = {**cfg, "architecture": name}


def _is_of_dexcore(layer: object) -> bool:
    factory = layer.func if isinstance(layer, partial) else layer
    return isinstance(factory, type) and factory.__module__.startswith("dexcore.")


def _holds_mlp(module: nn.Module) -> bool:
    # Neither an attention-pooling head nor relative positions are blocks.
    return isinstance(getattr(module, "mlp", None), nn.Module) and not isinstance(
        module, AttentionPoolLatent | RelPosMlp
    )


def _check_tokens(model: nn.Module, blocks: dict[str, Any], pool: str) -> None:
    """Look at what each block gives its MLP, in a forward of the backbone it belongs to.

    Raises:
        ValueError: something other than [B, N, D]; no class token among it although ``pool`` is "cls"; or a backbone
            that cannot be run.
    """
    backbones: dict[nn.Module, dict[str, Any]] = {}
    for name, block in blocks.items():
        backbones.setdefault(_backbone_of(model, name), {})[name] = block
    for backbone, own_blocks in backbones.items():
        seen = _mlp_input_shapes(backbone, own_blocks)
        has_class_token = getattr(backbone, "cls_token", None) is not None
        prefix = getattr(backbone, "num_prefix_tokens", int(has_class_token))
        patches = getattr(getattr(backbone, "patch_embed", None), "num_patches", None)
        for name, block in own_blocks.items():
            place = f"{type(model).__name__}.{name}"
            if name not in seen:
                raise ValueError(f"{place} is not run in a forward of its {type(backbone).__name__}")
            tokens = list(seen[name])
            if len(tokens) != 3 or tokens[0] != 2 or tokens[2] != block.mlp.fc2.out_features:
                raise ValueError(
                    f"{place} gives its MLP a tensor of shape {tokens} for 2 images: "
                    "a DEX layer needs [images, tokens, width]"
                )
            if pool == "cls" and (not has_class_token or tokens[1] != prefix + (patches or 0)):
                raise ValueError(
                    f'pool="cls" needs a class token as first token, which {place} does not have; use pool="mean", or '
                    "upcycle an inner model that has one"
                )


def _backbone_of(model: nn.Module, block: str) -> nn.Module:
    """The nearest module around the block of that name that embeds patches; without one, ``model``."""
    place = block
    while place:
        place = place.rpartition(".")[0]
        around = model.get_submodule(place)
        if hasattr(around, "patch_embed"):
            return around
    return model


def _mlp_input_shapes(backbone: nn.Module, blocks: dict[str, Any]) -> dict[str, torch.Size]:
    """What the MLPs of ``blocks`` are given for two images; run on fake tensors, which have shapes alone."""
    embedder: Any = next((module for module in backbone.modules() if hasattr(module, "patch_embed")), backbone)
    channels, *size = (getattr(embedder, "pretrained_cfg", None) or {}).get("input_size", (3, 224, 224))
    size = getattr(getattr(embedder, "patch_embed", None), "img_size", None) or size
    shape = (2, getattr(embedder, "in_chans", channels), *size)
    weight = next(backbone.parameters())
    seen: dict[str, torch.Size] = {}

    def note(name: str, _: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seen[name] = inputs[0].shape

    hooks = [block.mlp.register_forward_pre_hook(partial(note, name)) for name, block in blocks.items()]
    training = [module for module in backbone.modules() if module.training]
    try:
        backbone.eval()
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            backbone(torch.zeros(shape, device=weight.device, dtype=weight.dtype))
    except Exception as error:  # timm asserts, a model of the user's raises anything
        raise ValueError(
            f"{type(backbone).__name__} cannot be run on images {list(shape)}, to see what its blocks give their MLPs "
            f"({type(error).__name__}: {error}); upcycle the inner model that takes images, as in "
            "model.backbone = upcycle(model.backbone)"
        ) from error
    finally:
        for module in training:
            module.training = True
        for hook in hooks:
            hook.remove()
    return seen


def _upcycle_mlp(mlp: Any, **settings: Any) -> DEXMlp:
    layer = DEXMlp(
        mlp.fc2.out_features,
        hidden_features_of(mlp),
        act_layer=activation_like(mlp),
        bias=mlp.fc2.bias is not None,
        device=mlp.fc2.weight.device,
        dtype=mlp.fc2.weight.dtype,
        director_layer=constructor_of(mlp),
        **settings,
    )
    layer.director.load_state_dict(mlp.state_dict())
    layer.init_weights()
    for name, original in mlp.named_parameters():
        if not original.requires_grad:
            layer.director.get_parameter(name).requires_grad_(False)
    for pool, originals in ((layer.experts.fc1, first_layers(mlp).values()), (layer.experts.fc2, [mlp.fc2])):
        for name, parameter in pool.named_parameters():  # of a gate and a value apart: frozen where both are
            if not any(getattr(original, name).requires_grad for original in originals):
                parameter.requires_grad_(False)
    if not any(original.requires_grad for original in mlp.parameters()):
        layer.router.requires_grad_(False)
    return layer.train(mlp.training)
