"""The model of a configuration: DEX, or one of the twins that it is compared with."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from timm.layers import Mlp, trunc_normal_
from torch import nn

from dexcore.data.feed.pretrain_view import Images
from dexcore.engine.config import ConfigError
from dexcore.models import (
    DEXVisionTransformer,
    DistilledEncoder,
    MaskedAutoencoder,
    ModelFileError,
    Teacher,
    TeacherShape,
)
from dexcore.models.objective import Objective
from dexcore.nn import RoutingRule, collapse, set_rule
from dexcore.train.begin import begin_with
from dexcore.train.config import ModelConfig, PretrainConfig

_TIMM_STD = 0.02  # of a vision transformer's linear layers


def model_of_run(
    config: PretrainConfig, images: Images, begun_from: str = "", teacher: Teacher | None = None
) -> Objective:
    """The model of a run before its first step, on the CPU; PyTorch's generators are left as they were.

    Args:
        config: of the run.
        images: whose modalities oracle routing knows.
        begun_from: the file of weights to begin with; "" for new ones.
        teacher: of a run that learns its tokens.

    Raises:
        ConfigError: the file cannot be loaded.
    """
    there = modalities_there(images)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.run.seed)
        settings = replace(config.model, init=begun_from)
        precision = "tf32" if config.run.tf32 else "ieee"
        model = build_model(settings, config.run.seed, there, None if teacher is None else teacher.shape, precision)
    if isinstance(model, DistilledEncoder):
        model.teacher = teacher
    return model


def modalities_there(images: Images) -> list[str]:
    """The modalities that a run's images are of."""
    return [images.modality_names[index] for index in np.unique(images.modality)]


def build_model(
    config: ModelConfig,
    seed: int = 0,
    modalities: Sequence[str] = (),
    teacher: TeacherShape | None = None,
    precision: str = "ieee",
) -> Objective:
    """The model of a configuration, with weights from PyTorch's global generator: an autoencoder or, with a teacher, an
    encoder that learns its tokens.

    Twins begin with the same numbers where they have the same parts: every kind is made of the DEX model of the same
    draws. Embedding, attention, norms, class token and decoder are equal in all; the experts of those that are routed
    by rule too; the MLPs of "dense" are the directors (which the experts are copies of); those of "dense-wide" have
    another shape and are drawn after all else.

    Args:
        config: of the model.
        seed: of the run; it keys fixed routing.
        modalities: of the run's images, whose experts oracle routing decides.
        teacher: whose tokens are to be learned; None: the model is an autoencoder.
        precision: of the experts' float32 products on a GPU.

    Raises:
        ConfigError: ``init`` cannot be loaded.
    """
    encoder = _dex_encoder(config, precision)
    model: Objective
    if teacher is None:
        model = _autoencoder(encoder, config)
    else:
        model = DistilledEncoder(encoder, *teacher)
    if config.init:
        try:
            begin_with(model, config.init)
        except (FileNotFoundError, ModelFileError) as error:
            raise ConfigError(f"model.init: {error}") from error
    if config.mlp in ("dense", "dense-wide"):
        model = _collapsed(model)
    if config.mlp == "dense-wide":
        _widen(model, config.dense_hidden, grown=bool(config.init))
    elif config.mlp == "fixed-routing":
        set_rule(model, RoutingRule("fixed", seed=seed))
    elif config.mlp == "oracle-routing":
        set_rule(model, RoutingRule("oracle", modalities=tuple(modalities)))
    how = config.grad_checkpointing
    model.set_grad_checkpointing(how != "none", selective=how == "selective")
    return model


def _dex_encoder(config: ModelConfig, precision: str) -> DEXVisionTransformer:
    return DEXVisionTransformer(
        img_size=config.image_size,
        patch_size=config.patch_size,
        in_chans=config.in_chans,
        embed_dim=config.dim,
        depth=config.depth,
        num_heads=config.heads,
        mlp_ratio=config.mlp_ratio,
        num_classes=0,
        num_experts=config.num_experts,
        top_k=config.top_k,
        tau=config.tau,
        align=config.align,
        keep=config.keep,
        precision=precision,
        backend=config.backend,
    )


def _autoencoder(encoder: DEXVisionTransformer, config: ModelConfig) -> MaskedAutoencoder:
    return MaskedAutoencoder(
        encoder,
        decoder_dim=config.decoder_dim,
        decoder_depth=config.decoder_depth,
        decoder_heads=config.decoder_heads,
        mask_ratio=config.mask_ratio,
        norm_pix_loss=config.norm_pix_loss,
    )


def _collapsed(model: Objective) -> Objective:
    plain = collapse(model)
    assert isinstance(plain, Objective)
    return plain


@torch.no_grad()
def _widen(model: Objective, hidden: int, grown: bool) -> None:
    """Give every encoder block an MLP of ``hidden`` units.

    Args:
        grown: keep what the model computes: its own units stay, and new ones are drawn beside them whose output is
            zeros at first. Copies of its units would get equal gradients, and stay copies.
    """
    for block in model.encoder.blocks:
        old: Any = block.mlp
        new = _drawn(old, hidden, isinstance(model, DistilledEncoder))
        if grown:
            own = old.fc1.out_features
            new.fc1.weight[:own] = old.fc1.weight
            new.fc1.bias[:own] = old.fc1.bias
            new.fc2.weight[:, :own] = old.fc2.weight
            new.fc2.weight[:, own:] = 0
            new.fc2.bias.copy_(old.fc2.bias)
        block.mlp = new


def _drawn(old: Any, hidden: int, as_timm: bool) -> Any:
    """An MLP as ``old``, of another hidden width, with weights as timm or `MaskedAutoencoder` draws them."""
    activation: Any = partial(copy.deepcopy, old.act)  # timm wants a class
    new: Any = Mlp(old.fc1.in_features, hidden, act_layer=activation)
    for layer in (new.fc1, new.fc2):
        if as_timm:
            trunc_normal_(layer.weight, std=_TIMM_STD)
        else:
            nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    return new
