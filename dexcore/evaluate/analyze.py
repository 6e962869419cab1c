"""What a trained model alone can tell the report: its features, its gradients, what its experts compute."""

import numpy as np
import torch
from torch import Tensor

from dexcore.data.feed.pretrain_view import Images
from dexcore.data.synthetic import SyntheticMVU, stored_label
from dexcore.evaluate.examples import example_rows
from dexcore.evaluate.gradients import gradient_cosines
from dexcore.evaluate.reconstruct import batches
from dexcore.evaluate.setting import Setting
from dexcore.evaluate.similarity import expert_similarity
from dexcore.measures.components import principal_components
from dexcore.models.objective import Objective
from dexcore.models.precision import autocast
from dexcore.nn import set_mode
from dexcore.nn.mlp import DEXMlp
from dexcore.report.analysis import MODES, Analysis
from dexcore.report.evaluation import Evaluation


def analyze(
    model: Objective,
    images: Images,
    evaluation: Evaluation,
    setting: Setting,
    device: torch.device,
) -> Analysis:
    """Measure ``model`` on the images of ``evaluation``, and leave it in eval mode, its experts (if any) running."""
    model.eval()
    rows = evaluation.sample_id
    patches, variance = _patches(model, images, example_rows(images, rows), setting, device)
    modalities, counts, cosines = gradient_cosines(model, images, evaluation, setting, device)
    return Analysis(
        label_names=SyntheticMVU.labels,
        label=_labels(images, rows),
        features=_features(model, images, rows, setting, device),
        patches=patches,
        patch_variance=variance,
        gradient_modalities=modalities,
        gradient_images=counts,
        gradient_cosines=cosines,
        expert_similarity=expert_similarity(model, images, setting, device) if len(_modes(model)) > 1 else [],
    )


def _labels(images: Images, rows: np.ndarray) -> np.ndarray:
    """The class of generated images [n]; -1 for others."""
    found = [stored_label(source, group) for source, group in zip(images.source[rows], images.group[rows], strict=True)]
    return np.array([-1 if label is None else label for label in found], dtype=np.int64)


@torch.no_grad()
def _features(model: Objective, images: Images, rows: np.ndarray, setting: Setting, device: torch.device) -> np.ndarray:
    """The encoder's own pooled feature of whole images in each of its modes, [modes, n, D]."""
    found: list[list[np.ndarray]] = [[] for _ in _modes(model)]
    for batch in batches(images, rows, model, setting):
        for features, tokens in zip(found, _tokens(model, batch.images.to(device), setting, device), strict=True):
            pooled = model.encoder.forward_head(tokens, pre_logits=True)
            features.append(pooled.float().cpu().numpy())
    return np.stack([np.concatenate(features) for features in found])


@torch.no_grad()
def _patches(
    model: Objective, images: Images, rows: np.ndarray, setting: Setting, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """Three principal components of patch tokens, [modes, m, rows, columns, 3], of all images and modes together."""
    (batch,) = batches(images, rows, model, setting)
    both = torch.stack(_tokens(model, batch.images.to(device), setting, device))
    both = both[:, :, model.encoder.num_prefix_tokens :].float().cpu()
    projected, variance = principal_components(both.reshape(-1, both.shape[-1]).numpy(), 3)
    return projected.reshape(len(both), len(rows), *model.encoder.patch_embed.grid_size, 3), variance


def _tokens(model: Objective, images: Tensor, setting: Setting, device: torch.device) -> list[Tensor]:
    """The encoder's tokens [n, N, D] of whole images in each mode."""
    found = []
    modes = _modes(model)
    try:
        for mode in modes:
            if mode:
                set_mode(model, mode)
            with autocast(device, setting.precision):
                found.append(model.encoder.forward_features(images))
    finally:
        if modes != (None,):
            set_mode(model, "experts")
    return found


def _modes(model: Objective) -> tuple[str | None, ...]:
    """Those that the encoder can run in; None is the one of a dense encoder."""
    return MODES if any(isinstance(part, DEXMlp) for part in model.modules()) else (None,)
