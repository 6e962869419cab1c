"""What a model costs, and which images a run shows it when: counted for comparison.json, so that runs can be compared.

FLOPs are PyTorch's FlopCounterMode's: matrix products alone, two FLOPs a multiply-add.
"""

import hashlib
import json
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

import dexcore.ops.flops  # noqa: F401  # the counter learns the DEX ops
from dexcore.data.feed.order import GlobalOrder
from dexcore.models import DistilledEncoder, TeacherShape
from dexcore.report.comparison import Comparison
from dexcore.train.build import build_model
from dexcore.train.config import ModelConfig, PretrainConfig


class Cost(NamedTuple):
    """Numbers of a model, as in `dexcore.report.comparison.Comparison`."""

    parameters: int
    inference_flops: int
    training_flops: int


@cache
def cost(config: ModelConfig, teacher: TeacherShape | None = None) -> Cost:
    """Count what the model of a configuration costs; nothing is computed, and no memory is taken for weights.

    At inference the encoder sees a whole image, through its experts. A training step is the masked encoder and the
    decoder (with a ``teacher`` the encoder alone, which sees whole images; the teacher's own work is not the model's),
    forward and backward, on one image; what has no matrix product (GEMA, the optimizer) is not counted, nor what
    is computed again to save memory. A model that is routed by rule costs what DEX costs: the same operations on the
    same shapes.
    """
    routed = config.mlp if config.mlp.startswith("dense") else "dex"
    with torch.device("meta"):
        model = build_model(replace(config, mlp=routed, init="", grad_checkpointing="none"), teacher=teacher)
        image = torch.empty(1, config.in_chans, config.image_size, config.image_size)
        noise = torch.empty(1, model.num_patches)
    with FlopCounterMode(display=False) as inference, torch.no_grad():
        model.eval().encoder.forward_features(image)
    with FlopCounterMode(display=False) as training:
        model.train()
        if isinstance(model, DistilledEncoder):
            tokens = torch.empty(1, model.num_patches + 1, model.head.out_features, device="meta")
            model.compare(image, tokens).loss.backward()
        else:
            model(image, noise=noise, hidden_only=True).loss.backward()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Cost(parameters, inference.get_total_flops(), training.get_total_flops())


def order_digest(
    order: GlobalOrder,
    rows: np.ndarray,
    fingerprint: str,
    config: PretrainConfig,
    total_steps: int,
    own_transform: bool = False,
) -> str:
    """SHA-256 of what decides which images each step sees, how they are changed, and which patches are hidden.

    Runs with the same one gave their steps the same pixels and masks. Not in it: what a transform of the user's does,
    and which images stood in for unreadable ones.

    Args:
        order: of the samples; its first and its last epoch are hashed as they are.
        rows: of the images that take part.
        fingerprint: of the images.
        config: the run.
        total_steps: of the run.
        own_transform: whether a transform of the user's stands in the place of the augmentation.
    """
    model, data = config.model, config.data
    size = data.batch_size
    masks = [model.image_size, model.patch_size, model.mask_ratio]  # with the seed, which keys all draws
    pixels = [model.in_chans, data.statistics, data.min_area, data.flip, data.rotation, data.intensity]
    told = [fingerprint, order.seed, order.epoch_size, size, total_steps, *masks, own_transform]
    told += [] if own_transform else pixels
    digest = hashlib.sha256(json.dumps(told).encode())
    digest.update(np.ascontiguousarray(rows, dtype="<i8").tobytes())
    last = (total_steps * size - 1) // order.epoch_size
    for epoch in sorted({0, last}):
        digest.update(order.keys(epoch).astype("<i8").tobytes())
    return digest.hexdigest()


def comparison_of(config: PretrainConfig, order_sha256: str, teacher: TeacherShape | None = None) -> Comparison:
    """What comparison.json holds of a run."""
    return Comparison(config.model.mlp, order_sha256, *cost(config.model, teacher), config.objective.kind)
