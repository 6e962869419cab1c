"""Intervals and probes of an evaluation: seconds of 2,000 resamples over 10,000 cases, an exact k-NN, a linear probe.

    python -m bench.scores

means           three means over cases, with values that are missing
macro AUROC     of four classes, cases drawn within their class; ties among the scores
scikit-learn    the same number by roc_auc_score with weights, one draw at a time; of a few draws, and multiplied
neighbors       the 20 nearest of 100,000 x 768 to 20,000, with the memory that the search takes beside the features
linear probe    the 25 regressions of 8,000 x 768, each asked of 2,000 more, and the last fit on all of them
"""

import sys
import time
from collections.abc import Callable
from itertools import islice

import numpy as np

from bench.command import Ceilings, Goal, Line, Options, Refused, judged, run, table_row
from bench.contenders import WrongResultError
from bench.timing import CPU, machine, peak_memory, summary
from dexcore.evaluate.probes.linear import COSTS, fit_linear
from dexcore.evaluate.scores.classified import Classified
from dexcore.extras import require
from dexcore.measures.bootstrap import DRAWS, bootstrap, mean_statistic, resamples
from dexcore.measures.neighbors import nearest

_CLASSES, _K, _ROUNDS, _WEIGHTINGS = 4, 20, 3, 5


def _cases(options: Options) -> int:
    return 200 if options.quick else 10_000


def _values(cases: int) -> np.ndarray:
    random = np.random.default_rng(0)
    values = random.random((cases, 3))
    values[random.random((cases, 3)) < 0.2] = np.nan
    return values


def _classified(cases: int) -> Classified:
    random = np.random.default_rng(0)
    label = random.integers(0, _CLASSES, cases)
    probability = random.dirichlet(np.ones(_CLASSES), cases) + 0.3 * np.eye(_CLASSES)[label]
    probability = (probability / probability.sum(axis=1, keepdims=True)).round(3)
    names = tuple(f"{number:06}" for number in range(cases))
    classes = tuple(f"class {number}" for number in range(_CLASSES))
    target = np.eye(_CLASSES, dtype=bool)[label]
    return Classified(names, classes, "classification", probability, target, np.arange(cases))


def _features(options: Options) -> tuple[np.ndarray, np.ndarray]:
    rows, queries, width = (1000, 50, 16) if options.quick else (100_000, 20_000, 768)
    random = np.random.default_rng(0)
    return random.standard_normal((queries, width), np.float32), random.standard_normal((rows, width), np.float32)


def _labelled(options: Options) -> tuple[np.ndarray, np.ndarray]:
    """Features whose deviations fall off, as those of models do, and the classes that they tell a little of."""
    images, width = (300, 16) if options.quick else (10_000, 768)
    random = np.random.default_rng(0)
    label = random.integers(0, _CLASSES, images)
    mixed = random.standard_normal((width, width)) * np.exp(-np.arange(width) / (width / 8))
    features = random.standard_normal((images, width)) @ mixed
    return (features + random.standard_normal((_CLASSES, width))[label]).astype(np.float32), label


def _linear_probe(features: np.ndarray, label: np.ndarray) -> None:
    cut = len(label) * 4 // 5
    for fitted in fit_linear(features[:cut], label[:cut], _CLASSES, COSTS):
        fitted.probability(features[cut:])
    list(fit_linear(features, label, _CLASSES, COSTS[12:13], features[:cut]))


