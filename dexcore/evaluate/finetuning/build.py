"""The model of a fine-tuning: an encoder that was opened, what of it is trained, and a new head."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from timm.layers import DropPath
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from dexcore.engine.config import ConfigError
from dexcore.engine.ranks import ALONE, Ranks
from dexcore.evaluate.embedding import open_model
from dexcore.evaluate.embedding.identity import model_hash
from dexcore.evaluate.embedding.models import RANDOM
from dexcore.evaluate.embedding.view import declared_preprocessing
from dexcore.evaluate.finetuning.config import FinetuneConfig
from dexcore.evaluate.prediction.images import described
from dexcore.evaluate.probes.baselines import redrawn
from dexcore.evaluate.tasks import Row, Task
from dexcore.models import TaskModel
from dexcore.models.inputs import normalization_of, slices_of
from dexcore.nn import route_by_rule, rule_of, set_aux, set_mode
from dexcore.nn.mlp import DEXMlp


def open_encoder(config: FinetuneConfig, seed: int) -> tuple[VisionTransformer, str]:
    """The encoder as it was pre-trained, at the size of the task's images, and the hash of all that it is.

    Raises:
        ConfigError: it is no vision transformer of timm's, or cannot take images of this size.
        FeaturesError, ModelFileError, OSError: as `open_model`, which refuses a model without an ``img_size``.
    """
    drawn = config.mode == "scratch" and not Path(config.model).is_dir()
    weights = config.weights or (RANDOM if drawn else None)
    try:
        encoder = open_model(config.model, weights, img_size=config.img_size, seed=seed)
    except AssertionError as error:  # timm's word for a size that is no multiple of the patches
        raise ConfigError(f"img_size: {config.model} does not take {config.img_size} pixels: {error}") from error
    if not isinstance(encoder, VisionTransformer):
        raise ConfigError(f"model: expected a vision transformer of timm's or dexcore's, got {type(encoder).__name__}")
    if slices_of(encoder) > 1:
        raise ConfigError(
            f"model: expected one of single images, as a task's are; {config.model} takes {slices_of(encoder)} "
            "neighbouring slices: from_pretrained(folder, in_chans=1) makes one of it"
        )
    for side, patch in zip(encoder.patch_embed.img_size, encoder.patch_embed.patch_size, strict=True):
        if side % patch:
            raise ConfigError(f"img_size: expected a multiple of {config.model}'s patches of {patch}, got {side}")
    return encoder, model_hash(encoder)


def build_model(
    config: FinetuneConfig, task: Task, encoder: VisionTransformer, seed: int, ranks: Ranks = ALONE
) -> TaskModel:
    """The model that is trained, on the CPU; the encoder becomes part of it.

    What it drops at random is drawn for the images of all ``ranks``, from torch's generator, which all have to seed
    alike: then it does not depend on their number.

    Raises:
        ConfigError: a field is not for this encoder or this kind of task.
        FeaturesError: the encoder does not say how its images are made.
        NotDescribableError: it could not be saved: better known before it is trained.
    """
    experts = has_experts(encoder)
    if config.mode == "director" and not experts:
        raise ConfigError(f"mode: expected experts or scratch, {config.model} has no directors; got 'director'")
    rule = rule_of(encoder)
    if config.mode != "director" and rule is not None and rule.modalities:
        unknown = sorted({row.modality.value for row in task.rows} - set(rule.modalities))
        if unknown:
            raise ConfigError(
                f"mode: expected director, {config.model} gives experts by modality and has none for {unknown[0]} of "
                f"task {task.name}, but for {', '.join(rule.modalities)}; got {config.mode!r}"
            )
    if (config.lambda_align or config.lambda_balance) and not experts:
        raise ConfigError(f"lambda_align, lambda_balance: expected 0, {config.model} has no experts")
    if config.mode == "scratch":
        encoder = redrawn(encoder, seed)
    encoder.requires_grad_(True)
    if experts:
        set_mode(encoder, "director" if config.mode == "director" else "experts")
        set_aux(encoder, "train" if config.lambda_align or config.lambda_balance else "never")
    view = declared_preprocessing(encoder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TaskModel(encoder, described(task), **_head(config, task))
    head: Any = model.head
    model.describe()
    _drop_paths(model.encoder, config.drop_path, ranks)
    if config.dropout:
        _for_all(head.drop, config.dropout, ranks, whole=False)
    model.set_preprocessing(view.mean, view.std, normalization_of(encoder))
    model.set_grad_checkpointing(config.grad_checkpointing)
    return model


def has_experts(model: nn.Module) -> bool:
    """Whether a model has DEX layers."""
    return any(isinstance(part, DEXMlp) for part in model.modules())


def route_rows(model: nn.Module, rows: Sequence[Row]) -> None:
    """Give the images of the next forward the experts that the model's rule says, by image and modality; where routers
    choose, or directors run, nothing happens.

    Raises:
        ValueError: a modality that the rule does not know.
    """
    if any(isinstance(part, DEXMlp) and part.mode == "experts" for part in model.modules()):
        route_by_rule(model, [row.image for row in rows], [row.modality.value for row in rows])


def _head(config: FinetuneConfig, task: Task) -> dict[str, Any]:
    """The arguments of the head."""
    masks = task.spec.is_segmentation
    wrong = {"decoder_width": config.decoder_width > 0}
    if masks:
        wrong = {"pool": config.pool != "auto", "dropout": config.dropout > 0}
    for name, given in wrong.items():
        if given:
            raise ConfigError(f"{name}: is not for task {task.name}, of kind {task.kind}")
    if masks:
        return {"width": config.decoder_width or None}
    return {"pool": None if config.pool == "auto" else config.pool, "drop_rate": config.dropout}


def _drop_paths(encoder: VisionTransformer, rate: float, ranks: Ranks) -> None:
    """Skip blocks at random, the later the more often, as timm's ``drop_path_rate`` does."""
    for block, own in zip(encoder.blocks, torch.linspace(0, rate, len(encoder.blocks)).tolist(), strict=True):
        for name in ("drop_path1", "drop_path2"):
            setattr(block, name, _for_all(DropPath(own), own, ranks, whole=True) if own else nn.Identity())


def _for_all(module: nn.Module, rate: float, ranks: Ranks, whole: bool) -> nn.Module:
    """A module that drops at random, drawing for the images of all ranks: each takes those of its own, an equal part.

    The module stays what it is, so that the model can be saved; ``whole``: an image's numbers are dropped together.
    """

    def forward(x: Tensor) -> Tensor:
        if not module.training:
            return x
        drawn = x.new_empty((len(x) * ranks.count, *((1,) * (x.ndim - 1) if whole else x.shape[1:])))
        kept = drawn.bernoulli_(1 - rate).div_(1 - rate)
        return x * kept.chunk(ranks.count)[ranks.rank]

    module.forward = forward
    return module
