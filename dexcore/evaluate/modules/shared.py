"""Whether the director's space is shared: classes looked for across modalities, in it and in the experts'."""

from dataclasses import dataclass

import numpy as np

from dexcore.evaluate.modules.forwards import Collected
from dexcore.evaluate.modules.sample import Sample, Samples
from dexcore.measures.shared_space import Across, Points, across_modalities

EXPERTS, DIRECTOR, ON_STREAM, OUTPUT, DENSE = (
    "experts",
    "director",
    "director on the experts' stream",
    "experts' output",
    "dense",
)


@dataclass(frozen=True)
class SharedSpace:
    """Retrieval across modalities in one space.

    Attributes:
        raw: of the features as they are.
        centered: of each modality's features around its mean over training images: without what tells the modality.
    """

    raw: Across
    centered: Across


def measure_shared_space(
    train: Collected, heldout: Collected, samples: Samples, seed: int = 0
) -> dict[str, SharedSpace]:
    """Look for classes across modalities: queries are held-out images, the gallery is the training images.

    Classes are known of SyntheticMVU's images alone, where they mean the same in all modalities; others take no part.

    Args:
        train, heldout: of `collect`.
        samples: that they were collected of.
        seed: of permutations and draws of cases.

    Returns:
        By space: "experts" and "director", the encoder's last tokens in either mode; of the last block "director on the
        experts' stream" and "experts' output", what both make of the same tokens. Of a dense model: "dense".

    Raises:
        ValueError: fewer than two modalities or classes are known.
    """
    classes = [sample.classes() for sample in samples]
    found = {}
    for name, (gallery_nd, query_nd) in _spaces(train, heldout).items():
        gallery = _points(gallery_nd, samples.train, classes[0], 0)
        # Cases of both splits are numbered apart.
        queries = _points(query_nd, samples.heldout, classes[1], len(samples.train.label_g))
        means = [gallery_nd[samples.train.label_n == m].mean(axis=0) for m in range(len(samples.train.modalities))]
        found[name] = SharedSpace(
            across_modalities(queries, gallery, seed=seed),
            across_modalities(queries, gallery, np.stack(means), seed=seed),
        )
    return found


def _spaces(train: Collected, heldout: Collected) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    if train.director is None or heldout.director is None:
        return {DENSE: (train.features, heldout.features)}
    return {
        EXPERTS: (train.features, heldout.features),
        DIRECTOR: (train.director, heldout.director),
        ON_STREAM: (train.on_stream[-1], heldout.on_stream[-1]),
        OUTPUT: (train.outputs[-1], heldout.outputs[-1]),
    }


def _points(features_nd: np.ndarray, sample: Sample, class_n: np.ndarray, first: int) -> Points:
    return Points(features_nd, sample.label_n, class_n, sample.case_n + first)