def check(options: Options) -> Refused:
    """Means against NumPy's, AUROC and regression against scikit-learn's, neighbors against float64 products."""
    features, label = _labelled(Options(options.device, quick=True))
    [fitted] = fit_linear(features, label, _CLASSES, (0.01,))
    scaled = require("sklearn.preprocessing", "eval").StandardScaler().fit_transform(features.astype(np.float64))
    expected = require("sklearn.linear_model", "eval").LogisticRegression(C=0.01).fit(scaled, label)
    if not np.allclose(fitted.probability(features), expected.predict_proba(scaled), atol=1e-3):
        raise WrongResultError("scores: a linear probe is not scikit-learn's")
    strata = np.zeros(300, int)
    values, items = _values(300), _classified(300)
    mean, auroc = mean_statistic(values), items.statistics()["auroc"]
    for weight in next(resamples(strata))[:_WEIGHTINGS]:
        expected = np.nanmean(np.repeat(values, weight.astype(int), axis=0), axis=0).mean()
        if not np.isclose(mean(weight[None])[0], expected, rtol=1e-10):
            raise WrongResultError("scores: a mean is not that of the drawn cases")
        if not np.isclose(auroc(weight[None])[0], _by_scikit_learn(items, weight), rtol=1e-10):
            raise WrongResultError("scores: a macro AUROC is not scikit-learn's")
    queries, rows = (features[:500, :64] for features in _features(Options(options.device, quick=True)))
    found = nearest(queries, rows, _K)
    products = queries.astype(np.float64) @ rows.T.astype(np.float64)
    products /= np.linalg.norm(rows, axis=1)
    if not np.array_equal(found.index_qk, np.argsort(-products, axis=1, kind="stable")[:, :_K]):
        raise WrongResultError("scores: neighbors are not those of all products")
    return {}


def _by_scikit_learn(items: Classified, weight_n: np.ndarray) -> float:
    metrics = require("sklearn.metrics", "eval")
    return float(
        np.mean(
            [
                metrics.roc_auc_score(items.target_nc[:, c], items.probability_nc[:, c], sample_weight=weight_n)
                for c in range(_CLASSES)
            ]
        )
    )


def measure(options: Options, ceilings: Ceilings, refused: Refused) -> list[Line]:
    """One table; medians of a few rounds."""
    cases = _cases(options)
    items, values, draws = _classified(cases), _values(cases), 100 if options.quick else DRAWS
    strata = items.strata("auroc")
    auroc = items.statistics()["auroc"]
    few = list(islice(next(resamples(strata)), _WEIGHTINGS))
    queries, rows = _features(options)
    labelled = _labelled(options)
    contenders: dict[str, tuple[Callable[[], object], float, Goal | None]] = {
        "means": (
            lambda: bootstrap({"mean": mean_statistic(values)}, np.zeros(cases, int), draws),
            1,
            Goal("seconds", 0, 2.0, at_most=True),
        ),
        "macro AUROC": (lambda: bootstrap({"auroc": auroc}, strata, draws), 1, Goal("seconds", 0, 10.0, at_most=True)),
        "scikit-learn": (lambda: [_by_scikit_learn(items, one) for one in few], draws / len(few), None),
        "neighbors": (lambda: nearest(queries, rows, _K), 1, Goal("seconds", 0, 60.0, at_most=True)),
        "linear probe": (lambda: _linear_probe(*labelled), 1, Goal("seconds", 0, 60.0, at_most=True)),
    }
    print(table_row("", "s", "p20", "p80"))
    lines = []
    for name, (call, factor, goal) in contenders.items():
        timing = summary(
            [_seconds(call) * factor for _ in range(2 if name in ("neighbors", "linear probe") else _ROUNDS)]
        )
        print(table_row(name, *(f"{seconds:.2f}" for seconds in vars(timing).values())), flush=True)
        line: Line = {"bench": "scores", **machine(), "contender": name, **vars(timing)}
        line |= {"cases": cases, "draws": draws}
        if name == "neighbors":
            line |= {"queries": len(queries), "rows": len(rows), "width": rows.shape[1], "k": _K}
            line["peak_mb"] = peak_memory(_search, options.quick)
            print(f"  {line['peak_mb']:.0f} MB beside the features")
        if goal and not options.quick:
            line |= judged(goal._replace(value=timing.median))
        lines.append(line)
    return lines


def _search(quick: bool) -> Callable[[], object]:
    """A part of the search, in a fresh process: what it holds does not grow with the queries."""
    queries, rows = _features(Options(CPU, quick=quick))
    return lambda: nearest(queries[:500], rows, _K)


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


if __name__ == "__main__":
    run(__doc__, {"scores": sys.modules[__name__]})
