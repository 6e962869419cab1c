"""Vision transformers with Director-Experts blocks."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self, get_args, get_origin

import torch
from timm.models import build_model_with_cfg
from timm.models.vision_transformer import Block, VisionTransformer, checkpoint_filter_fn
from torch import nn

from dexcore.checks import check_kind, check_number, check_whole
from dexcore.models.description import (
    NotDescribableError,
    check_same_anatomy,
    describe_vit,
    norm_layer,
    vit_arguments,
)
from dexcore.models.inputs import adapt, carry_inputs
from dexcore.models.pretrained import PretrainedMixin, check_fit, load_exactly
from dexcore.nn import DEXBlock, DEXMlp, RoutingRule, set_rule
from dexcore.nn.upcycle import per_block
from dexcore.ops.checks import check_choice


class DEXVisionTransformer(PretrainedMixin, VisionTransformer):
    """timm's `VisionTransformer` with a `DEXMlp` in every block.

    Args:
        *args, **kwargs: timm's `VisionTransformer` parameters, with their names, order and defaults.
        num_experts: experts in each block's pool; a sequence has one number a block.
        top_k: experts that process an image; a sequence has one number a block.
        tau: temperature of the router's softmax.
        pool: what the router sees, "cls" (the class token) or "mean" (the mean over all tokens).
        align: the loss between experts and director, "kd", "cosine" or "mse".
        mode: "experts", or "director" for a plain ViT's cost.
        keep: what the backward finds stored, "both", "z" or "none".
        precision: of float32 dot products on a GPU, "ieee", "tf32" or "tf32x3".
        backend: "auto", "triton" or "eager".
        rule: chooses the experts in the place of the routers (`dexcore.nn.set_rule`), a `RoutingRule` or its fields.

    Raises:
        TypeError: ``block_fn`` is neither timm's `Block` nor `DEXBlock`, ``mlp_layer`` is none of timm's
            ``Mlp``, ``SwiGLUPacked`` (``GluMlp``) and ``SwiGLU``, nor `DEXMlp`, or a size is no number.
        ValueError: a size is out of its range, or a word is none of timm's; a sequence's length is not ``depth``;
            ``pool="cls"`` without a class token; ``fix_init``, MLP dropout (``proj_drop_rate``), ``scale_mlp_norm`` or
            an activation that the ops do not have, or no SiLU in a SwiGLU.
    """

    def __init__(
        self,
        *args: Any,
        num_experts: int | Sequence[int] = 8,
        top_k: int | Sequence[int] = 2,
        tau: float = 0.5,
        pool: str = "cls",
        align: str = "kd",
        mode: str = "experts",
        keep: str = "both",
        precision: str = "ieee",
        backend: str = "auto",
        rule: RoutingRule | Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        bound = inspect.signature(VisionTransformer).bind(*args, **kwargs)
        bound.apply_defaults()
        vit = bound.arguments
        _check_arguments(vit)
        if vit["block_fn"] not in (Block, DEXBlock):
            raise TypeError(f"block_fn must be timm's Block or DEXBlock, got {vit['block_fn']!r}")
        if vit["fix_init"]:
            raise ValueError("fix_init must be False: timm would scale mlp.fc2, which a DEX block does not have")
        if pool == "cls" and not vit["class_token"]:
            raise ValueError('pool="cls" needs class_token=True; use pool="mean" for a model without a class token')
        experts = per_block("num_experts", num_experts, vit["depth"])
        chosen = per_block("top_k", top_k, vit["depth"])

        def block_fn(*, depth: int, **block: Any) -> DEXBlock:
            return DEXBlock(
                **block,
                depth=depth,
                num_experts=experts[depth],
                top_k=chosen[depth],
                tau=tau,
                pool=pool,
                align=align,
                mode=mode,
                keep=keep,
                precision=precision,
                backend=backend,
            )

        super().__init__(**{**vit, "block_fn": block_fn})
        set_rule(self, rule)

    @property
    def _model_args(self) -> dict[str, Any]:
        """timm's record of the arguments that rebuild the model, which `save_for_hf` writes, with the mode of now.

        Layers in several modes give a set: no argument says that, and timm refuses to write what JSON does not have.
        """
        modes = {layer.mode for layer in self.modules() if isinstance(layer, DEXMlp)}
        return {**self.__dict__.get("_model_args", {}), "mode": modes.pop() if len(modes) == 1 else modes}

    @_model_args.setter
    def _model_args(self, arguments: dict[str, Any]) -> None:
        self.__dict__["_model_args"] = arguments

    @property
    def vision_transformer(self) -> Self:
        return self

    def set_input_size(self, *args: Any, **kwargs: Any) -> None:
        super().set_input_size(*args, **kwargs)
        self._carry_inputs()

    def reset_classifier(self, *args: Any, **kwargs: Any) -> None:
        super().reset_classifier(*args, **kwargs)
        self._carry_inputs()

    def _carry_inputs(self) -> None:
        """Where the model says how its images were made, say it of those that it takes now."""
        if hasattr(self, "input_normalization"):
            carry_inputs(self, self)

    def adapted(self, num_classes: int | None, in_chans: int | None, img_size: int | tuple[int, int] | None) -> Self:
        adapt(self, num_classes, in_chans, img_size)
        return self

    def describe(self) -> dict[str, Any]:
        return describe_encoder(self)

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> Self:
        return cls(**vit_arguments(description["arguments"]))


def _check_arguments(vit: dict[str, Any]) -> None:
    """Check timm's arguments that timm does not, or only where it stumbles over them; `DEXBlock` checks its own."""
    for name in ("img_size", "patch_size"):
        for side in vit[name] if isinstance(vit[name], tuple | list) and len(vit[name]) == 2 else (vit[name],):
            check_whole(name, side, 1)
    for name, least in {"in_chans": 1, "num_classes": 0, "embed_dim": 1, "depth": 1, "reg_tokens": 0}.items():
        check_whole(name, vit[name], least)
    for name in ("drop_rate", "pos_drop_rate", "patch_drop_rate", "drop_path_rate"):
        check_number(name, vit[name], "a number from 0 to 1", lambda x: 0 <= x <= 1)
    check_choice("pos_embed", vit["pos_embed"], ("learn", "none", ""))
    _check_flags(vit)
    for name, parameter in inspect.signature(VisionTransformer).parameters.items():
        if get_origin(parameter.annotation) is Literal:  # global_pool, weight_init
            check_choice(name, vit[name], get_args(parameter.annotation))


