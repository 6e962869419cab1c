"""The loss on held-out images at moments of a run: read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dexcore.report.history import read_records


@dataclass(frozen=True, eq=False)
class HeldOutCourse:
    """The held-out loss of a run, over its moments.

    Attributes:
        step: int64 [moments], rising: steps done.
        loss: float64 [moments], the mean over images; nan where it was not a number.
        images: how many images it is of.
    """

    step: np.ndarray
    loss: np.ndarray
    images: int = 0

    @classmethod
    def read(cls, path: str | Path) -> "HeldOutCourse":
        """Read a heldout.jsonl; no moment where there is no such file.

        A last line that a kill cut short is left out.

        Raises:
            ValueError: a damaged line before the last, or steps that do not rise; the message names the file.
        """
        path = Path(path)
        records = read_records(path) if path.is_file() else []
        try:
            loss = [np.nan if record["loss"] is None else float(record["loss"]) for record in records]
            images = sum(count for _, count in records[-1]["modalities"].values()) if records else 0
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{path}: damaged, expected losses on held-out images ({error!r})") from error
        return cls(np.array([record["step"] for record in records], np.int64), np.array(loss, np.float64), images)

    @property
    def best(self) -> tuple[int, float] | None:
        """Steps done at the least loss of training, the first of equal ones, and that loss; None where none is a
        number after a step."""
        loss = np.where(self.step > 0, self.loss, np.nan)
        if not np.isfinite(loss).any():
            return None
        place = int(np.nanargmin(loss))
        return int(self.step[place]), float(loss[place])

    def told(self) -> str:
        """The course in a sentence; "" where there is none."""
        if self.best is None:
            return ""
        step, loss = self.best
        first, last = self.loss[0], self.loss[-1]
        return (
            f"Loss on {self.images} held-out images: {first:.3f} before training, {last:.3f} after step "
            f"{self.step[-1]}, the least {loss:.3f} after step {step} (model-best)"
        )

    def as_dict(self) -> dict[str, Any] | None:
        """The course as an object for JSON; None where there is none."""
        if self.best is None:
            return None
        loss = [value if np.isfinite(value) else None for value in self.loss.tolist()]
        return {"images": self.images, "step": self.step.tolist(), "loss": loss, "best_step": self.best[0]}
