"""Whether an evaluation's experts follow modalities.

Axes: g groups (file, volume, patient), m modalities.
"""

from dataclasses import dataclass

import numpy as np

from dexcore.measures.information import PERMUTATIONS, Information, gate_mass, information, permuted_labels
from dexcore.report.evaluation import Evaluation


@dataclass(frozen=True, eq=False)
class Specialization(Information):
    """How far the experts of one block follow the modalities.

    Attributes:
        modalities: names of the m modalities that were evaluated.
        synthetic: for each of them, whether any of its images is synthetic.
    """

    modalities: tuple[str, ...]
    synthetic: tuple[bool, ...]


def specialization(
    evaluation: Evaluation, permutations: int = PERMUTATIONS, seed: int = 0
) -> tuple[Specialization, ...]:
    """Measure every DEX block on all evaluated images, against labels permuted by group."""
    if not len(evaluation) or not evaluation.gates:
        return ()
    present = np.unique(evaluation.modality)
    modalities = tuple(evaluation.modality_names[index] for index in present)
    synthetic = tuple(bool(evaluation.synthetic[evaluation.modality == index].any()) for index in present)
    group_modality, group_n = evaluation.groups()
    label_g = np.searchsorted(present, group_modality)
    labels_pg = permuted_labels(label_g, permutations, seed)
    blocks = []
    for gates_nr in evaluation.gates:
        found = information(gate_mass(gates_nr, group_n, len(label_g)), label_g, labels_pg)
        blocks.append(Specialization(**vars(found), modalities=modalities, synthetic=synthetic))
    return tuple(blocks)
