"""Where a run stands, from the files in its folder, read on from where they were read to before."""

import json
import math
import os
import time
from array import array
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from dexcore.report.comparison import Comparison
from dexcore.report.files import (
    CHECKPOINTS_FOLDER,
    COMPARISON_FILE,
    HELDOUT_FILE,
    METRICS_FILE,
    PROBE_FILE,
    SIMILARITY_FILE,
    STARTS_FILE,
    SUMMARY_FILE,
    is_held,
)
from dexcore.report.heldout_course import HeldOutCourse
from dexcore.report.history import SECONDS, SimilarityCourse
from dexcore.report.probe_course import ProbeCourse
from dexcore.report.starts import read_starts

RECENT = 100  # steps
_BYTES_AT_ONCE = 16 << 20
_NO_SCALARS = ("step", "epoch")
_QUIET_SECONDS = 60.0  # and ten steps: a line is awaited for so long


class Standing(Enum):
    """What a run does."""

    WAITING = "has not done a step yet"
    TRAINING = "trains"
    EVALUATING = "is trained; measures its model and writes its report"
    QUIET = "has written nothing for a while"
    ELSEWHERE = "trains on another machine, or was just stopped"
    STOPPED = "was stopped"
    FINISHED = "is finished"


@dataclass
class Course:
    """What a run's files say so far. All of this machine's time is in seconds since the epoch.

    Attributes:
        folder: of the run.
        steps: lines of metrics.jsonl, which is steps done.
        epoch: of the last one.
        scalars: by name, a float64 for each step; nan where a step has no such number.
        load: of the last `RECENT` steps, an entry a DEX block, the shares that each expert got.
        skipped: steps that changed no weight, and the last of them (-1: none).
        total_steps, batch_size: of the run; 0 where its folder does not tell.
        start: the last line of starts.jsonl.
        mlp: kind of the encoder's MLPs; "" where it is not told.
        similarity: how alike experts were, and how far the director's outputs from theirs, at moments.
        heldout: the loss on held-out images, at moments.
        probe: what features were worth, at moments.
        checkpoint: steps done of the newest checkpoint, and when it was written; None where there is none.
        written: when the last step's line was.
        standing: what the run does.
    """

    folder: Path
    steps: int = 0
    epoch: int = 0
    scalars: "dict[str, array[float]]" = field(default_factory=dict)
    load: deque[Sequence[Sequence[float]]] = field(default_factory=lambda: deque(maxlen=RECENT))
    skipped: int = 0
    last_skipped: int = -1
    total_steps: int = 0
    batch_size: int = 0
    start: Mapping[str, Any] = field(default_factory=dict)
    mlp: str = ""
    similarity: SimilarityCourse | None = None
    heldout: HeldOutCourse | None = None
    probe: ProbeCourse | None = None
    checkpoint: tuple[int, float] | None = None
    written: float = math.nan
    standing: Standing = Standing.WAITING

    def recent(self, name: str, steps: int = RECENT, before: int = 0) -> np.ndarray:
        """A scalar in the last ``steps`` steps but for the last ``before``; empty where there is none."""
        values = self.scalars.get(name, array("d"))
        end = len(values) - before
        return np.array(values[max(0, end - steps) : max(0, end)])

    def mean_load(self) -> list[np.ndarray]:
        """The mean share of each expert over the last `RECENT` steps, an entry a DEX block."""
        if not self.load:
            return []
        return [np.nan_to_num(np.array(block, np.float64)).mean(axis=0) for block in zip(*self.load, strict=True)]

    @property
    def seconds_a_step(self) -> float:
        """The median of the last steps; nan where it is not known."""
        speed = self.recent("images_per_second", 50)
        speed = speed[np.isfinite(speed) & (speed > 0)]
        return float(self.batch_size / np.median(speed)) if len(speed) and self.batch_size else math.nan

    @property
    def seconds_left(self) -> float:
        """Until the last step, at the speed of the last ones; nan where it is not known."""
        return max(0, self.total_steps - self.steps) * self.seconds_a_step if self.total_steps else math.nan

    def shares(self) -> dict[str, float]:
        """The parts of the last steps' time, those of `SECONDS` that are told."""
        if not self.batch_size:
            return {}
        whole = self.batch_size / self.recent("images_per_second", 50)
        found = {}
        for name in SECONDS:
            part = self.recent(name, 50)
            known = np.isfinite(part) & np.isfinite(whole) if len(part) == len(whole) else np.array([], bool)
            if known.any():
                found[name] = float(part[known].sum() / whole[known].sum())
        return found


