"""The same training with several seeds: how far seeds move a number, apart from how far cases do."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dexcore.evaluate.scores.compare import ComparisonError, check_alike, common_cases
from dexcore.evaluate.scores.score import Scores
from dexcore.measures.bootstrap import DRAWS, Estimate, drawn_numbers, estimate, two_level

FEWEST_SEEDS = 5


@dataclass(frozen=True)
class SeedSpread:
    """A number of several trainings.

    Attributes:
        metric: what it is.
        mean: over seeds; its interval is of draws of cases and of seeds.
        of_seeds: the number of each, on all cases.
        deviation_seeds: between them, of a sample; what another seed would do.
        deviation_cases: of the mean over seeds; what other cases would do.
        flags: what a reader must know.
    """

    metric: str
    mean: Estimate
    of_seeds: tuple[float, ...]
    deviation_seeds: float
    deviation_cases: float
    flags: tuple[str, ...]


def over_seeds(scores: Sequence[Scores], metric: str | None = None, draws: int = DRAWS, seed: int = 0) -> SeedSpread:
    """Sum up the scores of one model trained with several seeds.

    Raises:
        ComparisonError: there are fewer than two, they are of several tasks, or two have the same seed or the very same
            predictions: a seed that does not act says nothing.
    """
    check_seeds(scores)
    metric = metric or scores[0].metric
    check_alike(scores, metric)
    cases, _ = common_cases(scores)
    made_of = [one.made_of.restrict(cases) for one in scores]
    statistics = [one.statistics()[metric] for one in made_of]
    values, drawn = drawn_numbers(statistics, made_of[0].strata(metric), draws, seed)
    flags = [] if len(scores) >= FEWEST_SEEDS else [f"few seeds: {len(scores)}, fewer than {FEWEST_SEEDS}"]
    of_mean = drawn.mean(axis=1)
    return SeedSpread(
        metric=metric,
        mean=estimate(float(values.mean()), two_level(drawn, seed), len(cases)),
        of_seeds=tuple(values.tolist()),
        deviation_seeds=float(values.std(ddof=1)),
        deviation_cases=float(of_mean[np.isfinite(of_mean)].std()) if len(of_mean) else np.nan,
        flags=tuple(flags),
    )


def check_seeds(scores: Sequence[Scores]) -> None:
    """Refuse what is no set of trainings with several seeds."""
    if len(scores) < 2:
        raise ComparisonError(f"seeds: expected at least 2 trainings, got {len(scores)}")
    seeds = [one.seed for one in scores]
    if None in seeds or len(set(seeds)) < len(seeds):
        raise ComparisonError(f"seeds: expected a different one each, got {', '.join(map(str, seeds))}")
    for number, one in enumerate(scores):
        for other in scores[:number]:
            if _same_predictions(one, other):
                raise ComparisonError(
                    f"task {one.task}: seeds {other.seed} and {one.seed} made the same predictions to the bit: the "
                    "seed did not act (a linear probe has none: draw its training cases instead)"
                )


def _same_predictions(one: Scores, other: Scores) -> bool:
    arrays = [
        {name: value for name, value in vars(scores.made_of).items() if isinstance(value, np.ndarray)}
        for scores in (one, other)
    ]
    names = ("counts_ic",) if "counts_ic" in arrays[0] else ("probability_nc",)
    return all(name in arrays[1] and np.array_equal(arrays[0][name], arrays[1][name]) for name in names)
