"""Do modalities pull the weights the same way? Cosines between their gradients, and between halves of one.

Two finite samples of one modality do not give the same gradient either. Each modality's images are therefore cut into
halves: the cosine between halves is what agreement looks like with so many images, a ceiling for the cosines between
modalities, which are measured on the same halves.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dexcore.data.feed.pretrain_view import Images
from dexcore.evaluate.reconstruct import Batch, batches
from dexcore.evaluate.setting import Setting
from dexcore.measures.conflict import half_cosines
from dexcore.measures.spread import evenly
from dexcore.models.objective import Objective
from dexcore.models.precision import autocast
from dexcore.nn.mlp import DEXMlp
from dexcore.report.evaluation import Evaluation

_IMAGES = 32  # a half's gradient is a mean over so many; where there are fewer, they come again with other masks
_SKETCH = 1 << 16
_SIGNS = 20260521  # the sketch's seed


def gradient_cosines(
    model: Objective,
    images: Images,
    evaluation: Evaluation,
    setting: Setting,
    device: torch.device,
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Compare the gradients of the reconstruction loss of every two modalities that have at least two training images.

    The model is in eval mode, without exploration noise. Halves hold different groups (file, volume, patient) where a
    modality has several.

    Returns:
        Names of the g modalities; different images in the smaller half of each, [g]; and cosines [2, g, g] of the
        weights that every image uses and of the experts', as `dexcore.report.analysis.Analysis` holds them; of a dense
        encoder the first alone, [1, g, g].
    """
    names, counts = [], []
    sketches: list[Tensor] = []
    parts = _parts(model)
    for index, name in enumerate(evaluation.modality_names):
        halves = _halves(np.flatnonzero((evaluation.modality == index) & ~evaluation.heldout), evaluation.group)
        if not halves:
            continue
        names.append(name)
        counts.append(min(len(half) for half in halves))
        for half in halves:
            rows = evaluation.sample_id[half]
            gradients = _gradients(model, images, rows, [p for part in parts for p in part], setting, device)
            cut = len(parts[0])
            of_parts = (gradients[:cut], gradients[cut:])[: len(parts)]
            sketches.append(torch.stack([sketch(part) for part in of_parts]))
    if not names:
        return names, np.zeros(0, np.int64), np.zeros((len(parts), 0, 0))
    return names, np.array(counts), _cosines(torch.stack(sketches, dim=1).double())


def _parts(model: Objective) -> tuple[list[Tensor], ...]:
    """The encoder's weights that every image uses, and those of its experts, if it has any."""
    layers = [layer for layer in model.modules() if isinstance(layer, DEXMlp)]
    experts: list[Tensor] = [parameter for layer in layers for parameter in layer.experts.parameters()]
    own = {id(parameter) for parameter in experts}
    shared: list[Tensor] = [p for p in model.encoder.parameters() if p.requires_grad and id(p) not in own]
    return (shared, experts) if layers else (shared,)


def _halves(places: np.ndarray, group_n: np.ndarray) -> list[np.ndarray]:
    """Two disjoint samples of ``places``, by group where there are several; [] where there are not two images."""
    if len(places) < 2:
        return []
    names, group = np.unique(group_n[places], return_inverse=True)
    if len(names) == 1:
        halves = [places[0::2], places[1::2]]
    else:
        sides: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        sizes = np.bincount(group)
        for one in np.argsort(-sizes, kind="stable"):  # the largest first, each to the side that has less
            side = min(sides, key=lambda held: sum(map(len, held)))
            side.append(places[group == one])
        halves = [np.sort(np.concatenate(side)) for side in sides]
    return [evenly(half, _IMAGES) for half in halves]


def _gradients(
    model: Objective,
    images: Images,
    rows: np.ndarray,
    parameters: Sequence[Tensor],
    setting: Setting,
    device: torch.device,
) -> Sequence[Tensor]:
    times = np.arange(_IMAGES)
    (batch,) = batches(images, rows[times % len(rows)], model, setting, draw=1 + times // len(rows))
    return loss_gradients(model, batch, parameters, setting, device)


def loss_gradients(
    model: Objective, batch: Batch, parameters: Sequence[Tensor], setting: Setting, device: torch.device
) -> Sequence[Tensor]:
    """The gradient of a batch's reconstruction loss; zeros of what it does not depend on."""
    with torch.enable_grad(), autocast(device, setting.precision):
        loss = model(batch.images.to(device), noise=batch.noise.to(device), hidden_only=True).loss
    return torch.autograd.grad(loss, list(parameters), materialize_grads=True)


def sketch(gradients: Sequence[Tensor]) -> Tensor:
    """The gradient in 65,536 numbers (CountSketch): every entry with a random sign, added up modulo 65,536.

    Inner products stay as they are on average; a cosine's standard error is at most sqrt(2 / 65,536), 0.006. Twenty
    gradients of a large model would not fit in memory.
    """
    device = gradients[0].device
    generator = torch.Generator(device).manual_seed(_SIGNS)
    total = torch.zeros(_SKETCH, device=device)
    for gradient in gradients:
        flat = gradient.flatten().float()
        signed = flat * (2 * torch.randint(0, 2, flat.shape, generator=generator, device=device, dtype=torch.int8) - 1)
        total += torch.nn.functional.pad(signed, (0, -len(signed) % _SKETCH)).view(-1, _SKETCH).sum(0)
    return total.cpu()


def _cosines(sketches: Tensor) -> np.ndarray:
    """[parts, 2 g, K], halves side by side -> [parts, g, g]."""
    return half_cosines((sketches @ sketches.mT).numpy())
