"""All that a report is made from: the numbers a run folder holds, read together and checked against each other."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dexcore.extras import require
from dexcore.report.analysis import Analysis
from dexcore.report.comparison import Comparison
from dexcore.report.evaluation import Evaluation
from dexcore.report.files import (
    ANALYSIS_FILE,
    COMPARISON_FILE,
    CONFIG_FILE,
    EVALUATION_FILE,
    HELDOUT_FILE,
    METRICS_FILE,
    PROBE_FILE,
    SIMILARITY_FILE,
    STEP0_ANALYSIS_FILE,
    STEP0_EVALUATION_FILE,
)
from dexcore.report.heldout_course import HeldOutCourse
from dexcore.report.history import History, SimilarityCourse
from dexcore.report.probe_course import ProbeCourse


@dataclass(frozen=True, eq=False)
class Step0:
    """What was measured before the first step: the model as it was initialized.

    Attributes:
        evaluation: what was measured an image.
        analysis: what was measured on the model.
    """

    evaluation: Evaluation
    analysis: Analysis


@dataclass(frozen=True, eq=False)
class RunNumbers:
    """The numbers of one run.

    Attributes:
        config: the run's configuration, as YAML gives it.
        history: its steps.
        evaluation: what was measured an image.
        analysis: what was measured on the model, on the same images.
        similarity: of the experts, over time.
        step0: the same measured before the first step, on the same images; None where it was not.
        step0_missing: then, what became of it, in words that follow "step 0 was".
        comparison: which model it is, its cost and order of images; None of a run that an older version began.
        probe: what features were worth to a task meanwhile; no moment where the run was not probed.
        heldout_course: the loss on held-out images meanwhile; no moment where it was not measured.
    """

    config: Mapping[str, Any]
    history: History
    evaluation: Evaluation
    analysis: Analysis
    similarity: SimilarityCourse
    step0: Step0 | None = None
    step0_missing: str = "not measured"
    comparison: Comparison | None = None
    probe: ProbeCourse = field(default_factory=lambda: ProbeCourse(np.zeros(0, np.int64), {}))
    heldout_course: HeldOutCourse = field(default_factory=lambda: HeldOutCourse(np.zeros(0, np.int64), np.zeros(0)))

    @classmethod
    def read(cls, folder: str | Path) -> "RunNumbers":
        """Read metrics.jsonl, config.yaml, evaluation.npz, analysis.npz and, where they are there, similarity.jsonl,
        evaluation_step0.npz, analysis_step0.npz, comparison.json, probe.jsonl and heldout.jsonl.

        Raises:
            FileNotFoundError: the folder or one of the first four is missing.
            ValueError: a file is empty or damaged, metrics.jsonl holds fewer steps than the model had done when
                it was measured, or analysis and evaluation are of different images; the message names it.
            MissingExtraError: PyYAML is not installed.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder, expected the folder of a run")
        similarity = SimilarityCourse.read(folder / SIMILARITY_FILE)  # before the steps: a trainer may be writing both
        evaluation, analysis = Evaluation.load(folder / EVALUATION_FILE), Analysis.load(folder / ANALYSIS_FILE)
        step0, missing = _read_step0(folder, evaluation, analysis)
        numbers = cls(
            config=read_config(folder / CONFIG_FILE),
            history=History.read(folder / METRICS_FILE),
            evaluation=evaluation,
            analysis=analysis,
            similarity=similarity,
            step0=step0,
            step0_missing=missing,
            comparison=Comparison.read(folder / COMPARISON_FILE),
            probe=ProbeCourse.read(folder / PROBE_FILE),
            heldout_course=HeldOutCourse.read(folder / HELDOUT_FILE),
        )
        _check_steps(folder, len(numbers.history.step), similarity)
        _check_images(folder / ANALYSIS_FILE, analysis, evaluation, EVALUATION_FILE)
        return numbers


def _check_images(path: Path, analysis: Analysis, evaluation: Evaluation, evaluation_file: str) -> None:
    found = len(analysis), analysis.patches.shape[1]
    expected = len(evaluation), len(evaluation.examples)
    if found != expected:
        raise ValueError(
            f"{path}: of {found[0]} images and {found[1]} examples, expected {expected[0]} and {expected[1]} as in "
            f"{evaluation_file}"
        )


def _read_step0(folder: Path, evaluation: Evaluation, analysis: Analysis) -> tuple[Step0 | None, str]:
    """What was measured before the first step, or why there is nothing to compare with."""
    files = folder / STEP0_EVALUATION_FILE, folder / STEP0_ANALYSIS_FILE
    lost = [path.name for path in files if not path.is_file()]
    if lost:
        return None, f"not measured (there is no {' and no '.join(lost)}, as in runs that an older version began)"
    step0 = Step0(Evaluation.load(files[0]), Analysis.load(files[1]))
    _check_images(files[1], step0.analysis, step0.evaluation, STEP0_EVALUATION_FILE)
    if not _comparable(step0, evaluation, analysis):
        return None, "not measured on these images (run.evaluate_images was changed, or some can no longer be read)"
    return step0, ""


def _comparable(step0: Step0, evaluation: Evaluation, analysis: Analysis) -> bool:
    before = step0.evaluation
    return (
        np.array_equal(before.sample_id, evaluation.sample_id)
        and np.array_equal(before.heldout, evaluation.heldout)
        and np.array_equal(before.modality, evaluation.modality)
        and before.modality_names == evaluation.modality_names
        and [gates.shape for gates in before.gates] == [gates.shape for gates in evaluation.gates]
        and step0.analysis.gradient_modalities == analysis.gradient_modalities
    )


def _check_steps(folder: Path, steps: int, similarity: SimilarityCourse) -> None:
    """Refuse a metrics.jsonl that was cut off.

    The trainer writes a step before it measures the experts after it, and evaluates after the last of these moments.
    """
    measured = max(similarity.step.tolist(), default=0)
    if steps < measured:
        raise ValueError(
            f"{folder / METRICS_FILE}: holds {steps} step{'s' * (steps != 1)}, expected at least {measured}, after "
            f"which the experts in {SIMILARITY_FILE} were compared: its end is missing, bring it back from a copy"
        )


def read_config(path: Path) -> Mapping[str, Any]:
    """A run's configuration, as YAML gives it; FileNotFoundError or ValueError names the file."""
    yaml = require("yaml", "train")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, expected the run's configuration")
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: damaged, expected YAML ({error})") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected a mapping of the run's configuration")
    return config
