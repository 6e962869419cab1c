"""An autoencoder's numbers on training and held-out images, for the report: before training, and after it."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from dexcore.data.feed.augment import channel_statistics
from dexcore.data.feed.keyed import Stream, generator
from dexcore.data.feed.pretrain_view import Images
from dexcore.data.store.manifest import ImageDecodeError, StoreError
from dexcore.evaluate.examples import example_rows, examples_of
from dexcore.evaluate.setting import Setting
from dexcore.measures.spread import evenly
from dexcore.models.objective import Objective, Score
from dexcore.models.precision import autocast
from dexcore.nn import route_by_rule
from dexcore.nn.mlp import DEXMlp
from dexcore.report.evaluation import Evaluation, Examples
from dexcore.view import evaluation_view

_log = logging.getLogger(__name__)
_BATCH = 64
_NO_EPOCH = np.uint64(2**64 - 1)  # it and what lies below key masks that no epoch of training draws


class Batch(NamedTuple):
    """Images as the model takes them, and the draws that mask them."""

    sample_id: np.ndarray  # [n]
    images: torch.Tensor  # [n, C, S, S], normalized
    noise: torch.Tensor  # [n, L], makes the masks


@torch.no_grad()
def evaluate(model: Objective, images: Images, setting: Setting, device: torch.device) -> Evaluation:
    """Run ``model`` over up to ``setting.images`` images a modality of either split, and leave it in
    eval mode.

    They are evenly spaced in the store, cut to the centre square, and masked by draws keyed on (seed, sample
    id); those that cannot be decoded are left out. A modality's example is the middle one of its held-out
    images, or of its training images where none is held out.

    Raises:
        StoreError: none of the images can be decoded.
    """
    model.eval()
    layers = [layer for layer in model.modules() if isinstance(layer, DEXMlp)]
    sample_ids: list[int] = []
    squared_error, total = [], []
    gates: list[list[np.ndarray]] = [[] for _ in layers]
    for batch in batches(images, chosen_rows(images, setting.images), model, setting):
        output, score = _scored(model, batch, setting, device)
        sample_ids.extend(batch.sample_id)
        squared_error.append((score.error * output.mask).sum(1).double().cpu().numpy())
        total.append((score.total * output.mask).sum(1).double().cpu().numpy())
        for block, layer in zip(gates, layers, strict=True):
            block.append(_dense_gates(layer).cpu().numpy())
    if not sample_ids:
        raise StoreError(f"data.store: no image of {images.name} that was to be evaluated can be decoded")
    sample_id = np.array(sample_ids)
    return Evaluation(
        modality_names=images.modality_names,
        modality=images.modality[sample_id],
        heldout=images.split[sample_id] == "heldout",
        synthetic=images.synthetic[sample_id],
        group=images.group[sample_id],
        sample_id=sample_id,
        squared_error=np.concatenate(squared_error),
        total=np.concatenate(total),
        gates=[np.concatenate(block) for block in gates],
        examples=_examples(model, images, sample_id, setting, device),
    )


def chosen_rows(images: Images, most: int, splits: Sequence[str] = ("train", "heldout")) -> np.ndarray:
    """Rows of the store: up to ``most`` evenly spaced ones of every modality and split."""
    chosen = [np.zeros(0, np.int64)]
    for split in splits:
        for modality in range(len(images.modality_names)):
            rows = np.flatnonzero((images.split == split) & (images.modality == modality))
            if len(rows):
                chosen.append(evenly(rows, most))
    return np.concatenate(chosen)


def batches(
    images: Images,
    rows: np.ndarray,
    model: Objective,
    setting: Setting,
    draw: npt.ArrayLike = 0,
) -> Iterator[Batch]:
    """The rows' images, up to 64 at a time: the centre square, and mask noise keyed on (seed, sample id, draw).

    Those that cannot be decoded are left out. A model whose experts are chosen by a rule is told the images of each
    batch.

    Args:
        draw: at least 0; one number, or one a row: an image that comes twice needs two masks.

    Raises:
        ValueError: ``images`` show another number of slices than the model was trained on.
    """
    if images.slices != setting.slices:
        raise ValueError(f"images must show slices = {setting.slices}, as the model was trained, got {images.slices}")
    statistics = channel_statistics(setting.statistics, setting.in_chans)
    epochs = _NO_EPOCH - np.broadcast_to(np.asarray(draw, dtype=np.uint64), len(rows))
    for start in range(0, len(rows), _BATCH):
        sample_id, tensors, noise = [], [], []
        part = slice(start, start + _BATCH)
        for row, epoch in zip(rows[part].tolist(), epochs[part].tolist(), strict=True):
            try:
                pixels = images.read(row)
            except ImageDecodeError as error:
                _log.warning("not evaluated: %s", error)
                continue
            sample_id.append(row)
            tensors.append(evaluation_view(pixels, setting.image_size, *statistics))
            draws = generator(setting.seed, epoch, row, Stream.MASK)
            noise.append(torch.from_numpy(draws.random(model.num_patches, dtype=np.float32)))
        if sample_id:
            route_by_rule(model, *names_of(images, np.array(sample_id)))
            yield Batch(np.array(sample_id), torch.stack(tensors), torch.stack(noise))


def names_of(images: Images, sample_id: np.ndarray) -> tuple[list[str], list[str]]:
    """What a routing rule is told of a run's images: their numbers, as texts, and their modalities."""
    modalities = [images.modality_names[index] for index in images.modality[sample_id].tolist()]
    return [str(number) for number in sample_id.tolist()], modalities


def _scored(model: Objective, batch: Batch, setting: Setting, device: torch.device) -> tuple[Any, Score]:
    """What the model makes of a batch, and how well."""
    images = batch.images.to(device)
    with autocast(device, setting.precision):
        output = model(images, noise=batch.noise.to(device))
    return output, model.score(images, output)


@torch.no_grad()
def image_losses(model: Objective, batch: Batch, setting: Setting, device: torch.device) -> np.ndarray:
    """The loss of the objective of each image: float64 [n]."""
    _, score = _scored(model, batch, setting, device)
    return score.loss.double().cpu().numpy()


def _dense_gates(layer: DEXMlp) -> torch.Tensor:
    """The last forward's gates [n, R], 0 for experts that were not chosen."""
    assert layer.routing is not None
    gates, indices = layer.routing.gates.float(), layer.routing.indices
    return gates.new_zeros(len(gates), layer.num_experts).scatter_(1, indices, gates)


def _examples(
    model: Objective,
    images: Images,
    sample_id: np.ndarray,
    setting: Setting,
    device: torch.device,
) -> Examples:
    (batch,) = batches(images, example_rows(images, sample_id), model, setting)
    output, _ = _scored(model, batch, setting, device)
    return examples_of(model, images, batch.sample_id, batch.images.to(device), output, setting)
