"""From numbers of models to effects of claims: which arms and numbers an effect is made of."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from dexcore.evaluate.claims.numbers import Number, freedom_of
from dexcore.measures.bootstrap import FEWEST_CASES
from dexcore.measures.effects import ALPHA, Effect, effect, smallest_effect, upper_deviation
from dexcore.measures.verdicts import Verdict, judge, support_power
from dexcore.report.claims import Beside, Claim, Finding, Remedied, Remedy, Shown

_FEWEST_OF_STRATUM = 5  # of a modality or class; of fewer a note is made

Trained = Mapping[tuple[str, int], Mapping[str, Number]]  # (arm, seed) -> numbers by name


@dataclass(frozen=True)
class Asked:
    """A claim, and how its effect is computed of a seed's models: ``number`` of ``arm``, minus what it is held against.

    Attributes:
        claim: in words.
        arm, number: what should be larger.
        against_arm, against_number: what is subtracted; "" for nothing, or for the same arm or number.
        beside: further (arm, number) that the page shows.
        minus: (arm, number) that the page shows the number of ``arm`` held against, beside the verdict.
        controls: arm -> the verdict that the same effect must have of this arm. There is none where the effect is a
            difference of two arms, or could not come out otherwise.
    """

    claim: Claim
    arm: str
    number: str
    against_arm: str = ""
    against_number: str = ""
    beside: tuple[tuple[str, str], ...] = ()
    minus: tuple[tuple[str, str], ...] = ()
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
    values, drawn, groups, everything = [], [], [], []
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
        everything += [(sign / len(seeds), number) for sign, number in numbers]
    if not values:
        return None
    return effect(values, np.stack(drawn, axis=1), min(groups), freedom_of(everything))


def smallest_effects(pilot: Trained, asked: Sequence[Asked], seeds: int) -> dict[str, Shown]:
    """What so many seeds can show of each claim, from the spread in a pilot.

    Tested at alpha over the number of claims, the strictest step of Holm's method. The pilot's deviation between seeds
    is raised to what the true one stays below in most pilots (`upper_deviation`).
    """
    found = {}
    for one in asked:
        spread = measured(pilot, one.terms())
        if spread is None:
            found[one.claim.name] = Shown()
            continue
        between = upper_deviation(spread.deviation_seeds, len(spread.of_seeds))
        found[one.claim.name] = _of_spread(spread, one.claim.margin, between, seeds, len(asked))
    return found


def _of_spread(spread: Effect, margin: float, deviation_seeds: float, seeds: int, claims: int) -> Shown:
    known = (deviation_seeds, seeds, spread.deviation_cases, spread.freedom_cases, ALPHA / claims)
    return Shown(smallest_effect(*known), support_power(margin, margin, *known))


def findings(
    trained: Trained, asked: Sequence[Asked], shown: Mapping[str, Shown], few_seeds: int = 5
) -> tuple[Finding, ...]:
    """Judge all claims together, and each control alone by the same rule.

    Args:
        trained: the experiment's models.
        asked: the claims.
        shown: what was written down before, by claim.
        few_seeds: of fewer a note is made.
    """
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
                shown=shown.get(name, Shown()),
                numbers=_beside(trained, one),
                controls=_controls(trained, one),
                notes=(*_notes(trained, one, found, few_seeds), *_spread_more(one, found, shown, len(asked))),
            )
        )
    return tuple(told)


def remedied(trained: Trained, changes: Mapping[str, str], dex: str, asked: Sequence[Asked]) -> tuple[Remedy, ...]:
    """What becomes of the claims about DEX where a changed one takes its place.

    Args:
        trained: the experiment's models, changed ones among them.
        changes: arm of each changed DEX -> what was changed.
        dex: the arm that each takes the place of.
        asked: the claims.
    """
    found = []
    for arm, changed in changes.items():
        claims = []
        for one in asked:
            terms = one.terms()
            new = [(sign, arm if name == dex else name, number) for sign, name, number in terms]
            own = [(sign, name, number) for sign, name, number in new if name == arm]
            before = [(-sign, dex, number) for sign, _, number in own]
            effect, gain = measured(trained, new), measured(trained, own + before)
            if own and effect is not None and gain is not None:
                claims.append(Remedied(one.claim.title, effect, gain))
        found.append(Remedy(arm, changed, tuple(claims)))
    return tuple(found)


def _beside(trained: Trained, asked: Asked) -> tuple[Beside, ...]:
    wanted = dict.fromkeys([*((arm, name) for _, arm, name in asked.terms()), *asked.beside])
    several = len({name for _, name in wanted}) > 1
    named = {(arm, name): f"{arm}, {name}" if several else arm for arm, name in wanted}
    terms = {label: [(1.0, *key)] for key, label in named.items()} if len(wanted) > 1 else {}
    for arm, name in asked.minus:
        terms[f"{asked.arm}, minus {arm}, {name}"] = [(1.0, asked.arm, asked.number), (-1.0, arm, name)]
    found = [(label, measured(trained, own)) for label, own in terms.items()]
    return tuple(Beside(label, one) for label, one in found if one is not None)


def _controls(trained: Trained, asked: Asked) -> tuple[Beside, ...]:
    found = []
    for arm, expected in asked.controls.items():
        one = measured(trained, asked.terms(arm))
        if one is not None:
            verdict = judge({arm: one}, {arm: asked.claim.margin})[arm]
            found.append(Beside(arm, one, expected, verdict))
    return tuple(found)


def _notes(trained: Trained, asked: Asked, found: Effect | None, few_seeds: int) -> tuple[str, ...]:
    if found is None:
        return ("Not measured: an arm or a number is missing, or it is not defined.",)
    notes = []
    if len(found.of_seeds) < few_seeds:
        notes.append(f"Few seeds: {len(found.of_seeds)}, fewer than {few_seeds}.")
    if not found.deviation_cases:
        notes.append("Cases were not drawn: the interval is of seeds alone.")
    elif found.groups < FEWEST_CASES:
        notes.append(f"Few cases: {found.groups}, fewer than {FEWEST_CASES}.")
    fewest = min(trained[arm, seed][name].fewest for _, arm, name in asked.terms() for seed in seeds_of(trained, [arm]))
    if found.deviation_cases and fewest < _FEWEST_OF_STRATUM:
        told = (
            "one case: what others of it would change is not in the interval"
            if fewest < 2
            else f"{fewest} cases: the interval is too narrow"
        )
        notes.append(f"A modality or class has {told}.")
    return tuple(notes)


def _spread_more(asked: Asked, found: Effect | None, shown: Mapping[str, Shown], claims: int) -> tuple[str, ...]:
    """Whether the runs spread more than was thought when it was written down what they could show."""
    before = shown.get(asked.claim.name, Shown()).smallest
    if found is None or not math.isfinite(before):
        return ()
    own = _of_spread(found, asked.claim.margin, found.deviation_seeds, len(found.of_seeds), claims).smallest
    if not own > before:
        return ()
    return (
        f"The runs spread more than their pilots: {own:.3f}, and not {before:.3f}, is the smallest effect that they "
        "could show.",
    )
