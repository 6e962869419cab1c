"""The linear probe: logistic regression on standardized features, its strength chosen where test is not seen.

Axes: n images, d width, c classes.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dexcore.evaluate.probes.splits import (
    Layers,
    Probed,
    Splits,
    absent_flag,
    undefined_flag,
    value_of,
)
from dexcore.evaluate.tasks import Task
from dexcore.extras import require

COSTS: tuple[float, ...] = tuple(np.logspace(-6, 4, 25).tolist())  # scikit-learn's C
ITERATIONS = 1000
TOLERANCE = 1e-7  # of the gradient; at scikit-learn's 1e-4 a fit that begins where the last one ended hardly moves
FOLDS = 5


@dataclass(frozen=True, eq=False)
class Linear:
    """A fitted logistic regression.

    Attributes:
        mean_d, scale_d: what features are standardized with.
        weight_cd, bias_c: of the logits; an infinite bias is a class that has none, or all, of the images.
        multilabel: whether classes are apart from each other.
        iterations: of the solver, the most of any class.
        warned: what the solver said; empty where it converged.
    """

    mean_d: np.ndarray
    scale_d: np.ndarray
    weight_cd: np.ndarray
    bias_c: np.ndarray
    multilabel: bool
    iterations: int
    warned: tuple[str, ...]

    def probability(self, features_nd: np.ndarray) -> np.ndarray:
        """Of every class, float64 [n, c]."""
        logits = ((features_nd - self.mean_d) / self.scale_d) @ self.weight_cd.T + self.bias_c
        if self.multilabel:
            return np.asarray(0.5 * (1 + np.tanh(logits / 2)))
        raised = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(raised / raised.sum(axis=1, keepdims=True))


def fit_linear(
    features_nd: np.ndarray,
    label: np.ndarray,
    classes: int,
    costs: Sequence[float],
    scaled_by: np.ndarray | None = None,
) -> Iterator[Linear]:
    """Fit a logistic regression for each C, in the given order, each from where the last one ended.

    Args:
        features_nd: of training images.
        label: int64 [n], or bool [n, c]: one regression a class.
        classes: how many there are.
        costs: C, from small to large.
        scaled_by: features whose mean and deviation standardize; default: these.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    seen = np.asarray(features_nd if scaled_by is None else scaled_by, dtype=np.float64)
    scaler = require("sklearn.preprocessing", "eval").StandardScaler().fit(seen)
    x_nd = (np.asarray(features_nd, dtype=np.float64) - scaler.mean_) / scaler.scale_
    multilabel = label.ndim == 2
    problems = (
        [_Problem(label[:, c], (c,)) for c in range(classes)] if multilabel else [_Problem(label, range(classes))]
    )
    for cost in costs:
        weight, bias = np.zeros((classes, x_nd.shape[1])), np.full(classes, -np.inf)
        for problem in problems:
            problem.solve(x_nd, cost, weight, bias)
        yield Linear(
            scaler.mean_,
            scaler.scale_,
            weight,
            bias,
            multilabel,
            max(problem.iterations for problem in problems),
            tuple(dict.fromkeys(said for problem in problems for said in problem.warned)),
        )


class _Problem:
    """One regression, solved for one C after another."""

    def __init__(self, label: np.ndarray, columns: Sequence[int]) -> None:
        self.label, self.columns = label, columns
        self.found = np.unique(label)
        self.solver: Any = None
        self.iterations = 0
        self.warned: tuple[str, ...] = ()

    def solve(self, x_nd: np.ndarray, cost: float, weight_cd: np.ndarray, bias_c: np.ndarray) -> None:
        """Write the weights and biases of the columns."""
        if len(self.found) < 2:  # nothing to tell apart
            only = self.found[0]
            if len(self.columns) > 1:
                bias_c[only] = 0.0
            elif only:
                bias_c[self.columns[0]] = np.inf
            return
        if self.solver is None:
            model = require("sklearn.linear_model", "eval").LogisticRegression
            self.solver = model(solver="lbfgs", max_iter=ITERATIONS, tol=TOLERANCE, warm_start=True)
        self.solver.set_params(C=cost)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            self.solver.fit(x_nd, self.label)
        self.warned = tuple(str(one.message).splitlines()[0].rstrip(":") for one in said)
        self.iterations = int(np.max(self.solver.n_iter_))
        if len(self.columns) == 1:
            weight_cd[self.columns[0]], bias_c[self.columns[0]] = self.solver.coef_[0], self.solver.intercept_[0]
        elif len(self.found) == 2:  # one logit, against 0
            bias_c[self.found[0]] = 0.0
            weight_cd[self.found[1]], bias_c[self.found[1]] = self.solver.coef_[0], self.solver.intercept_[0]
        else:
            weight_cd[self.found], bias_c[self.found] = self.solver.coef_, self.solver.intercept_


@dataclass
class _Tried:
    """A layer's numbers, by C."""

    value: list[float] = field(default_factory=list)
    measured: str = ""
    iterations: list[int] = field(default_factory=list)
    warned: list[int] = field(default_factory=list)  # the C, by number, whose solver warned


def linear_probe(
    task: Task, layers: Layers, model: str = "", draw: int | None = None, costs: Sequence[float] = COSTS
) -> Probed:
    """Classify the test images by logistic regression on frozen features.

    Layer and C are those with the task's best number on val, of equals the smallest C; where there is no val, on folds
    of train that keep cases together. The last fit is on train and val; features are standardized by train alone.

    L-BFGS has no randomness, so there is no seed: ``draw`` draws other training cases.

    Args:
        task: of classification.
        layers: features by layer.
        model: their name.
        draw: a key, by which training cases are drawn with replacement.
        costs: scikit-learn's C, from small to large.

    Raises:
        TaskError: the task or the features cannot be probed.
        MissingExtraError: scikit-learn is not installed.
    """
    found = best_linear(task, layers, draw, costs)
    probability = found.linear.probability(layers[found.layer][found.splits.test.place_n])
    return Probed(found.splits.predictions(probability, model, draw), found.choice, found.flags)


