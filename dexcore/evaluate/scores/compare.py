"""Which of two models is better on a task: paired, on the cases that both have."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dexcore.evaluate.scores.score import LOWER_IS_BETTER, Scores
from dexcore.evaluate.scores.trainings import Trainings, difference, is_fixed, seed_flags
from dexcore.measures.bootstrap import DRAWS, FEWEST_CASES, Estimate
from dexcore.measures.paired import holm, wilcoxon

ALONE = "one training a model: another seed may say otherwise"


class ComparisonError(ValueError):
    """Scores that must not be compared."""


@dataclass(frozen=True)
class Comparison:
    """A minus B on one task.

    Attributes:
        task, metric: what was compared.
        a, b: the models' names.
        value_a, value_b: their numbers on the cases that both have, means over their seeds.
        difference: a - b, both on the same draws of cases; where there are several seeds, Welch's, each with its own.
        p_value: that there is no difference. Of several seeds Student's, of the difference. Of one training a model
            Wilcoxon's signed-rank test of a number a case: its Dice (or the metric's), or the probability that was
            given to its true class; nan where no case differs.
        p_holm: the same, adjusted for the tasks compared together.
        seeds: trainings of a and of b.
        left_out: cases that one of them lacks.
        flags: what a reader must know.
    """

    task: str
    metric: str
    a: str
    b: str
    value_a: float
    value_b: float
    difference: Estimate
    p_value: float
    p_holm: float
    seeds: tuple[int, int]
    left_out: int
    flags: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """ "a" or "b", the better one; "tie" unless the interval of the difference excludes 0."""
        more, less = ("b", "a") if self.metric in LOWER_IS_BETTER else ("a", "b")
        return better_side(self.difference, more, less)

    @property
    def test(self) -> str:
        """Whose test ``p_value`` is of."""
        return "Student" if max(self.seeds) > 1 else "Wilcoxon"

    def as_json(self) -> dict[str, Any]:
        """All of it; what is not defined is null."""
        plain = {
            name: None if isinstance(value, float) and np.isnan(value) else value for name, value in vars(self).items()
        }
        return plain | {"difference": self.difference.as_json(), "test": self.test, "verdict": self.verdict}

    def line(self) -> str:
        """The comparison for a terminal."""
        sides = {"a": self.a or "a", "b": self.b or "b"}
        told = f"{sides[self.verdict]} is better" if self.verdict in sides else "tie"
        flags = f"; {'; '.join(self.flags)}" if self.flags else ""
        return (
            f"{self.task}: {self.metric} {self.value_a:.3f} and {self.value_b:.3f}, difference "
            f"{self.difference.value:+.3f} [{self.difference.low:+.3f}, {self.difference.high:+.3f}], "
            f"{self.test} p {self.p_value:.3g} (Holm {self.p_holm:.3g}), {self.difference.groups} cases: {told}{flags}"
        )


def better_side(difference: Estimate, more: str, less: str) -> str:
    """``more`` where a difference is above 0, ``less`` where it is below, "tie" unless its interval excludes 0."""
    if difference.low > 0:
        return more
    return less if difference.high < 0 else "tie"


def compare(
    a: Scores | Sequence[Scores],
    b: Scores | Sequence[Scores],
    metric: str | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Comparison:
    """Compare two models on one task: their scores, or those of several seeds each.

    Raises:
        ComparisonError: they were scored on another task, another state of it or another split, or share no case.
        MissingExtraError: SciPy is not installed.
    """
    one, other = ([x] if isinstance(x, Scores) else list(x) for x in (a, b))
    if not one or not other:
        raise ComparisonError("compare: expected scores of both")
    metric = metric or one[0].metric
    check_alike([*one, *other], metric)
    cases, left_out = common_cases([*one, *other])
    sides = [Trainings.of(side, cases, metric, draws, seed) for side in (one, other)]
    found, p_value = difference(*sides)
    if not any(side.several for side in sides):
        a_value, b_value = (side[0].made_of.restrict(cases).case_value(metric) for side in (one, other))
        p_value = wilcoxon(a_value - b_value)
    return Comparison(
        task=one[0].task,
        metric=metric,
        a=one[0].model,
        b=other[0].model,
        value_a=sides[0].number,
        value_b=sides[1].number,
        difference=found,
        p_value=p_value,
        p_holm=p_value,
        seeds=(len(one), len(other)),
        left_out=left_out,
        flags=(*_flags(len(cases), left_out, one, other), *seed_flags(one, other)),
    )


def _flags(cases: int, left_out: int, a: Sequence[Scores], b: Sequence[Scores]) -> list[str]:
    flags = []
    if cases < FEWEST_CASES:
        flags.append(f"few cases: {cases}")
    once = [side for side in (a, b) if len(side) == 1]
    if len(once) == 2:
        flags.append(ALONE)
    flags += [_once(side[0]) for side in once if len(once) == 1]
    if left_out:
        flags.append(f"{left_out} cases are left out, one of the models lacks them")
    return flags


def _once(one: Scores) -> str:
    """What is taken of the one training of a model that stands against several of another."""
    name = one.model or "a model"
    if is_fixed(one):
        return f"{name} is a baseline without a seed, and is taken as it is"
    if one.seed is None:
        return (
            f"one training of {name}, which says no seed (of a probe pass --training N), and whose seeds are taken to "
            "deviate as the other's"
        )
    return f"one training of {name}, whose seeds are taken to deviate as the other's"


def adjusted(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The same comparisons, their p-values adjusted by Holm's method for all of them."""
    p_values = holm([one.p_value for one in comparisons])
    return [replace(one, p_holm=p_value) for one, p_value in zip(comparisons, p_values, strict=True)]


def check_alike(scores: Sequence[Scores], metric: str) -> None:
    """Refuse scores that are not of the same task, in the same state, and of the same split.

    Raises:
        ComparisonError: the message says what differs.
    """
    first = scores[0]
    for other in scores[1:]:
        for name in ("task", "fingerprint", "split"):
            here, there = getattr(first, name), getattr(other, name)
            if here != there:
                said = f"{here[:12]} and {there[:12]}" if name == "fingerprint" else f"{here} and {there}"
                raise ComparisonError(
                    f"task {first.task}: not the same {name}: {said}; numbers of other rows, labels, splits or rules "
                    "are not comparable"
                )
    for one in scores:
        known = list(one.made_of.statistics())
        if metric not in known:
            raise ComparisonError(
                f"task {one.task}: {one.model or 'a model'} has no {metric!r}, expected one of {', '.join(known)}"
            )


def common_cases(scores: Sequence[Scores]) -> tuple[list[str], int]:
    """The cases that all have, sorted, and how many others there are.

    Raises:
        ComparisonError: there is none.
    """
    sets = [set(one.made_of.cases) for one in scores]
    common = sorted(set.intersection(*sets))
    if not common:
        raise ComparisonError(f"task {scores[0].task}: no case was predicted by all")
    return common, len(set.union(*sets)) - len(common)
