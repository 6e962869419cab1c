"""Whether claims hold: a rule that is fixed before anything is measured.

Every claim names an effect and the smallest that would matter, its margin. Then, of all claims that are judged
together, the p-values being one-sided and adjusted by Holm's method:

- refuted: an effect of the margin or more is excluded (p below ALPHA / 2);
- supported: not refuted, and an effect of zero or less is excluded (p below ALPHA / 2);
- not decided: neither.

An effect that is surely above zero and surely below its margin is refuted: it is there, and too small to matter. Of one
claim alone this is its 95 % interval against zero and against the margin.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from dexcore.extras import require
from dexcore.measures.effects import ALPHA, Effect, two_level_error
from dexcore.measures.paired import holm


class Verdict(StrEnum):
    """What an experiment says of a claim."""

    SUPPORTED = "supported"
    REFUTED = "refuted"
    NOT_DECIDED = "not decided"


@dataclass(frozen=True)
class Judged:
    """A verdict and what it rests on.

    Attributes:
        verdict: by the rule above.
        p_above: adjusted, against an effect of zero or less; nan of one seed.
        p_below: adjusted, against an effect of the margin or more.
    """

    verdict: Verdict
    p_above: float
    p_below: float


def judge(effects: Mapping[str, Effect], margins: Mapping[str, float]) -> dict[str, Judged]:
    """Judge claims together.

    Args:
        effects: by claim.
        margins: by claim, above zero.

    Raises:
        ValueError: a margin is not above zero.
    """
    for name in effects:
        if not margins[name] > 0:
            raise ValueError(f"margins[{name!r}] is {margins[name]}, expected a number above 0")
    above = holm([one.p_above() for one in effects.values()])
    below = holm([one.p_below(margins[name]) for name, one in effects.items()])
    return {name: Judged(_verdict(up, down), up, down) for name, up, down in zip(effects, above, below, strict=True)}


def support_power(
    effect: float,
    margin: float,
    deviation_seeds: float,
    seeds: int,
    deviation_cases: float,
    freedom_cases: float,
    alpha: float = ALPHA,
) -> float:
    """The probability that an experiment calls a claim supported whose true effect is ``effect``.

    It excludes zero, and does not exclude the margin: of an effect well below its margin a large experiment says that
    it is refuted. The error that it finds spreads around the true one as a chi with its freedom does.

    Args:
        effect: the true one.
        margin: of the claim.
        deviation_seeds, seeds, deviation_cases, freedom_cases, alpha: as of `dexcore.measures.effects.smallest_effect`.

    Returns:
        nan where there is one seed.
    """
    error, freedom = two_level_error(deviation_seeds, seeds, deviation_cases, freedom_cases)
    if not math.isfinite(error):
        return math.nan
    if error == 0:
        return float(effect > 0 and effect >= margin)
    stats = require("scipy.stats", "eval")
    chances = (np.arange(_POINTS) + 0.5) / _POINTS
    found = error * np.sqrt(stats.chi2.ppf(chances, freedom) / freedom)  # errors, each as likely as another
    half = float(stats.t.ppf(1 - alpha / 2, freedom)) * found
    return float(stats.norm.sf((np.maximum(half, margin - half) - effect) / error).mean())


_POINTS = 2000


def _verdict(p_above: float, p_below: float) -> Verdict:
    if p_below < ALPHA / 2:
        return Verdict.REFUTED
    return Verdict.SUPPORTED if p_above < ALPHA / 2 else Verdict.NOT_DECIDED