class Follower:
    """Reads a run's folder again and again, each time what is new.

    Args:
        folder: of a run: the trainer's ``--out``, here or on a disk that it shares.

    Raises:
        FileNotFoundError: there is no such folder, or no run in it.
    """

    def __init__(self, folder: str | Path) -> None:
        self.course = Course(Path(folder))
        self._file = 0  # its inode: a resumed run replaces the file
        self._read = 0  # bytes
        self._lines = 0
        if not (self.course.folder / STARTS_FILE).is_file() and not (self.course.folder / METRICS_FILE).is_file():
            problem = "holds no run" if self.course.folder.is_dir() else "no such folder"
            raise FileNotFoundError(f"{folder}: {problem}, expected the folder that a run writes (its --out)")

    def read(self) -> Course:
        """Take in what the files hold by now.

        Raises:
            ValueError: a file is damaged; the message names it.
        """
        folder = self.course.folder
        self._read_steps(folder / METRICS_FILE)
        course = self.course
        starts = read_starts(folder)
        course.start = starts[-1] if starts else {}
        course.total_steps, course.batch_size = (int(course.start.get(n, 0)) for n in ("total_steps", "batch_size"))
        comparison = Comparison.read(folder / COMPARISON_FILE)
        course.mlp = comparison.mlp if comparison else ""
        course.similarity = SimilarityCourse.read(folder / SIMILARITY_FILE)
        course.heldout = HeldOutCourse.read(folder / HELDOUT_FILE)
        course.probe = ProbeCourse.read(folder / PROBE_FILE)
        course.checkpoint = _newest(folder / CHECKPOINTS_FOLDER)
        course.standing = self._standing()
        return course

    def _read_steps(self, path: Path) -> None:
        try:
            with open(path, "rb") as file:
                there = os.fstat(file.fileno())
                if there.st_ino != self._file or there.st_size < self._read:
                    self._file, self._read, self._lines = there.st_ino, 0, 0
                    self.course = Course(self.course.folder)
                file.seek(self._read)
                while block := file.read(_BYTES_AT_ONCE):
                    whole = block[: block.rfind(b"\n") + 1]
                    if not whole:
                        break  # the last line is being written
                    for line in whole.splitlines():
                        self._add(path, line)
                    self._read += len(whole)
                    file.seek(self._read)
                self.course.written = there.st_mtime
        except FileNotFoundError:
            return

    def _add(self, path: Path, text: bytes) -> None:
        self._lines += 1
        try:
            line = json.loads(text)
            step = line["step"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {self._lines}: expected a JSON object with a step") from error
        course = self.course
        if step != course.steps:
            raise ValueError(f"{path}, line {self._lines}: step {step}, expected step {course.steps}")
        for name, value in line.items():
            if name in _NO_SCALARS or isinstance(value, (bool, list, str)):
                continue
            column = course.scalars.setdefault(name, array("d"))
            column.extend([math.nan] * (step - len(column)))
            column.append(math.nan if value is None else float(value))
        if line.get("skipped"):
            course.skipped, course.last_skipped = course.skipped + 1, step
        if line.get("load"):
            course.load.append(line["load"])
        course.steps, course.epoch = step + 1, int(line.get("epoch", 0))

    def _standing(self) -> Standing:
        course = self.course
        step = course.seconds_a_step
        awaited = time.time() - course.written < _QUIET_SECONDS + (10 * step if step > 0 else 0)
        if is_held(course.folder):
            if course.total_steps and course.steps >= course.total_steps:
                return Standing.EVALUATING
            if not course.steps:
                return Standing.WAITING
            return Standing.TRAINING if awaited else Standing.QUIET
        if (course.folder / SUMMARY_FILE).exists() and course.steps >= course.total_steps:
            return Standing.FINISHED
        return Standing.ELSEWHERE if awaited else Standing.STOPPED


def _newest(checkpoints: Path) -> tuple[int, float] | None:
    found = None
    try:
        with os.scandir(checkpoints) as entries:
            for entry in entries:
                word, _, number = entry.name.partition("-")
                if word == "step" and number.isdigit() and entry.is_dir():
                    found = max(found or (-1, 0.0), (int(number), entry.stat().st_mtime))
    except FileNotFoundError:
        return None
    return found
