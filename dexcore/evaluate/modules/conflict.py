"""Gradients of the weights that several models have in common, modality by modality, on the same images and masks."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from dexcore.checks import check_whole
from dexcore.evaluate.embedding.encode import frozen, layers_of
from dexcore.evaluate.gradients import loss_gradients, sketch
from dexcore.evaluate.modules.sample import Sample
from dexcore.evaluate.reconstruct import batches
from dexcore.evaluate.setting import Setting
from dexcore.measures.conflict import Folds
from dexcore.models import MaskedAutoencoder

FOLDS = 16  # of a modality's cases, at most


def shared_weights(models: Mapping[str, MaskedAutoencoder]) -> tuple[str, ...]:
    """Names of the encoder's weights that every image uses in all models, and that are of one shape there.

    Experts, routers and directors are none of them, and where a model is dense neither are its MLPs.
    """
    of_each = []
    for model in models.values():
        layers = {id(parameter) for layer in layers_of(model.encoder) for parameter in layer.parameters()}
        named = model.encoder.named_parameters()
        of_each.append({n: p.shape for n, p in named if p.requires_grad and id(p) not in layers})
    first, *others = of_each
    return tuple(name for name, shape in first.items() if all(other.get(name) == shape for other in others))


def fold_gradients(
    models: Mapping[str, MaskedAutoencoder],
    sample: Sample,
    setting: Setting,
    device: torch.device,
    *,
    most: int = FOLDS,
    names: Sequence[str] | None = None,
) -> dict[str, Folds]:
    """The gradients of the reconstruction loss by the weights that all models have, in folds of cases.

    A modality of fewer than two cases is left out. Gradients are kept as sketches: a cosine's standard error of that is
    at most 0.006. The models run in eval mode, through their experts, and are left as they were.

    Args:
        models: by name, of one image and patch size; on the device.
        sample: of `take_samples`, the training images.
        setting: of `setting_of`.
        device: where they run.
        most: folds of a modality.
        names: of the encoder's weights; None for `shared_weights`.

    Returns:
        Of each model by name.

    Raises:
        ValueError: the models have no weight in common, or fewer than two modalities have two cases.
    """
    check_whole("most", most, 2)
    names = shared_weights(models) if names is None else names
    if not names:
        raise ValueError(f"the models {', '.join(models)} have no weight in common: expected encoders of one width")
    folds = _folds(sample, most)
    kept = sorted({label for label, _, _ in folds})
    if len(kept) < 2:
        raise ValueError("gradients: expected two modalities with two cases each")
    label_f = np.array([kept.index(label) for label, _, _ in folds])
    half_f = np.array([half for _, half, _ in folds])
    cases = len({case for _, _, places in folds for case in sample.case_n[places].tolist()})
    found = {}
    for name, model in models.items():
        own = dict(model.encoder.named_parameters())
        weights: list[Tensor] = [own[weight] for weight in names]
        with frozen(model):
            for layer in layers_of(model):
                layer.set_mode("experts")
            sketches = torch.stack([_gradient(model, sample, fold, weights, setting, device) for *_, fold in folds])
        product = (sketches.double() @ sketches.double().T).numpy()
        total = sum(weight.numel() for weight in weights)
        found[name] = Folds(tuple(sample.modalities[m] for m in kept), label_f, half_f, product, cases, total)
    return found


def _gradient(
    model: MaskedAutoencoder,
    sample: Sample,
    places: np.ndarray,
    weights: list[Tensor],
    setting: Setting,
    device: torch.device,
) -> Tensor:
    """The sketch of the sum over a fold's images."""
    total: Tensor | None = None
    for batch in batches(sample.images, sample.rows[places], model, setting, draw=1):
        own = len(batch.sample_id) * sketch(loss_gradients(model, batch, weights, setting, device))
        total = own if total is None else total + own
    assert total is not None
    return total


def _folds(sample: Sample, most: int) -> list[tuple[int, int, np.ndarray]]:
    """(modality, half, places) of each fold; cases are dealt one after the other, the first to the first fold."""
    found = []
    for label in range(len(sample.modalities)):
        cases = np.unique(sample.case_n[sample.label_n == label])
        count = min(most, len(cases))
        if count > 1:
            for number in range(count):
                places = np.flatnonzero(np.isin(sample.case_n, cases[number::count]))
                found.append((label, number % 2, places))
    return found
