"""How far masks agree: counts of pixels, and every score as arithmetic on them.

Counts are whole numbers [..., 5]: tp, fp, fn, and the pixels of the reference and of the prediction, tp + fn and
tp + fp. Their sums are exact, so that a volume's score depends neither on the order of its slices nor on how they were
batched.
"""

import numpy as np

from dexcore.measures.ratio import ratio

COUNTS = ("tp", "fp", "fn", "n_ref", "n_pred")


def count_classes(reference: np.ndarray, predicted: np.ndarray, classes: int, ignore: int | None = None) -> np.ndarray:
    """Count the pixels of every class of two masks of indices, int64 [classes, 5].

    Args:
        reference, predicted: whole numbers below ``classes``, of one shape.
        ignore: pixels where the reference has this value count nowhere.

    Raises:
        ValueError: shapes differ, or a mask holds another value.
    """
    if reference.shape != predicted.shape:
        raise ValueError(f"has shape {predicted.shape}, the reference has {reference.shape}")
    if ignore is not None:
        counted = reference != ignore
        reference, predicted = reference[counted], predicted[counted]
    for name, mask in (("the reference", reference), ("the prediction", predicted)):
        if mask.size and not 0 <= int(mask.min()) <= int(mask.max()) < classes:
            wrong = mask.max() if int(mask.max()) >= classes else mask.min()
            raise ValueError(f"{name} holds {wrong}, expected indices of {classes} classes")
    pairs = reference.astype(np.int64).ravel() * classes + predicted.astype(np.int64).ravel()
    both = np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    tp, n_ref, n_pred = np.diag(both), both.sum(axis=1), both.sum(axis=0)
    return np.stack([tp, n_pred - tp, n_ref - tp, n_ref, n_pred], axis=1)


def count_channels(reference: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Count the pixels of channels that may overlap, bool [channels, height, width] both: int64 [channels, 5].

    Raises:
        ValueError: shapes differ.
    """
    if reference.shape != predicted.shape:
        raise ValueError(f"has shape {predicted.shape}, the reference has {reference.shape}")
    flat_ref, flat_pred = (mask.reshape(len(mask), -1).astype(bool) for mask in (reference, predicted))
    tp = (flat_ref & flat_pred).sum(axis=1)
    n_ref, n_pred = flat_ref.sum(axis=1), flat_pred.sum(axis=1)
    return np.stack([tp, n_pred - tp, n_ref - tp, n_ref, n_pred], axis=1)


def dice(counts: np.ndarray) -> np.ndarray:
    """nnU-Net's rule, float64 [...]: 2 tp / (2 tp + fp + fn), 0 where one mask alone is empty, nan where both are."""
    return ratio(2 * counts[..., 0], counts[..., 3] + counts[..., 4])


def iou(counts: np.ndarray) -> np.ndarray:
    """tp / (tp + fp + fn), with the rule of `dice` for empty masks."""
    return ratio(counts[..., 0], counts[..., 0] + counts[..., 1] + counts[..., 2])


def dice_present(counts: np.ndarray) -> np.ndarray:
    """`dice` where the reference is not empty; nan elsewhere."""
    return np.where(counts[..., 3] > 0, dice(counts), np.nan)


def dice_kaggle(counts: np.ndarray) -> np.ndarray:
    """`dice`, and 1 where both masks are empty: predicting nothing is then worth the share of empty masks."""
    empty = (counts[..., 3] == 0) & (counts[..., 4] == 0)
    return np.where(empty, 1.0, dice(counts))


def false_alarm(counts: np.ndarray) -> np.ndarray:
    """1 where the reference is empty and the prediction is not, 0 where both are; nan where the reference is not."""
    return np.where(counts[..., 3] == 0, (counts[..., 4] > 0).astype(np.float64), np.nan)
