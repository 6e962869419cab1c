"""What a run was trained for, in the words of its report."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Words:
    """How a report speaks of an objective.

    Attributes:
        what: it is.
        loss: its loss is called.
        curve: title of the loss's curve.
        height: what a height of the loss means; "" where nothing is known.
        explained: the share of variance is of.
        varies: that variance is.
        baseline: what explains nothing of it.
        pictures: what the pictures of single images show.
        model: class of `dexcore.models` that opens what was trained.
    """

    what: str
    loss: str
    curve: str
    height: str
    explained: str
    varies: str
    baseline: str
    pictures: str
    model: str


OBJECTIVES = {
    "mae": Words(
        what="masked autoencoder",
        loss="reconstruction loss",
        curve="Reconstruction loss (masked patches)",
        height="Where targets are normalized patch by patch (the default), a reconstruction loss of 1.0 is what "
        "predicting each patch as its own mean over all channels costs.",
        explained="masked-patch variance",
        varies="what varies inside hidden patches",
        baseline="predicting each patch as its own mean colour",
        pictures="reconstructions",
        model="MaskedAutoencoder",
    ),
    "distill": Words(
        what="distillation of a frozen teacher's tokens",
        loss="distillation loss",
        curve="Distillation loss (the teacher's tokens)",
        height="Every token of the teacher has mean 0 and variance 1 over its channels: a loss of 1.0 is what zeros "
        "cost.",
        explained="variance of the teacher's tokens",
        varies="what varies between the teacher's tokens of an image",
        baseline="giving every patch the mean of its image's tokens",
        pictures="tokens beside the teacher's",
        model="DistilledEncoder",
    ),
}


def objective_of(config: Mapping[str, Any]) -> str:
    """The objective of a run's configuration, a key of `OBJECTIVES`; "mae" of one of before there were others."""
    return str((config.get("objective") or {}).get("kind", "mae"))
