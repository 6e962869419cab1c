"""Parts of a model: each modality with the experts that it uses most, that all use most, and with drawn ones."""

import numpy as np
import torch

from dexcore.checks import check_whole
from dexcore.evaluate.modules.forwards import ExpertMask, masked_losses
from dexcore.evaluate.modules.knockout import shares_of
from dexcore.evaluate.modules.sample import Samples
from dexcore.evaluate.setting import Setting
from dexcore.measures.extraction import Extraction
from dexcore.models import MaskedAutoencoder
from dexcore.nn.mlp import DEXMlp, dex_layers

RANDOM = 5  # draws of experts


def extract(
    model: MaskedAutoencoder,
    samples: Samples,
    setting: Setting,
    device: torch.device,
    *,
    random: int = RANDOM,
    seed: int = 0,
    progress: bool = False,
) -> Extraction:
    """Measure the masked loss of held-out images where some experts of each layer may run, and the others may not.

    Sizes go from the smallest top_k of the layers to one less than the most experts of one; a layer keeps its top_k at
    least, and all at most. What a modality uses is measured on training images; ties go to the lower index. The drawn
    experts of a size are among those of the next, and are the same for all modalities. The model is left as it was.

    Args:
        model: has DEX layers.
        samples: of `take_samples`.
        setting: of `setting_of`.
        device: where it runs; the model is there.
        random: draws of experts.
        seed: of the draws.
        progress: show it on stderr.

    Raises:
        ValueError: no DEX layer, or none with more experts than its top_k.
    """
    check_whole("random", random, 1)
    layers = dex_layers(model)
    sizes = range(min(layer.top_k for layer in layers), max(layer.num_experts for layer in layers))
    if not sizes:
        raise ValueError("the model's layers have no more experts than top_k: none can be left out")
    heldout, modalities = samples.heldout, len(samples.heldout.modalities)
    shares = shares_of(model, samples.train, setting, device)
    orders = [[np.argsort(-own[m], kind="stable") for own in shares] for m in range(modalities)]
    orders.append([np.argsort(-own.mean(axis=0), kind="stable") for own in shares])
    generator = np.random.default_rng(seed)
    orders += [[generator.permutation(layer.num_experts) for layer in layers] for _ in range(random)]
    masks: list[ExpertMask] = [None]
    asked = [np.ones(modalities, bool)]
    for number, order in enumerate(orders):
        for size in sizes:
            masks.append(_first(order, layers, size))
            asked.append(np.arange(modalities) == number if number < modalities else asked[0])
    told = "extracting experts," if progress else ""
    losses = masked_losses(
        model, heldout, setting, device, masks, told=told, asked=np.stack(asked, axis=1)[heldout.label_n]
    )
    parts_nos = losses[:, 1:].reshape(len(heldout), len(orders), len(sizes))
    own_ns = parts_nos[np.arange(len(heldout)), heldout.label_n]
    return Extraction(
        modalities=heldout.modalities,
        label_g=heldout.label_g,
        loss_g=heldout.sums(losses[:, 0]),
        sizes=tuple(sizes),
        own_gs=heldout.sums(own_ns),
        common_gs=heldout.sums(parts_nos[:, modalities]),
        random_qgs=np.stack([heldout.sums(parts_nos[:, modalities + 1 + draw]) for draw in range(random)]),
    )


def _first(order: list[np.ndarray], layers: list[DEXMlp], size: int) -> list[np.ndarray]:
    """The masks that keep the first ``size`` experts of each layer's order."""
    keep = [np.zeros(layer.num_experts, bool) for layer in layers]
    for mask, own, layer in zip(keep, order, layers, strict=True):
        mask[own[: max(size, layer.top_k)]] = True
    return keep
