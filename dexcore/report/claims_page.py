"""The page of claims: every verdict on top, then a section a claim, with its figure. One file, no network."""

import json
import math
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from dexcore.files import write_whole
from dexcore.measures.effects import ALPHA, PILOT_CONFIDENCE, POWER, Effect
from dexcore.report.claims import Beside, Experiment, Finding, Remedy
from dexcore.report.html import document, figure, folded, mapping, table
from dexcore.report.pictures import BLUE, NEUTRAL, RED, Picture, new_figure, styled, to_png

PAGE_FILE, JSON_FILE = "claims.html", "claims.json"


def write_claims(folder: Path, experiment: Experiment) -> Path:
    """Write claims.html and the same numbers as claims.json; give the page's path.

    Raises:
        OSError: they cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / JSON_FILE, (json.dumps(experiment.as_json(), indent=1) + "\n").encode())
    write_whole(folder / PAGE_FILE, claims_page(experiment).encode())
    return folder / PAGE_FILE


def claims_page(experiment: Experiment) -> str:
    """The page as HTML."""
    findings = experiment.findings
    body = [
        f"<h1>Claims of DEX on {escape(experiment.name)}</h1>",
        f'<p class="headline">{escape(_headline(experiment))}</p>',
        *(f'<p class="warning">{escape(flag)}</p>' for flag in experiment.flags),
        _verdicts(findings),
        f"<p>{escape(_RULE)}</p>",
        _controls_table(findings),
    ]
    with styled():
        for finding in findings:
            body += _section(finding)
    body += _remedies(experiment.remedies)
    facts = [mapping(name, value) for name, value in experiment.facts.items()]
    body += ['<h2 id="made">How this was made</h2>', *facts, folded("How to read the intervals", _INTERVALS)]
    return document(f"Claims of DEX on {experiment.name}", body)


_RULE = (
    f"The rule stood before the runs: refuted, if an effect as large as the margin, the smallest that would matter, is "
    f"excluded; else supported, if zero is excluded; else not decided. Both at {100 * (1 - ALPHA):.0f} %, adjusted for "
    "all claims together (Holm)."
)
_TRIED = (
    "The same seeds, images and steps; each claim's effect with the changed DEX in place of DEX, and what it gained. "
    "Nothing is adjusted for the number of changes and claims: the best of several looks better than it is, and is "
    "believed when other images confirm it."
)
_INTERVALS = (
    "<p>An effect is the mean over seeds. Its interval holds what other seeds and other cases (patients, volumes, "
    "files) would change: Student's, with the deviation between seeds and the deviation of the mean over draws of "
    "cases, and degrees of freedom by Welch and Satterthwaite. Seeds alone and cases alone stand beside it.</p>",
    f"<p>The smallest effect is what would lie above zero with a probability of {100 * POWER:.0f} %, at the strictest "
    "step of Holm's method. It is a guess from a pilot of few and short runs: the deviation between its seeds was "
    f"raised to what the true one stays below in {100 * PILOT_CONFIDENCE:.0f} of 100 pilots, but longer runs may "
    "differ more, or less. Where the runs of this page did spread more, a note says so.</p>",
    "<p>Arms of one seed are trained on the same images in the same order with the same masks; effects are "
    "differences within a seed, on the same cases.</p>",
)


def _headline(experiment: Experiment) -> str:
    count: dict[str, int] = {}
    for finding in experiment.findings:
        count[finding.verdict] = count.get(finding.verdict, 0) + 1
    told = ", ".join(f"{number} {verdict}" for verdict, number in sorted(count.items(), key=lambda item: -item[1]))
    seeds = f"{experiment.seeds} seed{'s' * (experiment.seeds != 1)}"
    return f"{len(experiment.findings)} claims, {seeds} of each arm: {told}."


def _verdicts(findings: Sequence[Finding]) -> str:
    lines = [
        f'<tr><th><a href="#{escape(one.claim.name)}">{escape(one.claim.title)}</a></th>'
        f"<td>{escape(one.verdict)}</td><td>{_interval(one.effect)}</td></tr>"
        for one in findings
    ]
    return _lines(("claim", "verdict", "effect, 95 %"), lines)


def _lines(columns: Sequence[str], lines: Sequence[str]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "\n".join(lines)
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def _controls_table(findings: Sequence[Finding]) -> str:
    controls = [(finding, one) for finding in findings for one in finding.controls]
    if not controls:
        return '<p class="warning">The instrument was not tested: no control was run.</p>'
    rows = [
        (f"{finding.claim.title}: {one.label}", str(one.expected), one.judged.verdict if one.judged else "-")
        for finding, one in controls
    ]
    said = ["<h3>Controls of the instrument</h3>"]
    for passed, sentence in (
        (False, "The instrument failed a control, so its verdict says nothing"),
        (None, "A control did not decide, so nothing says that the instrument works"),
    ):
        wrong = [f"{one.label} ({finding.claim.title})" for finding, one in controls if one.passed is passed]
        if wrong:
            said.append(f'<p class="warning">{sentence}: {escape("; ".join(wrong))}.</p>')
    without = [finding.claim.title for finding in findings if not finding.controls]
    if without:
        said.append(f"<p>No control stands behind: {escape('; '.join(without))}.</p>")
    return "\n".join(said) + table(("control", "must be", "is"), rows)


def _section(finding: Finding) -> Iterator[str]:
    claim = finding.claim
    yield f'<h2 id="{escape(claim.name)}">{escape(claim.title)}: {escape(finding.verdict)}</h2>'
    yield f"<p>{escape(claim.statement)}</p>"
    yield f'<p class="quiet">{escape(claim.source)}</p>'
    yield mapping("Measured:", claim.effect)
    yield mapping("Would refute it:", f"{claim.refuted_by} The margin is {_number(claim.margin)}.")
    yield mapping("Smallest effect that could be shown:", _smallest(finding))
    yield mapping("Controls:", _controls(finding))
    yield from (f'<p class="warning">{escape(note)}</p>' for note in finding.notes)
    if finding.effect is None:
        return
    yield figure(_picture(finding, finding.effect))
    yield table(("", "effect", "95 %"), _effect_rows(finding, finding.effect))
    if finding.numbers:
        seeds = [(one.label, _number(one.effect.value), _seeds(one.effect)) for one in finding.numbers]
        yield table(("number of", "mean", "from, to of seeds"), seeds)


def _remedies(remedies: Sequence[Remedy]) -> Iterator[str]:
    if remedies:
        yield '<h2 id="remedies">Changes of DEX that were tried</h2>'
        yield f"<p>{escape(_TRIED)}</p>"
    for remedy in remedies:
        yield f"<h3>{escape(remedy.name)}</h3>" + mapping("Changed:", remedy.changes)
        lines = [
            f"<tr><th>{escape(one.title)}</th><td>{_interval(one.effect)}</td><td>{_interval(one.gain)}</td></tr>"
            for one in remedy.claims
        ]
        yield _lines(("claim", "effect, 95 %", "more than DEX, 95 %"), lines)


def _effect_rows(finding: Finding, found: Effect) -> Iterator[tuple[str, str, str]]:
    yield "seeds and cases", _number(found.value), _ends(found.interval)
    yield "seeds alone", "", _ends(found.seeds_interval)
    yield f"{found.groups} cases alone" if found.deviation_cases else "cases not drawn", "", _ends(found.cases_interval)
    if finding.judged is not None:
        yield "p, adjusted: zero or less", "", _p(finding.judged.p_above)
        yield "p, adjusted: the margin or more", "", _p(finding.judged.p_below)
    for one in finding.controls:
        yield f"control: {one.label}", _number(one.effect.value), _ends(one.effect.interval)


def _picture(finding: Finding, found: Effect) -> Picture:
    """The effect with its seeds, above what it is made of."""
    claim, rows = finding.claim, [Beside("effect", found), *finding.controls]
    heights = [0.5 + 0.42 * len(rows), 0.5 + 0.36 * len(finding.numbers)]
    drawn = new_figure(sum(heights[: 1 + bool(finding.numbers)]) + 0.9)
    axes = drawn.subplots(
        1 + bool(finding.numbers), 1, squeeze=False, height_ratios=heights[: 1 + bool(finding.numbers)]
    )
    top = axes[0, 0]
    top.axvline(0, color=NEUTRAL, linewidth=1)
    top.axvline(claim.margin, color=RED, linewidth=1.2, linestyle="--")
    if math.isfinite(finding.shown.smallest):
        top.axvline(finding.shown.smallest, color=NEUTRAL, linewidth=1, linestyle=":")
    for place, one in enumerate(rows):
        _row(top, -place, one.effect, BLUE if place == 0 else NEUTRAL)
    _name_rows(top, [one.label if number == 0 else f"control: {one.label}" for number, one in enumerate(rows)])
    top.set_title("Effect")
    if finding.numbers:
        bottom = axes[1, 0]
        for place, one in enumerate(finding.numbers):
            _row(bottom, -place, one.effect, BLUE)
        _name_rows(bottom, [one.label for one in finding.numbers])
        bottom.set_title("Made of")
    return Picture(
        name=f"{claim.name}.png",
        title="Figure",
        reading=(
            "A dot a seed; thick is the 95 % interval of seeds and cases, thin that of cases alone. Dashed is the "
            "margin, dotted the smallest effect that could be shown."
        ),
        bad="a thick line that ends left of the dashed one: an effect that would matter is excluded.",
        png=to_png(drawn),
    )


def _row(axis: Any, place: float, found: Effect, color: str) -> None:
    plot = axis.plot
    for (low, high), width, alpha in ((found.cases_interval, 1.2, 0.9), (found.interval, 5.0, 0.45)):
        if math.isfinite(low):
            plot([low, high], [place, place], color=color, linewidth=width, alpha=alpha, solid_capstyle="butt")
    plot(found.of_seeds, [place - 0.22] * len(found.of_seeds), "o", color=color, markersize=3.5, alpha=0.7)
    plot([found.value], [place], "D", color=color, markersize=5)


def _name_rows(axis: Any, labels: Sequence[str]) -> None:
    places = [-number for number in range(len(labels))]
    axis.set_yticks(places, labels)
    axis.set_ylim(min(places) - 0.6, 0.5)
    axis.grid(True, axis="x")
    axis.locator_params(axis="x", nbins=5)


def _smallest(finding: Finding) -> str:
    shown, margin = finding.shown, finding.claim.margin
    if not math.isfinite(shown.smallest):
        return "not known: one seed, or no pilot."
    told = f"{_number(shown.smallest)}, by the pilots."
    if shown.smallest > margin:
        told += " It is larger than the margin: effects between the two may stay undecided."
    else:
        told += " Effects between it and the margin may be called refuted: there, and too small to matter."
    if math.isfinite(shown.power):
        told += (
            f" An effect as large as the margin would be called supported in {100 * shown.power:.0f} of 100 studies."
        )
    return told


def _controls(finding: Finding) -> str:
    if not finding.controls:
        return "none. Whether this number would tell nothing from something was not put to the test."
    said = {True: "as it must be", False: "failed", None: "did not decide"}
    return "; ".join(f"{one.label}: {said[one.passed]}" for one in finding.controls) + "."


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "–"


def _ends(ends: tuple[float, float]) -> str:
    return f"[{ends[0]:.3f}, {ends[1]:.3f}]" if math.isfinite(ends[0]) else "–"


def _interval(found: Effect | None) -> str:
    """As HTML in two lines: there is little room beside a claim's title."""
    if found is None:
        return "–"
    return _number(found.value) + (f"<br>{_ends(found.interval)}" if math.isfinite(found.error) else "")


def _seeds(found: Effect) -> str:
    return f"{min(found.of_seeds):.3f}, {max(found.of_seeds):.3f}"


def _p(value: float) -> str:
    return "–" if not math.isfinite(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"
