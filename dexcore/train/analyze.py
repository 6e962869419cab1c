"""What a trained model alone can tell the report: its features, its gradients, what its experts compute."""

import numpy as np
import torch
from torch import Tensor

from dexcore.data.feed.pretrain_view import Images
from dexcore.data.synthetic import SyntheticMVU, stored_label
from dexcore.models import MaskedAutoencoder
from dexcore.nn import set_mode
from dexcore.report.analysis import MODES, Analysis
from dexcore.report.evaluation import Evaluation
from dexcore.report.geometry import principal_components
from dexcore.train.config import PretrainConfig
from dexcore.train.device import autocast
from dexcore.train.evaluate import batches, example_rows
from dexcore.train.gradients import gradient_cosines
from dexcore.train.similarity import expert_similarity


def analyze(
    model: MaskedAutoencoder,
    images: Images,
    evaluation: Evaluation,
    config: PretrainConfig,
    device: torch.device,
) -> Analysis:
    """Measure ``model`` on the images of ``evaluation``, and leave it in eval mode, its experts running."""
    model.eval()
    rows = evaluation.sample_id
    patches, variance = _patches(model, images, example_rows(images, rows), config, device)
    modalities, counts, cosines = gradient_cosines(model, images, evaluation, config, device)
    return Analysis(
        label_names=SyntheticMVU.labels,
        label=_labels(images, rows),
        features=_features(model, images, rows, config, device),
        patches=patches,
        patch_variance=variance,
        gradient_modalities=modalities,
        gradient_images=counts,
        gradient_cosines=cosines,
        expert_similarity=expert_similarity(model, images, config, device),
    )


def _labels(images: Images, rows: np.ndarray) -> np.ndarray:
    """The class of generated images [n]; -1 for others."""
    found = [stored_label(source, group) for source, group in zip(images.source[rows], images.group[rows], strict=True)]
    return np.array([-1 if label is None else label for label in found], dtype=np.int64)


@torch.no_grad()
def _features(
    model: MaskedAutoencoder, images: Images, rows: np.ndarray, config: PretrainConfig, device: torch.device
) -> np.ndarray:
    """The encoder's own pooled feature of whole images, [2, n, D]: in experts and in director mode."""
    found: list[list[np.ndarray]] = [[] for _ in MODES]
    for batch in batches(images, rows, model, config):
        for features, tokens in zip(found, _tokens(model, batch.images.to(device), config, device), strict=True):
            pooled = model.encoder.forward_head(tokens, pre_logits=True)
            features.append(pooled.float().cpu().numpy())
    return np.stack([np.concatenate(features) for features in found])


@torch.no_grad()
def _patches(
    model: MaskedAutoencoder, images: Images, rows: np.ndarray, config: PretrainConfig, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """Three principal components of patch tokens, [2, m, rows, columns, 3], of all images and both modes together."""
    (batch,) = batches(images, rows, model, config)
    both = torch.stack(_tokens(model, batch.images.to(device), config, device))
    both = both[:, :, model.encoder.num_prefix_tokens :].float().cpu()
    projected, variance = principal_components(both.reshape(-1, both.shape[-1]).numpy(), 3)
    return projected.reshape(len(MODES), len(rows), *model.encoder.patch_embed.grid_size, 3), variance


def _tokens(model: MaskedAutoencoder, images: Tensor, config: PretrainConfig, device: torch.device) -> list[Tensor]:
    """The encoder's tokens [n, N, D] of whole images in each mode."""
    found = []
    try:
        for mode in MODES:
            set_mode(model, mode)
            with autocast(device, config.run.precision):
                found.append(model.encoder.forward_features(images))
    finally:
        set_mode(model, "experts")
    return found
