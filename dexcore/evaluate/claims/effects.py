"""From numbers of models to effects of claims: which arms and numbers an effect is made of."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from dexcore.evaluate.claims.numbers import Number
from dexcore.measures.effects import ALPHA, Effect, effect, smallest_effect, upper_deviation
from dexcore.measures.verdicts import Verdict, judge
from dexcore.report.claims import Beside, Claim, Finding

Trained = Mapping[tuple[str, int], Mapping[str, Number]]  # (arm, seed) -> numbers by name


@dataclass(frozen=True)
class Asked:
    """A claim, and how its effect is computed of a seed's models: ``number`` of ``arm``, minus what it is held against.

    Attributes:
        claim: in words.
        arm, number: what should be larger.
        against_arm, against_number: what is subtracted; "" for nothing, or for the same arm or number.
        beside: further (arm, number) that the page shows.
        controls: arm -> the verdict that the same effect must have of this arm. Where the effect is a difference of two
            arms there is none.
    """

    claim: Claim
    arm: str
    number: str
    against_arm: str = ""
    against_number: str = ""
    beside: tuple[tuple[str, str], ...] = ()
    controls: Mapping[str, Verdict] = field(default_factory=dict)

    def terms(self, arm: str = "") -> list[tuple[float, str, str]]:
        """(sign, arm, number) of the effect; of a control's arm in the place of the claim's."""
        own = arm or self.arm
        found = [(1.0, own, self.number)]
        if self.against_arm or self.against_number:
            found.append((-1.0, self.against_arm or own, self.against_number or self.number))
        return found


def seeds_of(trained: Trained, arms: Iterable[str]) -> list[int]:
    """The seeds that all these arms were trained with."""
    sets = [{seed for name, seed in trained if name == arm} for arm in arms]
    return sorted(set.intersection(*sets)) if sets else []


def measured(trained: Trained, terms: Sequence[tuple[float, str, str]]) -> Effect | None:
    """The effect over the seeds that all its arms have; None where a number is missing or not defined.

    Raises:
        ValueError: a number of two models is not of the same cases.
    """
    seeds = seeds_of(trained, {arm for _, arm, _ in terms})
    values, drawn, groups = [], [], []
    for seed in seeds:
        numbers = []
        for sign, arm, name in terms:
            number = trained[arm, seed].get(name)
            if number is None or not np.isfinite(number.value):
                return None
            numbers.append((sign, number))
        if len({(len(number.drawn_d), number.groups) for _, number in numbers}) > 1:
            raise ValueError(f"{' and '.join(name for *_, name in terms)}: measured on different cases")
        values.append(sum(sign * number.value for sign, number in numbers))
        drawn.append(sum(sign * number.drawn_d for sign, number in numbers))
        groups.append(numbers[0][1].groups)
    if not values:
        return None
    return effect(values, np.stack(drawn, axis=1), min(groups))


def smallest_effects(pilot: Trained, asked: Sequence[Asked], seeds: int) -> dict[str, float]:
    """The smallest effect of each claim that so many seeds can show, from the spread in a pilot; nan: not known.

    Tested at alpha over the number of claims, the strictest step of Holm's method.
    """
    found = {}
    for one in asked:
        spread = measured(pilot, one.terms())
        found[one.claim.name] = (
            float("nan")
            if spread is None
            else smallest_effect(
                upper_deviation(spread.deviation_seeds, len(spread.of_seeds)),
                seeds,
                spread.deviation_cases,
                spread.groups,
                alpha=ALPHA / len(asked),
            )
        )
    return found


def findings(
    trained: Trained, asked: Sequence[Asked], smallest: Mapping[str, float], few_seeds: int = 5
) -> tuple[Finding, ...]:
    """Judge all claims together, and each control alone by the same rule."""
    effects = {one.claim.name: measured(trained, one.terms()) for one in asked}
    known = {name: found for name, found in effects.items() if found is not None}
    judged = judge(known, {one.claim.name: one.claim.margin for one in asked})
    told = []
    for one in asked:
        name, found = one.claim.name, effects[one.claim.name]
        told.append(
            Finding(
                claim=one.claim,
                effect=found,
                judged=judged.get(name),
                smallest=smallest.get(name, float("nan")),
                numbers=_beside(trained, one),
                controls=_controls(trained, one),
                notes=_notes(one, found, few_seeds),
            )
        )
    return tuple(told)


def _beside(trained: Trained, asked: Asked) -> tuple[Beside, ...]:
    wanted = dict.fromkeys([*((arm, name) for _, arm, name in asked.terms()), *asked.beside])
    if len(wanted) == 1:
        return ()
    several = len({name for _, name in wanted}) > 1
    found = [(arm, name, measured(trained, [(1.0, arm, name)])) for arm, name in wanted]
    return tuple(Beside(f"{arm}, {name}" if several else arm, one) for arm, name, one in found if one is not None)


def _controls(trained: Trained, asked: Asked) -> tuple[Beside, ...]:
    found = []
    for arm, expected in asked.controls.items():
        one = measured(trained, asked.terms(arm))
        if one is not None:
            verdict = judge({arm: one}, {arm: asked.claim.margin})[arm]
            found.append(Beside(arm, one, expected, verdict))
    return tuple(found)


def _notes(asked: Asked, found: Effect | None, few_seeds: int) -> tuple[str, ...]:
    if found is None:
        return ("Not measured: an arm or a number is missing, or it is not defined.",)
    notes = []
    if len(found.of_seeds) < few_seeds:
        notes.append(f"Few seeds: {len(found.of_seeds)}, fewer than {few_seeds}.")
    if not found.deviation_cases:
        notes.append("Cases were not drawn: the interval is of seeds alone.")
    elif found.groups < 50:
        notes.append(f"Few cases: {found.groups}, fewer than 50.")
    return tuple(notes)
