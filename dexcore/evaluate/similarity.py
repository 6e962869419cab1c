"""How alike a block's experts are, and how far from the director, on the same few images at some moments of a run."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dexcore import ops
from dexcore.data.feed.pretrain_view import Images
from dexcore.data.store.manifest import StoreError
from dexcore.evaluate.reconstruct import Batch, batches
from dexcore.evaluate.setting import Setting
from dexcore.measures.cka import linear_cka
from dexcore.measures.spread import evenly
from dexcore.models.objective import Objective
from dexcore.models.precision import autocast
from dexcore.nn.mlp import DEXMlp, dex_layers
from dexcore.ops.mix_align import align_floor

_IMAGES = 30
_TOKENS = 512  # of them all, that a block's experts are compared on
_MOMENTS = 11


def moments(total_steps: int) -> frozenset[int]:
    """The numbers of steps done at which a run is measured: none, all, and evenly spread between, eleven or fewer."""
    return frozenset(np.linspace(0, total_steps, _MOMENTS).round().astype(int).tolist())


@torch.no_grad()
def expert_similarity(model: Objective, images: Images, setting: Setting, device: torch.device) -> list[np.ndarray]:
    """Linear CKA between the outputs of every two FFNs of a block, the director last: [R + 1, R + 1] a block.

    All of them are given the same tokens: those that reach the block in some 30 whole images of the store, whoever
    they were routed to. Which images depends on the store alone, as many of each modality. The model runs in eval mode
    and is left in the mode it was in; nothing is drawn at random.

    Raises:
        StoreError: none of these images can be decoded.
    """
    batch = _few(model, images, setting)
    layers = dex_layers(model)
    inputs: list[Tensor] = []
    hooks = [layer.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0])) for layer in layers]
    training = model.training
    model.eval()
    try:
        with autocast(device, setting.precision):
            model.encoder.forward_features(batch.images.to(device))
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return [linear_cka(_outputs(layer, x.flatten(0, 1))) for layer, x in zip(layers, inputs, strict=True)]


@dataclass(frozen=True)
class Alignment:
    """The alignment loss of every DEX block, from the first on, and what it is where experts and director agree."""

    kind: str
    loss: list[float]
    floor: list[float]


@torch.no_grad()
def alignment(model: Objective, images: Images, setting: Setting, device: torch.device) -> Alignment:
    """Measure it on the images of `expert_similarity`, masked as in an evaluation, without exploration noise.

    In training the loss is taken with its gradient in one pass, which does not know the floor: it is taken here, with
    the loss of the same tokens. The model is left in the mode it was in; nothing is drawn at random.

    Raises:
        StoreError: none of these images can be decoded.
    """
    batch = _few(model, images, setting)
    layers = dex_layers(model)
    seen: list[tuple[Tensor, Tensor]] = []

    def keep(layer: torch.nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append((output, layer.director(arguments[0])))  # type: ignore[operator]  # a DEXMlp's

    hooks = [layer.register_forward_hook(keep) for layer in layers]
    training = model.training
    model.eval()
    try:
        with autocast(device, setting.precision):
            model(batch.images.to(device), noise=batch.noise.to(device))
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    losses, floors = [], []
    for layer, pair in zip(layers, seen, strict=True):
        experts, director = (tensor.float().cpu().double() for tensor in pair)
        losses.append(ops.mix_align(experts, director, layer.align, backend="eager").item())
        floors.append(align_floor(director, layer.align).item())
    return Alignment(layers[0].align, losses, floors)


def _few(model: Objective, images: Images, setting: Setting) -> Batch:
    batch = next(batches(images, _rows(images), model, setting), None)
    if batch is None:
        raise StoreError(f"data.store: none of {_IMAGES} images from all over {images.name} can be decoded")
    return batch


def _rows(images: Images) -> np.ndarray:
    """Evenly spaced rows of every modality."""
    found = np.unique(images.modality)
    of_each = [np.flatnonzero(images.modality == modality) for modality in found]
    return np.concatenate([evenly(rows, max(1, _IMAGES // len(found))) for rows in of_each])


def _outputs(layer: DEXMlp, tokens_nd: Tensor) -> np.ndarray:
    """What each expert, and last the director, makes of some of the tokens: [R + 1, n, D]."""
    some = torch.from_numpy(evenly(np.arange(len(tokens_nd)), _TOKENS)).to(tokens_nd.device)
    tokens = tokens_nd[some].to(layer.router.weight.dtype)
    fc1, fc2 = layer.experts.fc1, layer.experts.fc2
    weights = (fc1.weight, fc1.bias, fc2.weight, fc2.bias)
    found = []
    for expert in range(layer.num_experts):
        gates, indices = tokens.new_ones(1, 1), torch.full((1, 1), expert, device=tokens.device)
        # Eager: kernels would have to be compiled for a handful of small products.
        found.append(ops.expert_mlp(tokens[None], *weights, gates, indices, layer.activation, backend="eager")[0])
    found.append(layer.director(tokens))
    return torch.stack(found).float().cpu().numpy()