def _check_flags(arguments: dict[str, Any]) -> None:
    """Check those of timm's arguments that are True or False; it takes anything."""
    for name, parameter in inspect.signature(VisionTransformer).parameters.items():
        if parameter.annotation is bool and name in arguments:
            check_kind(name, arguments[name], bool, "True or False")


def _signature() -> inspect.Signature:
    """timm's parameters, then ours: what help() and other readers of signatures should see."""
    own = inspect.signature(DEXVisionTransformer.__init__).parameters.values()
    ours = [parameter for parameter in own if parameter.kind is inspect.Parameter.KEYWORD_ONLY]
    return inspect.Signature([*inspect.signature(VisionTransformer).parameters.values(), *ours])


DEXVisionTransformer.__signature__ = _signature()  # type: ignore[attr-defined]


def describe_encoder(vit: VisionTransformer) -> dict[str, Any]:
    """Class and arguments of a timm `VisionTransformer`, dense or DEX, for `build_encoder`.

    A timm model whose MLPs are DEX layers (`upcycle`, or ``block_fn=DEXBlock``) is a `DEXVisionTransformer`
    here: the same parts under the same names.

    Raises:
        NotDescribableError: it cannot be rebuilt from arguments in JSON; the message names the part.
    """
    if type(vit) not in (VisionTransformer, DEXVisionTransformer):
        raise NotDescribableError(
            f"only VisionTransformer and DEXVisionTransformer can be saved, got {type(vit).__name__}"
        )
    arguments = describe_vit(vit)
    kind = DEXVisionTransformer if "num_experts" in arguments else VisionTransformer
    description = {"class": kind.__name__, "arguments": arguments}
    with torch.device("meta"):
        check_same_anatomy(vit, build_encoder(description))
    return description


def build_encoder(description: dict[str, Any]) -> VisionTransformer:
    """The model, with fresh weights, that `describe_encoder` described."""
    check_choice("class", description["class"], ("VisionTransformer", "DEXVisionTransformer"))
    if description["class"] == "DEXVisionTransformer":
        return DEXVisionTransformer.from_description(description)
    _check_flags(description["arguments"])
    return VisionTransformer(**vit_arguments(description["arguments"]))


_OF_AUTOENCODER = "encoder.patch_embed.proj.weight"  # in the file of a MaskedAutoencoder


def _fit_checkpoint(checkpoint: dict[str, Any], model: VisionTransformer) -> dict[str, Any]:
    """timm's filter of pretrained weights; a dense MLP's go into the director and into every expert.

    Of a saved autoencoder's weights it takes the encoder's.

    Raises:
        ModelFileError: the blocks are not the model's own. timm would leave what is missing random, with a warning,
            where the number of classes is another.
    """
    if _OF_AUTOENCODER in checkpoint:
        checkpoint = {
            name.removeprefix("encoder."): tensor for name, tensor in checkpoint.items() if name.startswith("encoder.")
        }
    tensors = checkpoint_filter_fn(checkpoint, model)
    for name, layer in model.named_modules():
        if isinstance(layer, DEXMlp) and f"{name}.fc2.weight" in tensors:
            names = [key for key in tensors if key.startswith(f"{name}.")]
            dense = {key.removeprefix(f"{name}."): tensors.pop(key) for key in names}
            load_exactly(layer.director, dense, f"the pretrained checkpoint's {name}")
            layer.init_weights()
            tensors |= {f"{name}.{key}": tensor for key, tensor in layer.state_dict().items()}
    own, given = (
        {name: tensor for name, tensor in state.items() if name.startswith("blocks.")}
        for state in (model.state_dict(), tensors)
    )
    check_fit(model, own, given, "the pretrained checkpoint")
    return tensors


def create_registered(variant: str, pretrained: bool, architecture: dict[str, int], **kwargs: Any) -> nn.Module:
    """The model that timm knows by the name ``variant`` (`dexcore.registered`)."""
    if "norm_eps" in kwargs:  # a saved model's
        kwargs.setdefault("norm_layer", norm_layer(kwargs.pop("norm_eps")))
    return build_model_with_cfg(
        DEXVisionTransformer,
        variant,
        pretrained,
        pretrained_filter_fn=_fit_checkpoint,
        feature_cfg={"out_indices": kwargs.pop("out_indices", 3), "feature_cls": "getter"},
        **{**architecture, **kwargs},
    )
