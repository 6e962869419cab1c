"""What a run ends with: a few lines for a person, and the same numbers as JSON."""

import json
import math
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dexcore.checks import check_kind
from dexcore.files import write_whole
from dexcore.measures.information import PERMUTATIONS
from dexcore.measures.neighbors import NEIGHBORS
from dexcore.report.analysis import DENSE
from dexcore.report.as_json import changes_dict, measures_dict, number_or_none
from dexcore.report.change import Change
from dexcore.report.compared import NEIGHBOR_LABELS, Compared, Measures, compare, measure
from dexcore.report.comparison import Comparison, by_rule
from dexcore.report.heldout_course import HeldOutCourse
from dexcore.report.history import SimilarityCourse
from dexcore.report.numbers import RunNumbers
from dexcore.report.objectives import OBJECTIVES, Words
from dexcore.report.probe_course import ProbeCourse
from dexcore.report.routes import STARVING, Hunger, hunger, starving_evaluated
from dexcore.report.variance import SplitVariance, Variance

_WIDTH = 100  # columns of a terminal


class Row(NamedTuple):
    """A line of the table of variance explained; None where a split has no image, or step 0 was not measured."""

    label: str
    training: Variance | None
    training_step0: Variance | None
    heldout: Variance | None
    heldout_step0: Variance | None


@dataclass(frozen=True, eq=False)
class Alignment:
    """The alignment loss minus what it is at agreement, mean over blocks, before the first step and at the last moment.

    Attributes:
        kind: "kd", "cosine" or "mse".
        first, last: 0 where experts and director agree.
    """

    kind: str
    first: float
    last: float


