"""Numbers of a model's modules: whose loss grows without an expert, and what is left with a modality's own experts.

All are of the masked loss of images that training never saw; cases (patient, volume, file) are drawn within modalities.
"""

from pathlib import Path

import numpy as np
import torch

from dexcore.data import open_mvu
from dexcore.evaluate.claims.numbers import Number
from dexcore.evaluate.modules import extract, knock_out, setting_of, take_samples
from dexcore.measures.extraction import Extraction
from dexcore.measures.knockout import specificity_statistic
from dexcore.measures.ratio import ratio
from dexcore.models import MaskedAutoencoder
from dexcore.nn.mlp import DEXMlp

_RANDOM = 2  # draws of experts; the numbers here are of others


def module_numbers(model: Path, store: Path, images: int) -> dict[str, Number]:
    """``specificity`` of knock-outs and ``saved share`` of extraction; nothing of a model without experts.

    Args:
        model: a folder of dexcore's.
        store: whose held-out images are looked at.
        images: most of a modality and a split.

    Raises:
        StoreError: fewer than two modalities have training and held-out images.
    """
    opened = MaskedAutoencoder.from_pretrained(model).eval()
    if not any(isinstance(layer, DEXMlp) for layer in opened.modules()):
        return {}
    device, setting = torch.device("cpu"), setting_of(opened)
    samples = take_samples(open_mvu(store), images)
    knocked = knock_out(opened, samples, setting, device)
    parts = extract(opened, samples, setting, device, random=_RANDOM)
    return {
        "specificity": Number.of(specificity_statistic(knocked), knocked.label_g, "held out"),
        "saved share": saved_share(parts),
    }


def saved_share(parts: Extraction) -> Number:
    """Of what the loss grows with as few experts as can be, the share that a modality's own choice of them saves.

    0 where its own most used experts serve it no better than those that all modalities together use most; 1 where they
    lose nothing. nan where the common ones lose nothing.
    """

    def saved(weight_dg: np.ndarray) -> np.ndarray:
        own, common = (parts.growth(weight_dg, one)[:, 0] for one in (parts.own_gs, parts.common_gs))
        return ratio(common - own, common)

    return Number.of(saved, parts.label_g, "held out")
