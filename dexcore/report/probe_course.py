"""What features were worth to a labelled task at moments of a run: read, and drawn."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dexcore.report.history import read_records
from dexcore.report.pictures import BLUE, NEUTRAL, RED, Picture, new_figure, styled, to_png

DRAWN = (20, "weighted")  # k and votes of the curves: one variant, not the best of several at each moment
_LAYERS = {"cls": ("class token", "-"), "mean": ("mean of patch tokens", "--")}
_COLORS = {"experts": BLUE, "director": RED, "dense": BLUE}


@dataclass(frozen=True, eq=False)
class ProbeCourse:
    """The nearest-neighbor probe of a run, over its moments.

    Attributes:
        step: int64 [moments], rising: steps done.
        curves: mode and layer -> float64 [moments], the task's number by `DRAWN`; nan where it was not had.
        task, metric: their names; "" where the run was not probed.
        measured_on: of which images the number is: "val", or those of train by images of other cases.
        images, cases: how many there are.
        majority: the same number where every image is given the shares of the training labels.
    """

    step: np.ndarray
    curves: dict[tuple[str, str], np.ndarray]
    task: str = ""
    metric: str = ""
    measured_on: str = ""
    images: int = 0
    cases: int = 0
    majority: float = np.nan

    @classmethod
    def read(cls, path: str | Path) -> "ProbeCourse":
        """Read a probe.jsonl; no moment where there is no such file. Of several tasks the last one's are taken.

        A last line that a kill cut short is left out.

        Raises:
            ValueError: a damaged line before the last, or steps that do not rise; the message names the file.
        """
        path = Path(path)
        records = read_records(path) if path.is_file() else []
        try:
            records = [record for record in records if record["fingerprint"] == records[-1]["fingerprint"]]
            curves: dict[tuple[str, str], np.ndarray] = {}
            for place, record in enumerate(records):
                for mode, tried in record["modes"].items():
                    for one in tried:
                        if (one["k"], one["votes"]) == DRAWN and one["measured"] == record["metric"]:
                            empty = np.full(len(records), np.nan)
                            curve = curves.setdefault((mode, one["layer"]), empty)
                            curve[place] = np.nan if one["value"] is None else float(one["value"])
            told = next((record for record in reversed(records) if record["modes"]), None)
            step = np.array([record["step"] for record in records], dtype=np.int64)
            if told is None:
                return cls(step, curves)
            about = {name: told[name] for name in ("task", "metric", "measured_on", "images", "cases")}
            majority = np.nan if told["majority"] is None else float(told["majority"])
            return cls(step, curves, **about, majority=majority)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{path}: damaged, expected what a probe found ({error!r})") from error

    def lines(self) -> list[str]:
        """Plain text for a terminal: the first number and the last of every curve."""
        metric, cases = self.metric.replace("_", " "), f"{self.images} images of {self.cases} cases"
        head = f"Probe on the task {self.task} ({metric} of {self.measured_on}, {cases}), first moment to last"
        return [head, *(f"  {told}" for told in self.told())]

    def told(self) -> list[str]:
        """Every curve in words, from its first number to its last."""
        return [
            f"{'' if mode == 'dense' else mode + ', '}{_LAYERS.get(layer, (layer,))[0]} {_from_to(values)}"
            for (mode, layer), values in self.curves.items()
        ]

    def as_dict(self) -> dict[str, Any] | None:
        """The course as an object for JSON; None where there is none."""
        if not self.curves:
            return None
        return {
            "task": self.task,
            "metric": self.metric,
            "measured_on": self.measured_on,
            "images": self.images,
            "cases": self.cases,
            "majority": _or_none(self.majority),
            "step": self.step.tolist(),
            "curves": [
                {"mode": mode, "layer": layer, "value": [_or_none(value) for value in values.tolist()]}
                for (mode, layer), values in self.curves.items()
            ],
        }


def probe_picture(course: ProbeCourse) -> Picture | None:
    """The probe's number over time; None where no moment has one."""
    if not any(np.isfinite(values).any() for values in course.curves.values()):
        return None
    metric = course.metric.replace("_", " ")
    with styled():
        figure = new_figure(3.3)
        axis = figure.subplots()
        for (mode, layer), values in course.curves.items():
            name, line = _LAYERS.get(layer, (layer, ":"))
            label = name if mode == "dense" else f"{mode}, {name}"
            axis.plot(course.step, values, line, marker="o", markersize=3.5, color=_COLORS.get(mode), label=label)
        if np.isfinite(course.majority):
            axis.axhline(
                course.majority, color=NEUTRAL, linewidth=1.2, linestyle=":", label="shares of the classes alone"
            )
        axis.set_title(f"{course.task}: {metric}")
        axis.set_xlabel("step")
        axis.grid(True, axis="y")
        axis.locator_params(axis="x", nbins=5, integer=True, min_n_ticks=1)
        figure.legend(loc="outside lower left", ncols=2, fontsize=8.5, columnspacing=0.8)
        png = to_png(figure)
    where = "validation images" if course.measured_on == "val" else "training images, by images of other cases"
    return Picture(
        name="probe.png",
        title="What the features are worth to a task",
        reading=(
            f"At each moment the {course.images} {where} ({course.cases} cases) of the task {course.task} were "
            f"classified by their {DRAWN[0]} nearest training images, nothing trained; step 0 is the model before "
            "training, which the curve should leave behind."
        ),
        bad="a curve that stays at step 0, or falls while the loss still does: stop there.",
        png=png,
        found=f"From the first moment to the last: {'; '.join(course.told())}.",
        detail=(
            f"The number is {metric}; neighbors vote by their likeness (cosine, temperature 0.07), an image of the "
            "same case is none. No label of a test image is read. With few cases a curve moves by chance: what is "
            "chosen by it is scored on the test images by `dexcore eval probe`, afterwards and once."
        ),
    )


def _from_to(values: np.ndarray) -> str:
    finite = values[np.isfinite(values)]
    return f"{finite[0]:.3f} to {finite[-1]:.3f}" if len(finite) else "no number"


def _or_none(value: float) -> float | None:
    return value if np.isfinite(value) else None