@dataclass(frozen=True, eq=False)
class BestLinear:
    """The probe that was chosen.

    Attributes:
        splits: the images.
        layer: the layer whose features it takes.
        linear: the fit on train and val.
        choice: what was chosen, on what.
        flags: what a reader must know.
    """

    splits: Splits
    layer: str
    linear: Linear
    choice: dict[str, Any]
    flags: tuple[str, ...]


def best_linear(task: Task, layers: Layers, draw: int | None = None, costs: Sequence[float] = COSTS) -> BestLinear:
    """Choose and fit the probe of `linear_probe`, which has the arguments and errors; no label of test is read."""
    splits = Splits.of(task, draw)
    features = splits.check(layers)
    flags = absent_flag(task, splits.known()[1])
    tried: dict[str, _Tried] = {}
    for name, of_layer in features.items():
        tried[name], said = _on_val(splits, of_layer, costs) if len(splits.val) else _on_folds(splits, of_layer, costs)
        flags += said
    # Of equals the first layer and the smallest C; a number that is defined goes before one that is not.
    layer = max(tried, key=lambda name: (tried[name].measured == task.spec.metric, max(tried[name].value)))
    best = tried[layer]
    place = int(np.argmax(best.value))
    known, label = splits.known()
    of_layer = features[layer]
    [last] = fit_linear(
        of_layer[known.place_n], label, splits.classes, costs[place : place + 1], of_layer[splits.train.place_n]
    )
    at_edge = place in (0, len(costs) - 1) and max(best.value) > min(best.value)
    choice = {
        "probe": "linear",
        "layer": layer,
        "C": costs[place],
        "at_edge": at_edge,
        "value": best.value[place],
        "measured": best.measured,
        "chosen_on": "val" if len(splits.val) else "folds of train",
        "iterations": last.iterations,
        "converged": not last.warned,
        "grid": list(costs),
        "tried": {name: vars(one) for name, one in tried.items()},
    }
    if at_edge:
        flags.append(f"C at the edge of the grid: {costs[place]:g}")
    flags += [f"the solver warned at the chosen C: {said}" for said in last.warned]
    if best.warned:
        flags.append(f"the solver warned at {len(best.warned)} of {len(costs)} C where C was chosen")
    flags += undefined_flag(task, best.measured)
    return BestLinear(splits, layer, last, choice, tuple(dict.fromkeys(flags)))


def _on_val(splits: Splits, features: np.ndarray, costs: Sequence[float]) -> tuple[_Tried, list[str]]:
    tried = _Tried()
    rows, held = features[splits.train.place_n], features[splits.val.place_n]
    for number, fitted in enumerate(fit_linear(rows, splits.train_label, splits.classes, costs)):
        value, tried.measured = value_of(splits.task, splits.val, splits.val_label, fitted.probability(held))
        _note(tried, number, value, fitted.iterations, bool(fitted.warned))
    return tried, []


def _on_folds(splits: Splits, features: np.ndarray, costs: Sequence[float]) -> tuple[_Tried, list[str]]:
    """Every training image is predicted by a fit without its case; the number is of all together."""
    train, label = splits.train, splits.train_label
    folds, flags = _folds(train.case_n, label)
    probability = np.zeros((len(costs), len(train), splits.classes))
    iterations, warned = np.zeros(len(costs), int), np.zeros(len(costs), bool)
    for fitted_n, held_n in folds:
        fits = fit_linear(features[train.place_n[fitted_n]], label[fitted_n], splits.classes, costs)
        for number, fitted in enumerate(fits):
            probability[number, held_n] = fitted.probability(features[train.place_n[held_n]])
            iterations[number] = max(iterations[number], fitted.iterations)
            warned[number] |= bool(fitted.warned)
    tried = _Tried()
    for number in range(len(costs)):
        value, tried.measured = value_of(splits.task, train, label, probability[number])
        _note(tried, number, value, int(iterations[number]), bool(warned[number]))
    return tried, flags


def _note(tried: _Tried, number: int, value: float, iterations: int, warned: bool) -> None:
    tried.value.append(value)
    tried.iterations.append(iterations)
    if warned:
        tried.warned.append(number)


def _folds(case_n: np.ndarray, label: np.ndarray) -> tuple[list[tuple[np.ndarray, np.ndarray]], list[str]]:
    """Folds that keep cases together and the shares of classes; of several classes an image's rarest one counts."""
    stratum = label
    if label.ndim == 2:
        rarity = np.where(label, label.sum(axis=0), len(label) + 1)
        stratum = np.where(label.any(axis=1), rarity.argmin(axis=1), label.shape[1])
    count = min(FOLDS, len(np.unique(case_n)), int(np.bincount(stratum).max()))
    if count < 2:
        everything = np.arange(len(case_n))
        return [(everything, everything)], ["one training case and no val: C was chosen on what was fitted"]
    splitter = require("sklearn.model_selection", "eval").StratifiedGroupKFold(count)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        folds = [(one, held) for one, held in splitter.split(case_n, stratum, case_n) if len(one) and len(held)]
    return folds, list(dict.fromkeys(f"folds of train: {one.message}" for one in said))
