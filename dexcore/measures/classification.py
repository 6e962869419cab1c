"""What classified items are worth, for many weightings of them at once, and without any threshold but 0.5.

Axes: n items, c classes, d draws, b bins. A class that is in no reference has no recall; where a draw lacks one that
the items have, a mean over classes is not defined in it: nan.
"""

import numpy as np

from dexcore.measures.ratio import ratio

BINS = 15


def pairs_n(label_n: np.ndarray, predicted_n: np.ndarray, classes: int) -> np.ndarray:
    """One at the place of each item's pair (label, prediction), float64 [n, c * c]."""
    pairs = np.zeros((len(label_n), classes**2))
    pairs[np.arange(len(label_n)), label_n * classes + predicted_n] = 1
    return pairs


def confusion(weight_dn: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """The weight of every pair (label, prediction), float64 [d, c, c], of `pairs_n` or its sums over groups."""
    classes = round(pairs.shape[1] ** 0.5)
    return (weight_dn @ pairs).reshape(-1, classes, classes)


def accuracy(confusion_dcc: np.ndarray) -> np.ndarray:
    """The share of items whose class was found."""
    return ratio(np.trace(confusion_dcc, axis1=1, axis2=2), confusion_dcc.sum(axis=(1, 2)))


def recalls(confusion_dcc: np.ndarray) -> np.ndarray:
    """The share of each class's items that were found, float64 [d, c]."""
    return ratio(np.diagonal(confusion_dcc, axis1=1, axis2=2), confusion_dcc.sum(axis=2))


def balanced_accuracy(confusion_dcc: np.ndarray, present_c: np.ndarray) -> np.ndarray:
    """The mean of the recalls of the classes ``present_c``, bool [c]."""
    if not present_c.any():
        return np.full(len(confusion_dcc), np.nan)
    return np.asarray(recalls(confusion_dcc)[:, present_c].mean(axis=1))


def macro_f1(confusion_dcc: np.ndarray) -> np.ndarray:
    """The mean of 2 tp / (2 tp + fp + fn) over the classes that are in the reference or in the prediction."""
    tp = np.diagonal(confusion_dcc, axis1=1, axis2=2)
    whole = confusion_dcc.sum(axis=1) + confusion_dcc.sum(axis=2)
    f1 = np.where(whole > 0, ratio(2 * tp, whole), 0.0)
    return ratio(f1.sum(axis=1), (whole > 0).sum(axis=1))


def quadratic_kappa(confusion_dcc: np.ndarray) -> np.ndarray:
    """Cohen's kappa of ordered classes, a mistake weighing the square of its distance; nan where one class is all."""
    classes = confusion_dcc.shape[1]
    distance = np.square(np.subtract.outer(np.arange(classes), np.arange(classes))).astype(np.float64)
    seen = (confusion_dcc * distance).sum(axis=(1, 2))
    outer = confusion_dcc.sum(axis=2)[:, :, None] * confusion_dcc.sum(axis=1)[:, None, :]
    by_chance = ratio((outer * distance).sum(axis=(1, 2)), confusion_dcc.sum(axis=(1, 2)))
    return 1 - ratio(seen, by_chance)


def brier_n(probability_nc: np.ndarray, target_nc: np.ndarray) -> np.ndarray:
    """Each item's squared distance of the probabilities from the truth, float64 [n]; of two classes half of it."""
    squares = np.square(probability_nc - target_nc).sum(axis=1)
    return squares / 2 if probability_nc.shape[1] == 2 else squares


def reliability(confidence_n: np.ndarray, right_n: np.ndarray) -> np.ndarray:
    """Of each bin of confidence the items, their mean confidence and the share that is right: float64 [b, 3]."""
    bins = _bins(confidence_n)
    count = np.bincount(bins, minlength=BINS).astype(np.float64)
    sums = [np.bincount(bins, values, BINS) for values in (confidence_n, right_n)]
    return np.stack([count, *(ratio(total, count) for total in sums)], axis=1)


def _bins(confidence_n: np.ndarray) -> np.ndarray:
    """The bin of each confidence; a bin holds its upper edge."""
    return np.clip(np.ceil(confidence_n * BINS).astype(int) - 1, 0, BINS - 1)


def calibration_error(weight_dn: np.ndarray, confidence_n: np.ndarray, right_n: np.ndarray) -> np.ndarray:
    """The expected calibration error (ECE) in 15 bins of equal width, float64 [d]: 0 is perfect.

    Args:
        confidence_n: the probability of the class that was chosen.
        right_n: whether it was the right one.
    """
    bins = _bins(confidence_n)
    of_bin = np.zeros((len(bins), BINS))
    of_bin[np.arange(len(bins)), bins] = confidence_n - right_n
    return ratio(np.abs(weight_dn @ of_bin).sum(axis=1), weight_dn.sum(axis=1))