@dataclass(frozen=True, eq=False)
class Summary(Measures):
    """The measures of a run's trained model, beside those before its first step.

    Attributes:
        steps: done, skipped ones included.
        skipped: steps whose loss or gradient was not finite.
        hunger: use of the experts, an entry a DEX block; () where no load was recorded.
        alignment: of experts and director; None where it was not measured at two moments.
        compared: the measures before the first step, and what changed; None where these were not measured.
        step0_missing: then, why.
        files: where things are, by what they are.
        comparison: which model it is, what it costs, its order of images; None of a run that an older version began.
        probe: what features were worth to a task meanwhile.
        heldout_course: the loss on held-out images meanwhile.
    """

    steps: int
    skipped: int
    hunger: tuple[Hunger, ...]
    alignment: Alignment | None
    compared: Compared | None
    step0_missing: str
    files: Mapping[str, str]
    comparison: Comparison | None = None
    probe: ProbeCourse | None = None
    heldout_course: HeldOutCourse | None = None

    @property
    def mlp(self) -> str:
        """Kind of the encoder's MLPs, a key of `dexcore.report.comparison.KINDS`."""
        return self.comparison.mlp if self.comparison else "dex"

    @property
    def objective(self) -> str:
        """What the model was trained for, a key of `dexcore.report.objectives.OBJECTIVES`."""
        return self.comparison.objective if self.comparison else "mae"

    @property
    def words(self) -> Words:
        """How to speak of it."""
        return OBJECTIVES[self.objective]

    def lines(self) -> list[str]:
        """Plain text, aligned, at most 100 columns (paths are never cut)."""
        return [
            *self._variance_lines(),
            "",
            *self._specialization_lines(),
            *self._model_lines(),
            "",
            *textwrap.wrap(self.verdict(), _WIDTH),
            *self._heldout_lines(),
            *(["", *self.probe.lines()] if self.probe and self.probe.curves else []),
            *(["", *self.comparison.lines()] if self.comparison else []),
            *self._file_lines(),
        ]

    def _heldout_lines(self) -> list[str]:
        told = self.heldout_course.told() if self.heldout_course else ""
        return ["", *textwrap.wrap(told, _WIDTH)] if told else []

    def save(self, path: str | Path) -> None:
        """Write JSON, whole or not at all; numbers that do not exist are null."""
        content = json.dumps(self.as_dict(), indent=2, allow_nan=False, ensure_ascii=False)
        write_whole(Path(path), content.encode() + b"\n")

    def as_dict(self) -> dict[str, Any]:
        """The content of summary.json."""
        aligned = self.alignment
        return {
            "steps": {"done": self.steps, "skipped": self.skipped},
            "comparison": None if self.comparison is None else self.comparison.as_dict(),
            **measures_dict(self),
            "load": [
                {
                    "block": number,
                    "share": [round(share, 6) for share in block.share_r.tolist()],
                    "starving": list(block.starving),
                }
                for number, block in enumerate(self.hunger, start=1)
            ],
            "alignment_above_agreement": None
            if aligned is None
            else {
                "kind": aligned.kind,
                "step_0": number_or_none(aligned.first),
                "trained": number_or_none(aligned.last),
            },
            "step_0": None if self.compared is None else measures_dict(self.compared.step0),
            "step_0_missing": self.step0_missing or None,
            "change_since_step_0": None if self.compared is None else changes_dict(self.compared),
            "probe": None if self.probe is None else self.probe.as_dict(),
            "heldout_course": None if self.heldout_course is None else self.heldout_course.as_dict(),
            "files": dict(self.files),
        }

    def table(self) -> list[Row]:
        """The lines of the table of variance explained: by modality, then over all."""
        before = self.compared.step0 if self.compared else None
        splits: list[SplitVariance | None] = [
            self.training,
            before.training if before else None,
            self.heldout,
            before.heldout if before else None,
        ]
        labels: dict[tuple[str, bool], list[Variance | None]] = {}
        for column, split in enumerate(splits):
            for row in split.rows if split else ():
                labels.setdefault((row.modality, row.synthetic), [None] * 4)[column] = row.variance
        rows = [
            Row(modality + (" (synthetic)" if synthetic else ""), *values)
            for (modality, synthetic), values in labels.items()
        ]
        rows.append(Row("mean over modalities", *_present("mean", splits)))
        if self.real and any(row.synthetic for split in splits if split for row in split.rows):
            rows.append(Row("mean over modalities, real images", *_present("mean_real", splits)))
        rows.append(Row("all real images pooled", *_present("pooled_real", splits)))
        return rows

    def notes(self) -> list[str]:
        """What a reader of the table must know: held-out images that are missing, a step 0 that is."""
        notes = []
        if self.compared is None:
            notes.append(f"step 0: {self.step0_missing}")
        if not self.heldout.mean.images:
            return [*notes, "no image was held out: nothing here says how the model does on new images"]
        seen = {(row.modality, row.synthetic) for row in self.heldout.rows}
        missing = [row.modality for row in self.training.rows if (row.modality, row.synthetic) not in seen]
        if missing:
            number = self.heldout.mean.modalities
            notes.append(f"held out: mean over {number} modalities; none held out of {', '.join(missing)}")
        return notes

    def verdict(self) -> str:
        """What training changed, in words; nothing where nothing is beyond what other files would show."""
        if self.compared is None:
            return f"What training changed cannot be said: step 0 was {self.step0_missing}."
        said = [*self._variance_verdicts(), *self._block_verdicts(), *self._neighbor_verdicts()]
        if not said:
            return "Against the same model before its first step no difference is shown: nothing is claimed."
        return f"Against the same model before its first step: {'; '.join(said)}."

    def _variance_verdicts(self) -> Iterator[str]:
        assert self.compared is not None
        for name, change in (("training", self.compared.training), ("held-out", self.compared.heldout)):
            if change is not None and (change.rose or change.fell):
                yield f"{'more' if change.rose else 'less'} variance is explained on {name} images ({change.told()})"

    def _block_verdicts(self) -> Iterator[str]:
        assert self.compared is not None
        blocks = self.compared.blocks
        more, less = (sum(getattr(block, name) for block in blocks) for name in ("rose", "fell"))
        counted = [f"{word} in {count}" for word, count in (("more", more), ("less", less)) if count]
        if counted and not by_rule(self.mlp):
            yield f"experts follow modalities {' and '.join(counted)} of {len(blocks)} blocks"

    def _neighbor_verdicts(self) -> Iterator[str]:
        assert self.compared is not None
        for one, mode in zip(self.separation, self.compared.separation, strict=True):
            for name, change in mode.items():
                if name == "modality" and one.mode == "experts" and self.mlp == "oracle-routing":
                    continue  # the rule was told the modality
                if change.rose or change.fell:
                    word = "better" if change.rose else "worse"
                    told = change.told(percent=True)
                    yield f"neighbors{_in_mode(one.mode)} tell the {SPOKEN[name]} {word} ({told} points)"

    def _variance_lines(self) -> list[str]:
        lines = [
            f"Share of {self.words.explained} explained",
            f"(1 is perfect, 0 is {self.words.baseline})",
        ]
        rows, before = self.table(), self.compared
        columns = f"{'step 0':>10}" if before else ""
        lines.append(f"  {'':<34}{'training':>10}{columns}{'images':>8}{'held out':>12}{columns}{'images':>8}")
        for row in rows:
            value, images = _cells(row.training)
            value_heldout, images_heldout = _cells(row.heldout)
            then, then_heldout = (
                f"{_cells(one)[0]:>10}" if before else "" for one in (row.training_step0, row.heldout_step0)
            )
            lines.append(
                f"  {row.label:<34}{value:>10}{then}{images:>8}{value_heldout:>12}{then_heldout}{images_heldout:>8}"
            )
        if before:
            lines.append("  (step 0: the same model before training, on the same images)")
            which = "mean over modalities" + (", real images" if self.real else "")
            told = [
                f"{name} {change.told()}"
                for name, change in (("training", before.training), ("held out", before.heldout))
                if change is not None and change.told()
            ]
            lines += _wrapped(f"since step 0, {which}: {', '.join(told)}") if told else []
        return lines + [line for note in self.notes() for line in _wrapped(note)]

    def _specialization_lines(self) -> list[str]:
        if not self.blocks:
            dense = self.mlp.startswith("dense")
            return [f"Modality and expert: {'the model has no experts' if dense else 'no DEX block was evaluated'}"]
        if by_rule(self.mlp):
            return ["Modality and expert: a rule chooses the experts, no router was trained"]
        if len(self.blocks[0].modalities) < 2:
            return ["Modality and expert: nothing to tell apart, the images are of one modality"]
        before = self.compared
        lines = [
            "Normalized mutual information of modality and expert (0 unrelated, 1 one determines the other)",
            f"(null: modality labels permuted by file, volume or patient, {PERMUTATIONS} times)",
        ]
        if before:
            lines.append(
                "(change: NMI minus its null, trained minus step 0, which follows what images look like already)"
            )
        head = f"  {'block':<7}{'experts':>8}{'NMI':>8}{'null mean':>11}{'null 95 %':>11}{'p':>8}"
        lines.append(head + (f"{'step 0: NMI':>12}{'null mean':>10}  change" if before else ""))
        for number, block in enumerate(self.blocks, start=1):
            line = (
                f"  {number:<7}{block.shares_mr.shape[1]:>8}{block.nmi:>8.3f}{block.null_mean:>11.3f}"
                f"{block.null_95:>11.3f}{block.p_value:>8.3f}"
            )
            if before:
                then, change = before.step0.blocks[number - 1], before.blocks[number - 1]
                line += f"{then.nmi:>12.3f}{then.null_mean:>10.3f}  {change.told()}"
            lines.append(line.rstrip())
        return lines

    def _model_lines(self) -> list[str]:
        lines = []
        if self.skipped:
            lines.append(f"Skipped steps (loss or gradient not finite): {self.skipped} of {self.steps}")
        if self.hunger and not by_rule(self.mlp):
            lines += _wrapped(
                f"Starving experts (under {STARVING:g} of an even share at the end): {self.starving()}", indent=""
            )
            lines += _wrapped(self.starving_on_images(), indent="")
        if self.alignment:
            lines.append(f"{self.aligned()}")
        lines += [line for number in range(len(self.conflicts)) for line in _wrapped(self.cosines(number), indent="")]
        for number, sep in enumerate(self.separation):
            numbers = list(self.neighbors(number))
            if numbers:
                lines.append(f"{NEIGHBORS} nearest neighbors{_in_mode(sep.mode)} tell")
                lines += [f"  {told}" for told in numbers]
        return ["", *lines] if lines else []

    def starving(self) -> str:
        """Which experts starve, in words: "none", or "2 of 16 (block 1: 3; block 4: 7)"."""
        return _named([block.starving for block in self.hunger], sum(len(block.share_r) for block in self.hunger))

    def starving_on_images(self) -> str:
        """The same on the evaluated images, before the first step and after the last."""
        if not self.blocks:
            return ""
        experts = sum(block.shares_mr.shape[1] for block in self.blocks)
        then = _named(starving_evaluated(self.compared.step0.blocks), experts) if self.compared else "not measured"
        now = _named(starving_evaluated(self.blocks), experts)
        return f"On the evaluated images, without exploration noise: {now} (step 0: {then})"

    def aligned(self) -> str:
        """The alignment loss, in words."""
        if self.alignment is None:
            return ""
        one = self.alignment
        minus = " minus the teacher's entropy" if one.kind == "kd" else ""
        return f"Alignment loss ({one.kind}){minus}, 0 is agreement: {one.last:.4f} (step 0: {one.first:.4f})"

    def cosines(self, number: int) -> str:
        """The gradients' cosines of a part of the encoder, in words."""
        one = self.conflicts[number]
        step0 = self.compared.step0.conflicts if self.compared else ()
        then = next((other for other in step0 if other.part == one.part), None)
        beside = ("", "") if then is None else (f" (step 0: {then.between:.2f})", f" (step 0: {then.ceiling:.2f})")
        return (
            f"Gradient cosine, {one.part}: {one.between:.2f}{beside[0]} between modalities, "
            f"{one.ceiling:.2f}{beside[1]} between halves of one"
        )

    def neighbors(self, number: int) -> Iterator[str]:
        """What neighbors tell in one mode of the encoder, in words, one kind of label after the other."""
        for name in NEIGHBOR_LABELS:
            found = getattr(self.separation[number], name)
            if not math.isfinite(found.accuracy):
                continue
            told = f"{SPOKEN[name]} {100 * found.accuracy:.0f} % (chance {100 * found.chance:.0f} %"
            if self.compared:
                then = getattr(self.compared.step0.separation[number], name)
                change = self.compared.separation[number][name]
                told += f", step 0 {100 * then.accuracy:.0f} %" + _points(change)
            yield told + ")"

    def _file_lines(self) -> list[str]:
        if not self.files:
            return []
        width = max(len(name) for name in self.files)
        return ["", "Files", *(f"  {name:<{width}}  {path}" for name, path in self.files.items())]


