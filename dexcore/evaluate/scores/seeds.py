"""The same training with several seeds: how far seeds move a number, apart from how far cases do."""

from collections.abc import Sequence
from dataclasses import dataclass

from dexcore.evaluate.scores.compare import ComparisonError, check_alike, common_cases
from dexcore.evaluate.scores.score import Scores
from dexcore.evaluate.scores.trainings import Trainings, alike, estimated, is_hard, seed_flags
from dexcore.measures.bootstrap import DRAWS, Estimate


@dataclass(frozen=True)
class SeedSpread:
    """A number of several trainings.

    Attributes:
        metric: what it is.
        mean: over seeds; its interval is Student's, of cases and seeds together.
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
            probabilities: a seed that does not act says nothing.
        MissingExtraError: SciPy is not installed.
    """
    check_seeds(scores)
    metric = metric or scores[0].metric
    check_alike(scores, metric)
    cases, _ = common_cases(scores)
    found = Trainings.of(scores, cases, metric, draws, seed)
    return SeedSpread(
        metric=metric,
        mean=estimated(found),
        of_seeds=tuple(found.values_s.tolist()),
        deviation_seeds=found.deviation_seeds,
        deviation_cases=found.deviation_cases,
        flags=tuple(seed_flags(scores)),
    )


def check_seeds(scores: Sequence[Scores]) -> None:
    """Refuse what is no set of trainings with several seeds.

    Probabilities that are equal to the bit are refused. Masks and labels may rightly agree: `seed_flags` tells it.
    """
    of = f"task {scores[0].task}: {scores[0].model or 'a model'}: " if scores else ""
    if len(scores) < 2:
        raise ComparisonError(f"{of}seeds: expected at least 2 trainings, got {len(scores)}")
    seeds = [one.seed for one in scores]
    if None in seeds or len(set(seeds)) < len(seeds):
        raise ComparisonError(f"{of}seeds: expected a different one each, got {', '.join(map(str, seeds))}")
    for one, other in alike(scores):
        if not is_hard(one):
            raise ComparisonError(
                f"task {one.task}: seeds {one.seed} and {other.seed} made the same predictions to the bit: the "
                "seed did not act (a linear probe has none: draw its training cases instead)"
            )
