"""The report of a run that is under way, was stopped or has diverged: what there is, and what is missing and why."""

from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from dexcore.files import write_whole
from dexcore.report.comparison import by_rule
from dexcore.report.curves import course_pictures
from dexcore.report.files import (
    ANALYSIS_FILE,
    CONFIG_FILE,
    EVALUATION_FILE,
    HELDOUT_FILE,
    METRICS_FILE,
    MODEL_FOLDER,
    PROBE_FILE,
    REPORT_FILE,
    SIMILARITY_FILE,
    SUMMARY_FILE,
    is_held,
)
from dexcore.report.heldout_course import HeldOutCourse
from dexcore.report.history import History, SimilarityCourse
from dexcore.report.html import document, figure
from dexcore.report.loads import hunger_picture, load_picture
from dexcore.report.numbers import read_config
from dexcore.report.objectives import OBJECTIVES, objective_of
from dexcore.report.page import configuration, kind_of, page_title
from dexcore.report.pictures import Picture
from dexcore.report.probe_course import ProbeCourse, probe_picture
from dexcore.report.routes import hunger
from dexcore.report.similarity_course import similarity_course_picture


@dataclass(frozen=True)
class Unfinished:
    """Where a run without an evaluation stands.

    Attributes:
        standing: in a sentence: under way, diverged, trained but not evaluated, or stopped.
        course: its steps and losses so far, in a sentence.
        missing: what the page does not show, and why.
        report: the page.
    """

    standing: str
    course: str
    missing: str
    report: Path

    def lines(self) -> list[str]:
        """Plain text for a terminal."""
        return [self.standing, self.course, self.missing, "", f"Files\n  report   {self.report}"]


def is_unfinished(run_folder: str | Path) -> bool:
    """Whether a folder holds a run that has not come to its report: a configuration, but no analysis and no summary."""
    folder = Path(run_folder)
    return (folder / CONFIG_FILE).is_file() and not any((folder / n).exists() for n in (ANALYSIS_FILE, SUMMARY_FILE))


def report_unfinished(run_folder: str | Path) -> Unfinished:
    """Write a report.html of the steps that are there. The run's own report, at its end, replaces it.

    Raises:
        FileNotFoundError: there is no metrics.jsonl or config.yaml.
        ValueError: no step is done yet, or a file is damaged; the message names it.
        MissingExtraError: matplotlib or PyYAML is not installed.
        OSError: the folder cannot be written.
    """
    folder = Path(run_folder)
    similarity = SimilarityCourse.read(folder / SIMILARITY_FILE)  # before the steps: a trainer may be writing both
    probe = ProbeCourse.read(folder / PROBE_FILE)
    config = read_config(folder / CONFIG_FILE)
    history = History.read(folder / METRICS_FILE)
    under_way = is_held(folder)
    words = OBJECTIVES[objective_of(config)]
    found = Unfinished(
        _standing(folder, history, config.get("run", {}).get("max_skipped"), under_way),
        _course(history, words.loss),
        f"Missing: the variance explained, {words.pictures}, and what experts and features follow. They come from "
        f"{EVALUATION_FILE} and {ANALYSIS_FILE}, which a run writes after its last step.",
        folder / REPORT_FILE,
    )
    mlp = kind_of(config)
    pictures: list[Picture | None] = [
        *course_pictures(history, similarity, mlp, HeldOutCourse.read(folder / HELDOUT_FILE), words),
        probe_picture(probe),
        load_picture(history, mlp),
        None if by_rule(mlp) else hunger_picture(history, hunger(history)),
        similarity_course_picture(similarity),
    ]
    title = page_title(folder, config)
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="warning">{escape(found.standing)}</p>',
        f'<p class="headline">{escape(found.course)}</p>',
        f'<p class="quiet">{escape(found.missing)}</p>',
        *(figure(picture) for picture in pictures if picture is not None),
        configuration(config),
        f'<p class="quiet"><code>dexcore report {escape(folder.as_posix())}</code> makes this page again.</p>',
    ]
    write_whole(folder / REPORT_FILE, document(title, body).encode())
    return found


def _standing(folder: Path, history: History, max_skipped: int | None, under_way: bool) -> str:
    steps = len(history.step)
    done = f"after step {steps}"
    bad = history.skipped | ~np.isfinite(history.scalars["loss_self"])
    in_a_row = steps if bad.all() else int(np.argmin(bad[::-1]))
    of_loss = f"the loss or its gradient was not finite in the last {in_a_row} steps" if in_a_row else ""
    if under_way:
        return f"This run is under way, {done}" + (f"; {of_loss}." if of_loss else ".")
    if max_skipped is not None and in_a_row >= max_skipped:
        return f"This run has diverged and ended {done}: {of_loss}. Begin again with a smaller --optimizer.base-lr."
    if (folder / MODEL_FOLDER).exists():
        return f"This run is trained, {done}, and was ended before its evaluation: --resume --out {folder} makes it."
    return f"This run was stopped {done}" + (f"; {of_loss}" if of_loss else "") + f": --resume --out {folder} goes on."


def _course(history: History, called: str) -> str:
    steps, skipped = len(history.step), int(history.skipped.sum())
    loss = history.scalars["loss_self"]
    finite = np.flatnonzero(np.isfinite(loss))
    told = f"{steps} step{'s' * (steps != 1)} done, {skipped} of them skipped (loss or gradient not finite)"
    if history.rolled_back:
        told += f", {history.rolled_back} times back to an earlier checkpoint's weights"
    if not len(finite):
        return f"{told}; no {called} was a finite number."
    return f"{told}; {called} from {loss[finite[0]]:.3f} to {loss[finite[-1]]:.3f}."
