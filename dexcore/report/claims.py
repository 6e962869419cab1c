"""Claims and what an experiment found of them: what the page of claims is made from."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dexcore.measures.effects import Effect
from dexcore.measures.verdicts import Judged, Verdict
from dexcore.report.as_json import number_or_none


@dataclass(frozen=True)
class Claim:
    """A statement that a number can refute.

    Attributes:
        name: short, of files and links.
        title: a few words.
        statement: what is claimed.
        source: who says so.
        effect: what is measured, in words; the larger, the better for the claim.
        refuted_by: what would refute it, in words.
        margin: the smallest effect that would matter; above zero.
    """

    name: str
    title: str
    statement: str
    source: str
    effect: str
    refuted_by: str
    margin: float


@dataclass(frozen=True)
class Shown:
    """What an experiment can show of a claim; nan where it is not known.

    Attributes:
        smallest: the effect that lies above zero by its interval with a probability of 80 %.
        power: the probability that an effect as large as the margin is called supported.
    """

    smallest: float = math.nan
    power: float = math.nan


@dataclass(frozen=True)
class Beside:
    """A number that stands beside an effect: another arm's, or a control's.

    Attributes:
        label: whose.
        effect: the number.
        expected: of a control, the verdict that a sound instrument must give; None of what is no control.
        judged: of a control, the verdict that it gave.
    """

    label: str
    effect: Effect
    expected: Verdict | None = None
    judged: Judged | None = None

    @property
    def passed(self) -> bool | None:
        """Whether a control came out as it must; None where it decided nothing, or is no control."""
        if self.expected is None or self.judged is None or self.judged.verdict is Verdict.NOT_DECIDED:
            return None
        return self.judged.verdict is self.expected


@dataclass(frozen=True)
class Finding:
    """A claim and what was found.

    Attributes:
        claim: that was asked.
        effect: that was measured; None where it could not be.
        judged: the verdict; None where there is no effect.
        shown: what so many seeds can show, as it was written down before the runs.
        numbers: of the arms that the effect is made of, and of others beside it.
        controls: of the instrument.
        notes: what a reader must know.
    """

    claim: Claim
    effect: Effect | None
    judged: Judged | None
    shown: Shown
    numbers: tuple[Beside, ...] = ()
    controls: tuple[Beside, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """In words."""
        return "not measured" if self.judged is None else str(self.judged.verdict)

    def as_json(self) -> dict[str, Any]:
        """All of it; numbers that are not defined are null."""
        return {
            "claim": vars(self.claim),
            "verdict": self.verdict,
            "effect": _effect(self.effect),
            "p_above": None if self.judged is None else number_or_none(self.judged.p_above),
            "p_below": None if self.judged is None else number_or_none(self.judged.p_below),
            "smallest": number_or_none(self.shown.smallest),
            "power_at_margin": number_or_none(self.shown.power),
            "numbers": [_beside(one) for one in self.numbers],
            "controls": [_beside(one) for one in self.controls],
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Remedied:
    """A claim's effect where a changed DEX takes the place of DEX.

    Attributes:
        title: of the claim.
        effect: the claim's, of the changed DEX.
        gain: that minus DEX's own, seed by seed.
    """

    title: str
    effect: Effect
    gain: Effect


@dataclass(frozen=True)
class Remedy:
    """A change of DEX that was tried.

    Attributes:
        name: short.
        changes: fields of the configuration, and their values.
        claims: what became of each claim about DEX.
    """

    name: str
    changes: str
    claims: tuple[Remedied, ...]


@dataclass(frozen=True)
class Experiment:
    """All claims of one experiment, and what it was.

    Attributes:
        name: of the images.
        findings: one a claim.
        seeds: trainings of each arm.
        flags: what a reader must know before reading on.
        facts: what was run, name -> text: images, arms, command, versions, hashes.
        remedies: changes of DEX that were tried beside.
    """

    name: str
    findings: tuple[Finding, ...]
    seeds: int
    flags: tuple[str, ...]
    facts: Mapping[str, str]
    remedies: tuple[Remedy, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return {
            "name": self.name,
            "seeds": self.seeds,
            "flags": list(self.flags),
            "facts": dict(self.facts),
            "findings": [finding.as_json() for finding in self.findings],
            "remedies": [_remedy(one) for one in self.remedies],
        }


def _effect(found: Effect | None) -> dict[str, Any] | None:
    if found is None:
        return None
    intervals = {name: [number_or_none(end) for end in getattr(found, name)] for name in _INTERVALS}
    plain = {name: number_or_none(getattr(found, name)) for name in ("value", "deviation_seeds", "deviation_cases")}
    return plain | {"of_seeds": [number_or_none(v) for v in found.of_seeds], "cases": found.groups} | intervals


def _beside(one: Beside) -> dict[str, Any]:
    found: dict[str, Any] = {"label": one.label, "effect": _effect(one.effect)}
    if one.expected is not None:
        verdict = None if one.judged is None else str(one.judged.verdict)
        found |= {"expected": str(one.expected), "verdict": verdict, "passed": one.passed}
    return found


def _remedy(one: Remedy) -> dict[str, Any]:
    claims = [{"title": of.title, "effect": _effect(of.effect), "gain": _effect(of.gain)} for of in one.claims]
    return {"name": one.name, "changes": one.changes, "claims": claims}


_INTERVALS = ("interval", "seeds_interval", "cases_interval")
