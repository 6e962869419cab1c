"""One expert after the other is knocked out, and the masked loss of held-out images measured again."""

import numpy as np
import torch

from dexcore.evaluate.modules.forwards import collect, masked_losses, used_experts
from dexcore.evaluate.modules.sample import Sample, Samples
from dexcore.evaluate.setting import Setting
from dexcore.measures.information import gate_shares
from dexcore.measures.knockout import KnockOut
from dexcore.models import MaskedAutoencoder
from dexcore.nn.expert_mask import REROUTE
from dexcore.nn.mlp import dex_layers


def shares_of(
    model: MaskedAutoencoder, sample: Sample, setting: Setting, device: torch.device
) -> tuple[np.ndarray, ...]:
    """P(expert | modality), a layer each, float64 [m, R], every case as much as it has images."""
    gates = collect(model, sample, setting, device, spaces=False).gates
    return tuple(gate_shares(sample.sums(one), sample.label_g, len(sample.modalities)) for one in gates)


def knock_out(
    model: MaskedAutoencoder,
    samples: Samples,
    setting: Setting,
    device: torch.device,
    *,
    instead: str = REROUTE,
    progress: bool = False,
) -> KnockOut:
    """Measure what each modality loses without each expert of each layer, the others running.

    Masks of images are the same in all forwards. P(expert | modality) is measured on the training images, damage on the
    held-out ones. An image is computed without those experts alone that its layer sends it to: without others nothing
    changes. The model is left as it was.

    Args:
        model: has DEX layers.
        samples: of `take_samples`.
        setting: of `setting_of`.
        device: where it runs; the model is there.
        instead: what stands in for the expert: "reroute", "zero" or "director". With as many experts as top_k there is
            none to reroute to.
        progress: show it on stderr.

    Raises:
        ValueError: no DEX layer, or no other expert to reroute to.
    """
    layers = dex_layers(model)
    sizes = [layer.num_experts for layer in layers]
    shares = shares_of(model, samples.train, setting, device)
    heldout = samples.heldout
    masks = [_without(sizes, number, expert) for number, size in enumerate(sizes) for expert in range(size)]
    used = np.concatenate(used_experts(model, heldout, setting, device), axis=1)
    asked = np.concatenate([np.ones((len(heldout), 1), bool), used], axis=1)
    told = "knocking out experts," if progress else ""
    losses = masked_losses(model, heldout, setting, device, [None, *masks], instead=instead, told=told, asked=asked)
    gained = heldout.sums(np.where(used, losses[:, 1:] - losses[:, :1], 0.0))
    return KnockOut(
        modalities=heldout.modalities,
        label_g=heldout.label_g,
        count_g=heldout.sums(np.ones(len(heldout))),
        loss_g=heldout.sums(losses[:, 0]),
        gained=tuple(np.split(gained, np.cumsum(sizes)[:-1], axis=1)),
        shares=shares,
        instead=instead,
    )


def _without(sizes: list[int], number: int, expert: int) -> list[np.ndarray]:
    keep = [np.ones(size, bool) for size in sizes]
    keep[number][expert] = False
    return keep
