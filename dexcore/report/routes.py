"""What the use of experts says: who starves, and how images flow from block to block.

Axes: s steps, m modalities, r experts of a block, q experts of the next.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dexcore.report.evaluation import Evaluation
from dexcore.report.history import History
from dexcore.report.specialization import Specialization

STARVING = 0.1  # of an even share


@dataclass(frozen=True, eq=False)
class Hunger:
    """How evenly a block's experts were used.

    Attributes:
        share_r: float64 [r], share of the gates over the last tenth of the run, in multiples of an even share 1 / r.
        starving: numbers (from 1) of the experts under `STARVING`.
        course: float64 [bins], how many starved over the run.
    """

    share_r: np.ndarray
    starving: tuple[int, ...]
    course: np.ndarray


def hunger(history: History, bins: int = 40) -> tuple[Hunger, ...]:
    """Measure every block's load; the course is cut into ``bins`` pieces at most, of equal numbers of steps."""
    blocks = []
    for load_sr in history.load:
        relative = np.nan_to_num(load_sr) * load_sr.shape[1]
        last = relative[-max(1, len(relative) // 10) :].mean(axis=0)
        pieces = np.array_split(relative, min(bins, len(relative)))
        course = np.array([(piece.mean(axis=0) < STARVING).sum() for piece in pieces], dtype=np.float64)
        starving = tuple(int(expert) + 1 for expert in np.flatnonzero(last < STARVING))
        blocks.append(Hunger(last, starving, course))
    return tuple(blocks)


def starving_evaluated(blocks: Sequence[Specialization]) -> tuple[tuple[int, ...], ...]:
    """Numbers (from 1) of every block's experts under `STARVING` on the evaluated images, modalities weighing the same.

    There is no exploration noise there, unlike in training; so it can be asked of a model that was not trained yet.
    """
    shares = [np.nan_to_num(block.shares_mr.mean(axis=0)) * block.shares_mr.shape[1] for block in blocks]
    return tuple(tuple(int(expert) + 1 for expert in np.flatnonzero(share_r < STARVING)) for share_r in shares)


@dataclass(frozen=True, eq=False)
class Flow:
    """Where the images of each modality go, by the strongest expert of every block.

    Attributes:
        modalities: int64 [m], indices of those with images.
        blocks: numbers (from 1) of the blocks looked at.
        mass_mr: an entry a block, float64 [m, r]: share of all images, modalities weighing the same, whose strongest
            expert it is.
        ribbons_mrq: an entry a pair of consecutive ones, float64 [m, r, q]: the same by expert here and in the next.
    """

    modalities: np.ndarray
    blocks: tuple[int, ...]
    mass_mr: tuple[np.ndarray, ...]
    ribbons_mrq: tuple[np.ndarray, ...]


def flow(evaluation: Evaluation, most: int = 8) -> Flow:
    """Follow the images through at most ``most`` blocks, evenly spaced, first and last among them."""
    depth = len(evaluation.gates)
    chosen = np.unique(np.linspace(0, depth - 1, min(most, depth)).round().astype(int)).tolist()
    present, modality = np.unique(evaluation.modality, return_inverse=True)
    weight = 1 / np.bincount(modality, minlength=len(present))[modality] / max(len(present), 1)
    path = [np.nan_to_num(evaluation.gates[block]).argmax(axis=1) for block in chosen]
    sizes = [evaluation.gates[block].shape[1] for block in chosen]
    masses = [_summed(weight, (modality, here), (len(present), r)) for here, r in zip(path, sizes, strict=True)]
    ribbons = [
        _summed(weight, (modality, path[i], path[i + 1]), (len(present), sizes[i], sizes[i + 1]))
        for i in range(len(path) - 1)
    ]
    return Flow(present, tuple(block + 1 for block in chosen), tuple(masses), tuple(ribbons))


def _summed(weight: np.ndarray, index: Sequence[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    total = np.zeros(shape)
    np.add.at(total, tuple(index), weight)
    return total
