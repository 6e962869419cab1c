"""Classification: the probabilities of a test split's cases, and every score of them.

Axes: n items (cases, or images where the images of a case differ in their label), g cases, c classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from dexcore.measures import classification as measured
from dexcore.measures.bootstrap import Statistic
from dexcore.measures.ranking import Ranking

RANKED = ("auroc", "average_precision")


@dataclass(frozen=True, eq=False)
class Classified:
    """What every number of a classification is made of; items in the order of their names.

    Attributes:
        cases: names of the cases, sorted.
        classes: their names.
        kind: "classification", "ordinal" or "multilabel".
        probability_nc: float64; rows sum to 1 unless the kind is multilabel.
        target_nc: bool.
        case_n: index of each item's case.
        positive: index of the class that is looked for, where there are two.
    """

    cases: tuple[str, ...]
    classes: tuple[str, ...]
    kind: str
    probability_nc: np.ndarray
    target_nc: np.ndarray
    case_n: np.ndarray
    positive: int = 1

    @property
    def multilabel(self) -> bool:
        """Whether an item may be of several classes."""
        return self.kind == "multilabel"

    @cached_property
    def label_n(self) -> np.ndarray:
        """The class of each item, int64."""
        return self.target_nc.argmax(axis=1)

    @cached_property
    def predicted_n(self) -> np.ndarray:
        """The most probable class of each item; of equal ones the first."""
        return self.probability_nc.argmax(axis=1)

    @cached_property
    def found_c(self) -> np.ndarray:
        """Which classes are in the reference: bool [c]."""
        return self.target_nc.sum(axis=0) > 0

    @cached_property
    def present(self) -> np.ndarray:
        """Which classes are in the reference, and not in all of it: bool [c]."""
        count = self.target_nc.sum(axis=0)
        return (count > 0) & (count < len(self.target_nc))

    @cached_property
    def rankings(self) -> list[Ranking]:
        """Of every class against all others."""
        return [Ranking(self.target_nc[:, c], self.probability_nc[:, c]) for c in range(len(self.classes))]

    def strata(self, metric: str) -> np.ndarray:
        """What cases are drawn within: for rankings their label, where each has one; else all are drawn from."""
        if metric not in RANKED or self.multilabel or len(self.case_n) != len(self.cases):
            return np.zeros(len(self.cases), dtype=np.int64)
        return self.label_n[np.argsort(self.case_n)]

    def statistics(self) -> dict[str, Statistic]:
        """Of the whole; those of classes are unweighted means over the classes that the reference has."""
        found: dict[str, Statistic] = {name: partial(self._ranked, name) for name in RANKED}
        found["brier"] = self._brier
        if self.multilabel:
            return found | {"macro_f1": self._multilabel_f1}
        of_confusion: dict[str, Callable[[np.ndarray], np.ndarray]] = {
            "accuracy": measured.accuracy,
            "balanced_accuracy": partial(measured.balanced_accuracy, present_c=self.found_c),
            "macro_f1": measured.macro_f1,
        }
        if self.kind == "ordinal":
            of_confusion["kappa"] = measured.quadratic_kappa
        for name, function in of_confusion.items():
            found[name] = partial(self._of_confusion, function)
        return found | {"ece": self._calibration}

    def class_statistics(self) -> dict[str, dict[str, Statistic]]:
        """AUROC, average precision and recall of each class alone."""
        return {
            name: {
                "auroc": partial(self._of_class, Ranking.auroc, number),
                "average_precision": partial(self._of_class, Ranking.average_precision, number),
                "recall": partial(self._recall, number),
            }
            for number, name in enumerate(self.classes)
        }

    def _ranked(self, name: str, weight_dg: np.ndarray) -> np.ndarray:
        weight_dn = self._of_items(weight_dg)
        asked = [self.positive] if len(self.classes) == 2 and not self.multilabel else np.flatnonzero(self.present)
        measure = getattr(Ranking, name)
        if not len(asked) or not self.present[asked].all():
            return np.full(len(weight_dg), np.nan)
        return np.mean([measure(self.rankings[int(c)], weight_dn) for c in asked], axis=0)

    def _of_class(self, measure: Callable[..., np.ndarray], number: int, weight_dg: np.ndarray) -> np.ndarray:
        return measure(self.rankings[number], self._of_items(weight_dg))

    def _of_confusion(self, function: Callable[[np.ndarray], np.ndarray], weight_dg: np.ndarray) -> np.ndarray:
        return function(self._confusion(weight_dg))

    def _confusion(self, weight_dg: np.ndarray) -> np.ndarray:
        return measured.confusion(weight_dg, self._pairs_g)

    @cached_property
    def _pairs_g(self) -> np.ndarray:
        return self._by_case(measured.pairs_n(self.label_n, self.predicted_n, len(self.classes)))

    def _by_case(self, values_nk: np.ndarray) -> np.ndarray:
        """The sums over each case's items: a draw weighs cases."""
        total = np.zeros((len(self.cases), values_nk.shape[1]))
        np.add.at(total, self.case_n, values_nk)
        return total

    def _of_items(self, weight_dg: np.ndarray) -> np.ndarray:
        if np.array_equal(self.case_n, np.arange(len(self.cases))):
            return weight_dg
        return weight_dg[:, self.case_n]

    def _brier(self, weight_dg: np.ndarray) -> np.ndarray:
        if self.multilabel:
            value_n = np.square(self.probability_nc - self.target_nc).mean(axis=1)
        else:
            value_n = measured.brier_n(self.probability_nc, self.target_nc)
        sums = weight_dg @ self._by_case(np.stack([value_n, np.ones(len(value_n))], axis=1))
        return np.asarray(sums[:, 0] / sums[:, 1])

    def _calibration(self, weight_dg: np.ndarray) -> np.ndarray:
        right_n = self.predicted_n == self.label_n
        return measured.calibration_error(self._of_items(weight_dg), self.probability_nc.max(axis=1), right_n)

    def _binary(self, number: int, weight_dg: np.ndarray) -> np.ndarray:
        """The confusion of one class of several, at 0.5: [d, 2, 2]."""
        label, predicted = self.target_nc[:, number], self.probability_nc[:, number] >= 0.5
        pairs = measured.pairs_n(label.astype(int), predicted.astype(int), 2)
        return measured.confusion(weight_dg, self._by_case(pairs))

    def _multilabel_f1(self, weight_dg: np.ndarray) -> np.ndarray:
        f1 = []
        for number in range(len(self.classes)):
            confusion = self._binary(number, weight_dg)
            whole = confusion[:, 1].sum(axis=1) + confusion[:, :, 1].sum(axis=1)
            # As scikit-learn's zero_division=0: a class that is in neither counts as 0.
            f1.append(np.divide(2 * confusion[:, 1, 1], whole, out=np.zeros(len(whole)), where=whole > 0))
        return np.mean(f1, axis=0)

    def _recall(self, number: int, weight_dg: np.ndarray) -> np.ndarray:
        if self.multilabel:
            return measured.recalls(self._binary(number, weight_dg))[:, 1]
        return measured.recalls(self._confusion(weight_dg))[:, number]

    def case_value(self, metric: str) -> np.ndarray:
        """One number a case, float64 [g], whatever the metric: the mean probability that was given to the truth."""
        truth_n = np.where(self.target_nc, self.probability_nc, 1 - self.probability_nc).mean(axis=1)
        if not self.multilabel:
            truth_n = self.probability_nc[np.arange(len(self.label_n)), self.label_n]
        count = np.bincount(self.case_n, minlength=len(self.cases))
        return np.bincount(self.case_n, truth_n, len(self.cases)) / count

    def details(self) -> dict[str, Any]:
        """What pictures are drawn of: the confusion of items [label, prediction], and the calibration's bins."""
        if self.multilabel:
            return {}
        confusion = self._confusion(np.ones((1, len(self.cases))))[0]
        bins = measured.reliability(self.probability_nc.max(axis=1), self.predicted_n == self.label_n)
        return {
            "confusion": confusion.astype(int).tolist(),
            "reliability": [
                {"items": int(count), "confidence": confidence, "right": right}
                for count, confidence, right in bins.tolist()
                if count
            ],
        }

    def numbers_of_cases(self) -> dict[str, dict[str, int]]:
        """How many items of each class there are."""
        return {
            name: {"items": int(count)} for name, count in zip(self.classes, self.target_nc.sum(axis=0), strict=True)
        }

    def restrict(self, cases: Sequence[str]) -> "Classified":
        """The same of some cases, which are sorted."""
        places = {name: place for place, name in enumerate(cases)}
        new_g = np.array([places.get(name, -1) for name in self.cases])
        kept = new_g[self.case_n] >= 0
        return replace(
            self,
            cases=tuple(cases),
            probability_nc=self.probability_nc[kept],
            target_nc=self.target_nc[kept],
            case_n=new_g[self.case_n[kept]],
        )
