"""How alike the experts of a block are, measured on the same few images at a handful of moments of a run."""

import numpy as np
import torch
from torch import Tensor

from dexcore import ops
from dexcore.data.dataset import MVUDataset
from dexcore.data.manifest import StoreError
from dexcore.models import MaskedAutoencoder
from dexcore.nn.mlp import DEXMlp, dex_layers
from dexcore.report.geometry import linear_cka
from dexcore.train.config import PretrainConfig
from dexcore.train.device import autocast
from dexcore.train.evaluate import batches

_IMAGES = 30
_TOKENS = 512  # of them all, that a block's experts are compared on
_MOMENTS = 11


def moments(total_steps: int) -> frozenset[int]:
    """The numbers of steps done at which a run is measured: none, all, and evenly spread between, eleven or fewer."""
    return frozenset(np.linspace(0, total_steps, _MOMENTS).round().astype(int).tolist())


@torch.no_grad()
def expert_similarity(
    model: MaskedAutoencoder, images: MVUDataset, config: PretrainConfig, device: torch.device
) -> list[np.ndarray]:
    """Linear CKA between the outputs of every two FFNs of a block, the director last: [R + 1, R + 1] a block.

    All of them are given the same tokens: those that reach the block in some 30 whole images of the store, whoever
    they were routed to. Which images depends on the store alone, as many of each modality. The model runs in eval mode
    and is left in the mode it was in; nothing is drawn at random.

    Raises:
        StoreError: none of these images can be decoded.
    """
    batch = next(batches(images, _rows(images), model, config), None)
    if batch is None:
        raise StoreError(f"data.store: none of {_IMAGES} images from all over {images.name} can be decoded")
    layers = dex_layers(model)
    inputs: list[Tensor] = []
    hooks = [layer.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0])) for layer in layers]
    training = model.training
    model.eval()
    try:
        with autocast(device, config.run.precision):
            model.encoder.forward_features(batch.images.to(device))
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return [linear_cka(_outputs(layer, x.flatten(0, 1))) for layer, x in zip(layers, inputs, strict=True)]


def _rows(images: MVUDataset) -> np.ndarray:
    """Evenly spaced rows of every modality."""
    found = np.unique(images.modality)
    of_each = [np.flatnonzero(images.modality == modality) for modality in found]
    return np.concatenate([_evenly(rows, max(1, _IMAGES // len(found))) for rows in of_each])


def _evenly(values: np.ndarray, most: int) -> np.ndarray:
    return values[np.unique(np.linspace(0, len(values) - 1, most).round().astype(int))]


def _outputs(layer: DEXMlp, tokens_nd: Tensor) -> np.ndarray:
    """What each expert, and last the director, makes of some of the tokens: [R + 1, n, D]."""
    some = torch.from_numpy(_evenly(np.arange(len(tokens_nd)), _TOKENS)).to(tokens_nd.device)
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
