"""How well a score ranks what is above what is not: AUROC and average precision, for many weightings at once.

Axes: n items, d draws, t different scores.
"""

import numpy as np

from dexcore.measures.ratio import ratio


class Ranking:
    """Items of one class and of none, sorted by their score once; measured under as many weightings as are asked.

    Args:
        positive_n: bool, of the class.
        score_n: float64; equal ones are ties.
    """

    def __init__(self, positive_n: np.ndarray, score_n: np.ndarray) -> None:
        self.positive_n = np.asarray(positive_n, dtype=bool)
        place_n = np.unique(np.asarray(score_n, dtype=np.float64), return_inverse=True)[1].reshape(-1)
        order = np.argsort(place_n, kind="stable")
        self._positive = self._part(order[self.positive_n[order]], place_n)
        self._negative = self._part(order[~self.positive_n[order]], place_n)
        self._places = int(place_n.max()) + 1 if len(place_n) else 0

    @staticmethod
    def _part(items: np.ndarray, place_n: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Items by rising score; where each new score begins among them; and the scores' places."""
        places, starts = np.unique(place_n[items], return_index=True)
        return items, starts, places

    def _of_scores(self, weight_dn: np.ndarray, part: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
        """The weight at each score, float64 [d, t of the part]."""
        items, starts, _ = part
        taken = np.take(weight_dn, items, axis=1)
        return taken if len(starts) == len(items) else np.add.reduceat(taken, starts, axis=1)

    def auroc(self, weight_dn: np.ndarray) -> np.ndarray:
        """The share of pairs that are ranked right, ties counting half: float64 [d].

        nan where the class, or what is not of it, has no weight.
        """
        if not len(self._positive[0]) or not len(self._negative[0]):
            return np.full(len(weight_dn), np.nan)
        positive, negative = self._of_scores(weight_dn, self._positive), self._of_scores(weight_dn, self._negative)
        below = np.zeros((len(weight_dn), negative.shape[1] + 1))
        np.cumsum(negative, axis=1, out=below[:, 1:])
        places = self._positive[2]
        # Negatives below each positive, and with those that tie.
        first = np.searchsorted(self._negative[2], places, side="left")
        last = np.searchsorted(self._negative[2], places, side="right")
        twice = np.take(below, first, axis=1)
        twice += twice if (first == last).all() else np.take(below, last, axis=1)
        right = np.einsum("dt,dt->d", positive, twice) / 2
        pairs = positive.sum(axis=1) * below[:, -1]
        return ratio(right, pairs)

    def average_precision(self, weight_dn: np.ndarray) -> np.ndarray:
        """Precision at every score that is taken for a threshold, weighted by the recall gained there: float64 [d].

        nan where the class has no weight.
        """
        if not len(self._positive[0]):
            return np.full(len(weight_dn), np.nan)
        positive = np.zeros((len(weight_dn), self._places))
        whole = np.zeros_like(positive)
        positive[:, self._positive[2]] = self._of_scores(weight_dn, self._positive)
        whole += positive
        if len(self._negative[0]):
            whole[:, self._negative[2]] += self._of_scores(weight_dn, self._negative)
        found = np.cumsum(positive[:, ::-1], axis=1)
        taken = np.cumsum(whole[:, ::-1], axis=1)
        precision = np.divide(found, taken, out=np.zeros_like(found), where=taken > 0)
        total = found[:, -1]
        gained = np.einsum("dt,dt->d", positive[:, ::-1], precision)
        return ratio(gained, total)


def average_precisions(right_qn: np.ndarray) -> np.ndarray:
    """The average precision of each query, float64 [q]; nan where nothing is right.

    Args:
        right_qn: bool, whether what is ranked is right, the first in rank first.
    """
    found = np.cumsum(right_qn, axis=1) / np.arange(1, right_qn.shape[1] + 1)
    return ratio((found * right_qn).sum(axis=1), right_qn.sum(axis=1))
