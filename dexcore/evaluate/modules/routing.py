"""Whether a model's routers follow modalities, beside what an untrained one and an image's intensities reach."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from dexcore.data.feed.augment import channel_statistics
from dexcore.evaluate.modules.forwards import Collected, collect
from dexcore.evaluate.modules.sample import Sample
from dexcore.evaluate.probes.baselines import PATCH, SIZE, intensities
from dexcore.evaluate.setting import Setting
from dexcore.measures.bootstrap import Estimate, bootstrap, mean_statistic
from dexcore.measures.information import gate_shares
from dexcore.measures.neighbors import neighbor_accuracy
from dexcore.measures.routing import Control, Depth, control, over_depth, random_routers
from dexcore.models import MaskedAutoencoder
from dexcore.nn.mlp import DEXMlp, dex_layers


@dataclass(frozen=True, eq=False)
class RoutingMeasures:
    """What routing tells of modalities, on whole images.

    Attributes:
        modalities: names of the m modalities.
        images, cases: how many were measured.
        shares: a block each, float64 [m, R]: P(expert | modality).
        trained: the model's routers.
        untrained: those of the same architecture with new weights throughout, as before a first step.
        random: a block each: random routers on what the trained router sees: what is the router's own work, and not
            that of the layers below it.
        histogram: a block each: random routers on intensity histogram and thumbnail: what exposure tells alone.
        by_gates: the share of images whose modality is that of most of the five nearest images of other cases by the
            gates of all blocks; cases of a modality count alike, and so do modalities.
        by_histogram: the same by histogram and thumbnail.
        gates_minus_histogram: the difference, on the same draws of cases.
    """

    modalities: tuple[str, ...]
    images: int
    cases: int
    shares: tuple[np.ndarray, ...]
    trained: Depth
    untrained: Depth
    random: tuple[Control, ...]
    histogram: tuple[Control, ...]
    by_gates: Estimate
    by_histogram: Estimate
    gates_minus_histogram: Estimate


def measure_routing(
    model: MaskedAutoencoder,
    sample: Sample,
    setting: Setting,
    device: torch.device,
    *,
    collected: Collected | None = None,
    seed: int = 0,
) -> RoutingMeasures:
    """Measure the routers of every block. The model is left as it was.

    Args:
        model: has DEX layers.
        sample: of `take_samples`.
        setting: of `setting_of`.
        device: where it runs; the model is there.
        collected: what `collect` found of the same, where that is known.
        seed: of new weights, random routers, permutations and draws of cases.

    Raises:
        ValueError: no DEX layer.
    """
    layers = dex_layers(model)
    found = collected or collect(model, sample, setting, device, spaces=False)
    masses, label_g = routing_masses(found, sample), sample.label_g
    seen = histograms(sample, model, setting)
    before = collect(untrained(model, seed), sample, setting, device, spaces=False)
    controls: list[list[Control]] = [[], []]
    for number, layer in enumerate(layers):
        spread = _spread(layer, found.routed[number])
        for own, features in zip(controls, (found.routed[number], seen), strict=True):
            routers = random_routers(features, spread, layer.num_experts, layer.top_k, layer.tau, seed=seed)
            own.append(control(masses[number], [sample.sums(gates) for gates in routers], label_g, seed=seed))
    by_gates, by_histogram, difference = _neighbors(np.concatenate(found.gates, axis=1), seen, sample, seed)
    return RoutingMeasures(
        modalities=sample.modalities,
        images=len(sample),
        cases=len(label_g),
        shares=tuple(gate_shares(mass, label_g, len(sample.modalities)) for mass in masses),
        trained=over_depth(masses, label_g, seed=seed),
        untrained=over_depth(routing_masses(before, sample), label_g, seed=seed),
        random=tuple(controls[0]),
        histogram=tuple(controls[1]),
        by_gates=by_gates,
        by_histogram=by_histogram,
        gates_minus_histogram=difference,
    )


def routing_masses(collected: Collected, sample: Sample) -> tuple[np.ndarray, ...]:
    """The gates that each expert gave to each case, a block each, float64 [g, R]: what `stability` compares."""
    return tuple(sample.sums(gates) for gates in collected.gates)


def untrained(model: MaskedAutoencoder, seed: int = 0) -> MaskedAutoencoder:
    """A copy with new weights throughout, as before a first step."""
    fresh = copy.deepcopy(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh.cpu().init_weights()
    return fresh.to(next(model.parameters()).device)


def histograms(sample: Sample, model: MaskedAutoencoder, setting: Setting) -> np.ndarray:
    """Intensity histogram and thumbnail of each image as the model is shown it, float32 [n, K]."""
    mean, std = (
        torch.tensor(values)[:, None, None] for values in channel_statistics(setting.statistics, setting.in_chans)
    )
    found = []
    for _, batch in sample.batches(model, setting):
        pixels = (batch.images * std + mean).clamp(0, 1)
        if setting.image_size % PATCH:
            pixels = F.adaptive_avg_pool2d(pixels, SIZE)
        found.append(intensities(pixels)[0].numpy())
    return np.concatenate(found)


def _spread(layer: DEXMlp, routed_nd: np.ndarray) -> float:
    """The standard deviation over experts of the router's logits, mean over images."""
    weight = layer.router.weight.detach().float().cpu().numpy()
    return float((routed_nd @ weight.T).std(axis=1).mean())


def _neighbors(gates_nr: np.ndarray, seen_nk: np.ndarray, sample: Sample, seed: int) -> Sequence[Estimate]:
    deviation = seen_nk.std(axis=0)
    seen = seen_nk / np.where(deviation > 0, deviation, 1.0)
    right = [neighbor_accuracy(one, sample.label_n, sample.case_n).right_n for one in (gates_nr, seen)]
    count = sample.sums(np.ones(len(sample)))
    shares = [sample.sums(np.nan_to_num(one)) / count for one in right]
    asked = np.isfinite(right[0]) & np.isfinite(right[1])
    if not asked.any():
        nothing = Estimate(math.nan, math.nan, math.nan, math.nan, 0, 0)
        return nothing, nothing, nothing
    known = sample.sums(asked.astype(float)) > 0
    own = np.eye(len(sample.modalities), dtype=bool)[sample.label_g] & known[:, None]

    def of(values_g: np.ndarray) -> np.ndarray:
        return np.where(own, values_g[:, None], np.nan)

    found = bootstrap(
        {
            "gates": mean_statistic(of(shares[0])),
            "histogram": mean_statistic(of(shares[1])),
            "difference": mean_statistic(of(shares[0] - shares[1])),
        },
        sample.label_g,
        seed=seed,
    )
    return found["gates"], found["histogram"], found["difference"]
