"""Measures and what training changed of them, as objects for JSON; numbers that do not exist are None."""

import math
from typing import Any

from dexcore.measures.neighbors import Neighbors
from dexcore.report.change import DRAWS, Change
from dexcore.report.compared import Compared, Measures
from dexcore.report.routes import starving_evaluated
from dexcore.report.variance import SplitVariance, Variance


def measures_dict(measures: Measures) -> dict[str, Any]:
    """The measures of one state of a model."""
    return {
        "variance_explained": {
            "training": _split_dict(measures.training),
            "heldout": _split_dict(measures.heldout),
        },
        "specialization": [
            {
                "block": number,
                "experts": block.shares_mr.shape[1],
                "nmi": number_or_none(block.nmi),
                "null_mean": number_or_none(block.null_mean),
                "null_95": number_or_none(block.null_95),
                "p_value": number_or_none(block.p_value),
            }
            for number, block in enumerate(measures.blocks, start=1)
        ],
        "starving_on_evaluated_images": [list(block) for block in starving_evaluated(measures.blocks)],
        "expert_similarity": [
            {
                "block": number,
                "mean": number_or_none(block.mean),
                "lowest": number_or_none(block.lowest),
                "director": number_or_none(block.director),
            }
            for number, block in enumerate(measures.likeness, start=1)
        ],
        "nearest_neighbors": [
            {
                "mode": one.mode,
                "modality": _neighbors_dict(one.modality),
                "label": _neighbors_dict(one.label),
                "label_across_modalities": _neighbors_dict(one.label_across),
            }
            for one in measures.separation
        ],
        "gradient_cosines": [
            {
                "part": one.part,
                "between_modalities": number_or_none(one.between),
                "between_halves": number_or_none(one.ceiling),
                "most_opposed": {"modalities": one.opposed[:2], "cosine": number_or_none(one.opposed[2])},
            }
            for one in measures.conflicts
        ],
    }


def changes_dict(compared: Compared) -> dict[str, Any]:
    """What is different since the first step."""
    return {
        "interval": f"paired bootstrap over groups within modality, {DRAWS} draws, 95 % for all of a list together",
        "variance_explained_mean": {
            name: None if change is None else _change_dict(change)
            for name, change in (("training", compared.training), ("heldout", compared.heldout))
        },
        "nmi_minus_null": [_change_dict(change) for change in compared.blocks],
        "nearest_neighbors": [
            {name: _change_dict(change) for name, change in mode.items()} for mode in compared.separation
        ],
    }


def number_or_none(value: float) -> float | None:
    """``value``, or None where it is not finite."""
    return value if math.isfinite(value) else None


def _change_dict(change: Change) -> dict[str, Any]:
    return {
        "difference": number_or_none(change.value),
        "low": number_or_none(change.low),
        "high": number_or_none(change.high),
        "verdict": "rose" if change.rose else "fell" if change.fell else "none",
    }


def _neighbors_dict(found: Neighbors) -> dict[str, Any]:
    return {
        "accuracy": number_or_none(found.accuracy),
        "chance": number_or_none(found.chance),
        "classes": found.classes,
        "images": found.images,
    }


def _variance_dict(variance: Variance) -> dict[str, Any]:
    return {
        "value": number_or_none(variance.value),
        "images": variance.images,
        "modalities": variance.modalities,
    }


def _split_dict(split: SplitVariance) -> dict[str, Any]:
    return {
        "modalities": [
            {
                "modality": row.modality,
                "synthetic": row.synthetic,
                "value": number_or_none(row.variance.value),
                "images": row.variance.images,
            }
            for row in split.rows
        ],
        "mean": _variance_dict(split.mean),
        "mean_real": _variance_dict(split.mean_real),
        "pooled_real": _variance_dict(split.pooled_real),
    }
