"""The images of an evaluation that a report shows: what the model was given, and what it made of them."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dexcore.data.feed.augment import channel_statistics
from dexcore.data.feed.pretrain_view import Images
from dexcore.evaluate.setting import Setting
from dexcore.measures.components import principal_components
from dexcore.models import DistilledEncoder, MaskedAutoencoder
from dexcore.models.objective import Objective
from dexcore.report.evaluation import Examples

_SHARES = (0.02, 0.98)  # of the values of a colour that it spans


def example_rows(images: Images, sample_id: np.ndarray) -> np.ndarray:
    """The row to look at of every modality in ``sample_id``: the middle one of its held-out images, or of all."""
    heldout, modality = images.split[sample_id] == "heldout", images.modality[sample_id]
    rows = []
    for one in np.unique(modality):
        candidates = sample_id[(modality == one) & heldout]
        if not len(candidates):
            candidates = sample_id[modality == one]
        rows.append(candidates[len(candidates) // 2])
    return np.array(rows, dtype=np.int64)


def examples_of(
    model: Objective, images: Images, rows: np.ndarray, given: Tensor, output: Any, setting: Setting
) -> Examples:
    """The pictures of some images.

    Args:
        model: made the predictions.
        rows: of the images, [n].
        given: [n, C, S, S], as the model was given them.
        output: what it returned.
        setting: how they were shown.
    """
    shown = _input_and_output(model, given, output, setting)
    about = {"modality": images.modality[rows], "synthetic": images.synthetic[rows]}
    return Examples(**about, heldout=images.split[rows] == "heldout", **shown)


def _input_and_output(model: Objective, given: Tensor, output: Any, setting: Setting) -> dict[str, np.ndarray]:
    shown = {"input": _pixels(given, setting)}
    if isinstance(model, DistilledEncoder):
        taught, learned = _colours(model, output.target, output.pred, given.shape[-2:])
        hidden = np.zeros(shown["input"].shape[:3], dtype=np.bool_)
        return {**shown, "hidden": hidden, "patch_mean": taught, "reconstruction": learned}
    assert isinstance(model, MaskedAutoencoder)
    pred = output.pred.float()
    mean, _ = model.patch_statistics(given)
    pictures = {"patch_mean": model.unpatchify(mean.expand_as(pred)), "reconstruction": model.reconstruct(given, pred)}
    shown |= {name: _pixels(picture, setting) for name, picture in pictures.items()}
    hidden = model.unpatchify(output.mask.unsqueeze(-1).expand_as(pred))[:, 0].cpu().numpy() > 0
    return {**shown, "hidden": hidden}


def _colours(model: Objective, taught: Tensor, learned: Tensor, size: torch.Size) -> list[np.ndarray]:
    """Both tokens [n, L, K] as pictures [n, S, S, 3] in [0, 1], in the principal components of the first."""
    tokens = torch.cat([taught, learned]).cpu().numpy()
    flat = tokens.reshape(-1, tokens.shape[-1])
    own = len(flat) // 2
    projected, _ = principal_components(flat, 3, of=own)
    low, high = np.quantile(projected[:own], _SHARES, axis=0)
    colours = np.clip((projected - low) / np.maximum(high - low, 1e-9), 0, 1)
    rows, columns = model.encoder.patch_embed.grid_size
    grids = torch.from_numpy(colours).float().view(2, -1, rows, columns, 3)
    return [
        torch.nn.functional.interpolate(grid.permute(0, 3, 1, 2), size=tuple(size), mode="nearest")
        .permute(0, 2, 3, 1)
        .numpy()
        for grid in grids
    ]


def _pixels(images: Tensor, setting: Setting) -> np.ndarray:
    """Normalized images [n, C, S, S] as float32 [n, S, S, 3] in [0, 1]: of slices the middle one; gray, the channels'
    mean, where C is not 3.
    """
    images = images.cpu()
    mean, std = torch.tensor(channel_statistics(setting.statistics, setting.in_chans))
    pixels = (images.permute(0, 2, 3, 1) * std + mean).clamp(0, 1)
    if setting.slices > 1:
        pixels = pixels[..., setting.slices // 2, None]
    elif pixels.shape[-1] != 3:
        pixels = pixels.mean(-1, keepdim=True)
    return pixels.expand(*pixels.shape[:-1], 3).numpy()
