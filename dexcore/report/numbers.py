"""All that a report is made from: the numbers a run folder holds, read together and checked against each other."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dexcore.extras import require
from dexcore.report.analysis import Analysis
from dexcore.report.evaluation import Evaluation
from dexcore.report.files import ANALYSIS_FILE, CONFIG_FILE, EVALUATION_FILE, METRICS_FILE, SIMILARITY_FILE
from dexcore.report.history import History, SimilarityCourse


@dataclass(frozen=True, eq=False)
class RunNumbers:
    """The numbers of one run.

    Attributes:
        config: the run's configuration, as YAML gives it.
        history: its steps.
        evaluation: what was measured an image.
        analysis: what was measured on the model, on the same images.
        similarity: of the experts, over time.
    """

    config: Mapping[str, Any]
    history: History
    evaluation: Evaluation
    analysis: Analysis
    similarity: SimilarityCourse

    @classmethod
    def read(cls, folder: str | Path) -> "RunNumbers":
        """Read metrics.jsonl, config.yaml, evaluation.npz, analysis.npz and, where it is there, similarity.jsonl.

        Raises:
            FileNotFoundError: the folder or one of the first four is missing.
            ValueError: one of them is empty or damaged, metrics.jsonl holds fewer steps than the model had done when
                it was measured, or analysis and evaluation are of different images; the message names it.
            MissingExtraError: PyYAML is not installed.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder, expected the folder of a run")
        similarity = SimilarityCourse.read(folder / SIMILARITY_FILE)  # before the steps: a trainer may be writing both
        numbers = cls(
            config=read_config(folder / CONFIG_FILE),
            history=History.read(folder / METRICS_FILE),
            evaluation=Evaluation.load(folder / EVALUATION_FILE),
            analysis=Analysis.load(folder / ANALYSIS_FILE),
            similarity=similarity,
        )
        _check_steps(folder, len(numbers.history.step), similarity)
        evaluation, analysis = numbers.evaluation, numbers.analysis
        found = len(analysis), analysis.patches.shape[1]
        expected = len(evaluation), len(evaluation.examples)
        if found != expected:
            raise ValueError(
                f"{folder / ANALYSIS_FILE}: of {found[0]} images and {found[1]} examples, expected {expected[0]} and "
                f"{expected[1]} as in {EVALUATION_FILE}"
            )
        return numbers


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