SPOKEN = {"modality": "modality", "label": "label", "label_across": "label from other modalities alone"}


def summarize(numbers: RunNumbers, files: Mapping[str, str | Path] | None = None) -> Summary:
    """Measure a run; ``files`` (name -> path) is carried along for the reader.

    Raises:
        TypeError: ``numbers`` is something else, say, the folder's path.
    """
    check_kind("numbers", numbers, RunNumbers, "a RunNumbers, such as RunNumbers.read(folder)")
    trained = measure(numbers.evaluation, numbers.analysis)
    return Summary(
        **vars(trained),
        steps=len(numbers.history.step),
        skipped=int(numbers.history.skipped.sum()),
        hunger=hunger(numbers.history),
        alignment=_alignment(numbers.similarity),
        compared=compare(numbers, trained),
        step0_missing=numbers.step0_missing if numbers.step0 is None else "",
        files={name: str(path) for name, path in (files or {}).items()},
        comparison=numbers.comparison,
        probe=numbers.probe,
        heldout_course=numbers.heldout_course,
    )


def _alignment(course: SimilarityCourse) -> Alignment | None:
    if len(course.step) < 2 or course.step[0] != 0 or not course.align_kind:
        return None
    first, last = course.align[[0, -1]].mean(axis=1).tolist()
    return Alignment(course.align_kind, first, last) if math.isfinite(first) else None


def _in_mode(mode: str) -> str:
    return "" if mode == DENSE else f" ({mode} mode)"


def _present(field: str, splits: list[SplitVariance | None]) -> list[Variance | None]:
    found = [None if split is None else getattr(split, field) for split in splits]
    return [one if one is not None and one.images else None for one in found]


def _cells(variance: Variance | None) -> tuple[str, str]:
    return ("-", "-") if variance is None else (f"{variance.value:.3f}", str(variance.images))


def _points(change: Change) -> str:
    told = change.told(percent=True)
    return f": {told} points" if told else ""


def _named(starving: "tuple[tuple[int, ...], ...] | list[tuple[int, ...]]", experts: int) -> str:
    named = [f"block {number}: {', '.join(map(str, block))}" for number, block in enumerate(starving, start=1) if block]
    if not named:
        return "none"
    return f"{sum(map(len, starving))} of {experts} ({'; '.join(named)})"


def _wrapped(text: str, indent: str = "  ") -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=indent + "  ")
