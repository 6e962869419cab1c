"""Numbers of a model's modules: whose loss grows without an expert, what a modality's own experts are worth alone, and
whether gradients conflict.

Losses are of images that training never saw, gradients of training images; cases (patient, volume, file) are drawn
within modalities.
"""

import copy
from pathlib import Path

import numpy as np
import torch

from dexcore.data import open_mvu
from dexcore.evaluate.claims.numbers import Number
from dexcore.evaluate.modules import (
    Sample,
    Samples,
    extract,
    fold_gradients,
    knock_out,
    setting_of,
    shared_weights,
    take_samples,
)
from dexcore.evaluate.setting import Setting
from dexcore.measures.conflict import shortfall_statistic, strata
from dexcore.measures.extraction import Extraction
from dexcore.measures.knockout import specificity_statistic
from dexcore.models import MaskedAutoencoder
from dexcore.nn import upcycle
from dexcore.nn.mlp import DEXMlp

_RANDOM = 2  # draws of experts; the numbers here are of others


def module_numbers(model: Path, store: Path, images: int) -> dict[str, Number]:
    """``conflict`` of gradients; of models with experts those of `expert_numbers` too.

    All but ``conflict``, which is 0 where modalities pull one way and 1 where no way is common, are shares of the loss.

    Args:
        model: a folder of dexcore's.
        store: whose held-out images are looked at.
        images: most of a modality and a split.

    Raises:
        StoreError: fewer than two modalities have training and held-out images.
    """
    opened = MaskedAutoencoder.from_pretrained(model).eval()
    device, setting = torch.device("cpu"), setting_of(opened)
    samples = take_samples(open_mvu(store, setting.slices), images)
    routed = any(isinstance(layer, DEXMlp) for layer in opened.modules())
    numbers = {"conflict": _conflict(opened, routed, samples.train, setting, device)}
    return numbers | (expert_numbers(opened, samples, setting, device) if routed else {})


def expert_numbers(
    model: MaskedAutoencoder, samples: Samples, setting: Setting, device: torch.device
) -> dict[str, Number]:
    """``specificity`` and ``saved loss`` of a model with experts, shares of the loss."""
    knocked = knock_out(model, samples, setting, device)
    parts = extract(model, samples, setting, device, random=_RANDOM)
    return {
        "specificity": Number.of(specificity_statistic(knocked), knocked.label_g, "held out"),
        "saved loss": saved_loss(parts),
    }


def _conflict(model: MaskedAutoencoder, routed: bool, sample: Sample, setting: Setting, device: torch.device) -> Number:
    """By how much two modalities' gradients fall short of one direction, noise apart (`shortfall`).

    Of the weights that models with and without experts have in common: a dense model's MLPs take no part. Folds of
    training cases are drawn within halves.
    """
    models = {"own": model}
    if not routed:
        models["with experts"] = copy.deepcopy(model)
        upcycle(models["with experts"].encoder, num_experts=1, top_k=1)
    names = shared_weights(models)
    folds = fold_gradients({"own": model}, sample, setting, device, names=names)["own"]
    return Number.of(shortfall_statistic(folds), strata(folds), "folds")


def saved_loss(parts: Extraction) -> Number:
    """What a modality's own choice of as few experts as can be saves: of what the loss grows, a share of the whole's.

    0 where its own most used experts serve it no better than those that all modalities together use most.
    """

    def saved(weight_dg: np.ndarray) -> np.ndarray:
        own, common = (parts.growth(weight_dg, one)[:, 0] for one in (parts.own_gs, parts.common_gs))
        return np.asarray(common - own)

    return Number.of(saved, parts.label_g, "held out")
