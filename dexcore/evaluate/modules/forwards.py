"""What a model makes of a sample, in one pass over its images: gates, features, and losses under masks of experts."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dexcore.data.assemble.progress import Progress
from dexcore.evaluate.embedding.encode import frozen, layers_of
from dexcore.evaluate.modules.sample import Sample
from dexcore.evaluate.reconstruct import Batch, image_losses, names_of
from dexcore.evaluate.setting import Setting
from dexcore.models import MaskedAutoencoder
from dexcore.models.precision import autocast
from dexcore.nn import route_by_rule, set_expert_mask
from dexcore.nn.expert_mask import REROUTE

ExpertMask = Sequence[np.ndarray] | None  # bool [R] a layer; None: all experts


@dataclass(frozen=True, eq=False)
class Collected:
    """Of n whole images, the model in eval mode. Features are means over patch tokens.

    Attributes:
        gates: a layer each, float32 [n, R]; none of a dense model.
        routed: a layer each, float32 [n, D]: what the router saw.
        features: float32 [n, D], the encoder's last tokens, its experts running.
        director: the same in director mode; None of a dense model.
        on_stream: a layer each, float32 [n, D]: the director's output on the tokens that reach the experts.
        outputs: a layer each, float32 [n, D]: the experts' output on the same tokens.
    """

    gates: tuple[np.ndarray, ...]
    routed: tuple[np.ndarray, ...]
    features: np.ndarray
    director: np.ndarray | None
    on_stream: tuple[np.ndarray, ...]
    outputs: tuple[np.ndarray, ...]


def collect(
    model: MaskedAutoencoder, sample: Sample, setting: Setting, device: torch.device, *, spaces: bool = True
) -> Collected:
    """Run the encoder over whole images; without ``spaces`` the director does not run. The model is left as it was."""
    layers, prefix = layers_of(model), model.encoder.num_prefix_tokens
    found: dict[str, list[list[np.ndarray]]] = {
        name: [[] for _ in layers] for name in ("gates", "routed", "on_stream", "outputs")
    }
    features: dict[str, list[np.ndarray]] = {"features": [], "director": []}

    def note(name: str, number: int, values: Tensor) -> None:
        found[name][number].append(values.float().cpu().numpy())

    def watch(number: int) -> Any:
        def look(layer: Any, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            (x,) = arguments
            routing = layer.routing
            gates = routing.gates.new_zeros(len(x), layer.num_experts)
            note("gates", number, gates.scatter_(1, routing.indices, routing.gates))
            note("routed", number, x[:, 0] if layer.pool == "cls" else x.mean(1, dtype=torch.float32))
            if spaces:
                note("on_stream", number, layer.director(x)[:, prefix:].mean(1, dtype=torch.float32))
                note("outputs", number, output[:, prefix:].mean(1, dtype=torch.float32))

        return look

    def tokens(images: Tensor) -> np.ndarray:
        with autocast(device, setting.precision):
            made = model.encoder.forward_features(images)
        return made[:, prefix:].mean(1, dtype=torch.float32).cpu().numpy()

    with frozen(model):
        for _, batch in sample.batches(model, setting):
            images = batch.images.to(device)
            _set_modes(layers, "experts")
            hooks = [layer.register_forward_hook(watch(number)) for number, layer in enumerate(layers)]
            try:
                features["features"].append(tokens(images))
            finally:
                for hook in hooks:
                    hook.remove()
            if layers and spaces:
                _set_modes(layers, "director")
                features["director"].append(tokens(images))
    of_layers = {name: tuple(np.concatenate(one) for one in values if one) for name, values in found.items()}
    director = np.concatenate(features["director"]) if features["director"] else None
    return Collected(**of_layers, features=np.concatenate(features["features"]), director=director)


def masked_losses(
    model: MaskedAutoencoder,
    sample: Sample,
    setting: Setting,
    device: torch.device,
    masks: Sequence[ExpertMask],
    *,
    instead: str = REROUTE,
    told: str = "",
    asked: np.ndarray | None = None,
) -> np.ndarray:
    """The masked loss of each image under each mask of experts, float64 [n, masks].

    Images are decoded once, and hidden patches are the same under all masks. The model runs in eval mode, through its
    experts, and is left as it was.

    Args:
        instead: what stands in for experts that may not run (`dexcore.nn.set_expert_mask`).
        told: what is counted, for the line of progress; "" for none.
        asked: bool [n, masks], which image is asked about under which mask; others are nan. None: all.
    """
    layers = layers_of(model)
    found = np.full((len(sample), len(masks)), np.nan)
    asked = np.ones(found.shape, bool) if asked is None else asked
    with frozen(model), _shown(int(asked.sum()), told) as bar:
        _set_modes(layers, "experts")
        for places, batch in sample.batches(model, setting):
            for number, mask in enumerate(masks):
                wanted = asked[places, number]
                if wanted.any():
                    part = Batch(batch.sample_id[wanted], batch.images[wanted], batch.noise[wanted])
                    route_by_rule(model, *names_of(sample.images, part.sample_id))
                    with nullcontext() if mask is None else set_expert_mask(model, list(mask), instead):
                        found[places[wanted], number] = image_losses(model, part, setting, device)
                if bar is not None:
                    bar.update(int(wanted.sum()))
    return found


def used_experts(
    model: MaskedAutoencoder, sample: Sample, setting: Setting, device: torch.device
) -> tuple[np.ndarray, ...]:
    """Which experts take an image with hidden patches, as in `masked_losses`: a layer each, bool [n, R]."""
    layers = layers_of(model)
    found = [np.zeros((len(sample), layer.num_experts), bool) for layer in layers]
    with frozen(model):
        _set_modes(layers, "experts")
        for places, batch in sample.batches(model, setting):
            image_losses(model, batch, setting, device)
            for used, layer in zip(found, layers, strict=True):
                assert layer.routing is not None
                used[places[:, None], layer.routing.indices.cpu().numpy()] = True
    return tuple(found)


@contextmanager
def _shown(total: int, told: str) -> Iterator[Progress | None]:
    if not told:
        yield None
        return
    with Progress(total, told, unit="image") as bar:
        yield bar


def _set_modes(layers: list[Any], mode: str) -> None:
    for layer in layers:
        layer.set_mode(mode)
