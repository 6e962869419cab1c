"""Pictures of a run's course: losses and schedules."""

from typing import Any

import numpy as np

from dexcore.report.comparison import by_rule
from dexcore.report.heldout_course import HeldOutCourse
from dexcore.report.history import History, SimilarityCourse
from dexcore.report.objectives import OBJECTIVES, Words
from dexcore.report.pictures import BLUE, NEUTRAL, RED, Picture, new_figure, styled, to_png

_LOSSES = {
    "loss_align": "Alignment loss, its floor unknown",
    "loss_balance": "Balance of the experts",
}
_PROGRESS = {
    "lr": "Learning rate",
    "momentum": "Director momentum",
    "noise_std": "Router noise",
    "lambda_balance": "Balance weight",
    "grad_norm": "Gradient norm",
    "images_per_second": "Images per second",
}
_OF_THE_ROUTER = ("loss_balance", "noise_std", "lambda_balance")


def course_pictures(
    history: History,
    similarity: SimilarityCourse,
    mlp: str = "dex",
    heldout: HeldOutCourse | None = None,
    words: Words = OBJECTIVES["mae"],
) -> list[Picture]:
    """Losses and schedules, as far as they were recorded; those of the router only where one chose the experts.

    Args:
        mlp: kind of the encoder's MLPs, a key of `dexcore.report.comparison.KINDS`.
        heldout: the loss on held-out images, drawn over that of training.
        words: how to speak of what the run is trained for.
    """
    shown = (
        {name: title for name, title in titles.items() if name not in _OF_THE_ROUTER or not by_rule(mlp)}
        for titles in ({"loss_self": words.curve, **_LOSSES}, _PROGRESS)
    )
    pictures = []
    with styled():
        losses, progress = (_recorded(history, titles) for titles in shown)
        if losses:
            pictures.append(_losses(history, losses, similarity, heldout, words))
        if progress:
            pictures.append(_schedules(history, progress))
    return pictures


def _recorded(history: History, titles: dict[str, str]) -> list[tuple[np.ndarray, str]]:
    """(values, title) of what has a number; the loss of the objective always, for it must not vanish as nan."""
    return [
        (history.scalars[name], title)
        for name, title in titles.items()
        if name == "loss_self" or np.isfinite(history.scalars[name]).any()
    ]


def _losses(
    history: History,
    losses: list[tuple[np.ndarray, str]],
    similarity: SimilarityCourse,
    heldout: HeldOutCourse | None,
    words: Words,
) -> Picture:
    figure = new_figure(2.9 + 1.6 * (len(losses) - 1))
    ratios = [1.9] + [1.0] * (len(losses) - 1)
    axes = figure.subplots(len(losses), 1, sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
    aligned = bool(similarity.align_kind)
    for axis, (values, title) in zip(axes, losses, strict=True):
        if title == _LOSSES["loss_align"] and aligned:
            _alignment(axis, similarity)
        else:
            _curve(axis, history.step, values, title, smooth=True)
    told = heldout.told() if heldout else ""
    if heldout and told:
        axes[0].plot(heldout.step, heldout.loss, "o-", color=RED, linewidth=1.5, markersize=3.5, label="held out")
        axes[0].legend(loc="upper right")
    axes[-1].set_xlabel("step")
    titles = [title for _, title in losses]
    bad = f"a {words.loss} that stays at its start or turns up for good, "
    if told:
        bad += "a held-out loss that rises while that of training falls, "
    detail = words.height
    if told:
        detail += (
            " Held-out images are shown whole, with the same masks at every moment, and without exploration noise: "
            "their loss is not that of training by more than what was not seen."
        )
    if _LOSSES["loss_balance"] in titles:
        bad += "a balance loss that rises and stays high, "
        detail += (
            " The balance loss is 1.0 when all experts are used evenly, and as large as the number of experts when "
            "one takes everything."
        )
    if _LOSSES["loss_align"] in titles:  # not of a dense model
        detail += f" {_about_alignment(similarity)}"
    return Picture(
        name="losses.png",
        title="Losses",
        reading=f"Thin is every step, thick a running mean: the {words.loss} should fall quickly, then slowly.",
        bad=f"{bad}or red marks at the bottom: steps whose loss was not a finite number.",
        png=to_png(figure),
        found=f"{told}." if told else "",
        detail=detail,
    )


def _alignment(axis: Any, similarity: SimilarityCourse) -> None:
    """The alignment loss above what it is at agreement: mean over blocks, and from the lowest to the highest."""
    above = similarity.align
    minus = " minus the teacher's entropy" if similarity.align_kind == "kd" else ""
    axis.set_title(f"Alignment loss{minus}")
    axis.fill_between(similarity.step, above.min(axis=1), above.max(axis=1), color=BLUE, alpha=0.2, linewidth=0)
    axis.plot(similarity.step, above.mean(axis=1), "o-", color=BLUE, linewidth=2, markersize=3.5)
    axis.set_ylim(bottom=0)
    axis.grid(True, axis="y")
    axis.locator_params(axis="y", nbins=4)


def _about_alignment(similarity: SimilarityCourse) -> str:
    if not similarity.align_kind:
        return (
            "The alignment loss compares experts and director. As a cross-entropy (kd) its floor is the entropy of the "
            "director's output, which this run did not measure: its height says nothing."
        )
    told = (
        "The alignment loss compares experts and director, at the moments at which the experts are compared and on the "
        "same few images, as in an evaluation, so that 0 is agreement: the line is the mean over blocks, the band "
        "reaches from the lowest block to the highest."
    )
    if similarity.align_kind == "kd":
        told += (
            " It is a cross-entropy; its least value, the entropy of the director's output as the teacher, is "
            "subtracted. The teacher's temperature is 0.5 and the student's 1, so agreement is an output of the "
            "experts that is twice the director's: experts that equal it, as all do at step 0, are above 0."
        )
    return told


def _schedules(history: History, progress: list[tuple[np.ndarray, str]]) -> Picture:
    rows = (len(progress) + 1) // 2
    titles = [title for _, title in progress]
    told = "The learning rate rises, then follows a cosine"
    if _PROGRESS["momentum"] in titles:  # not of a dense model
        told += "; the directors' momentum rises"
    if _PROGRESS["noise_std"] in titles:
        told += ", the router's exploration noise and the balance weight fall"
    figure = new_figure(0.3 + 1.5 * rows)
    axes = list(figure.subplots(rows, 2, sharex=True, squeeze=False).flat)
    for axis, (values, title) in zip(axes, progress, strict=False):
        measured = title in (_PROGRESS["grad_norm"], _PROGRESS["images_per_second"])
        _curve(axis, history.step, values, title, smooth=measured)
    for axis in axes[len(progress) :]:
        axis.set_visible(False)
    figure.supxlabel("step", fontsize=10.5)
    return Picture(
        name="schedules.png",
        title="Schedules and speed",
        reading="What was set at each step, and below it what was measured.",
        bad="gradient norms that keep growing, or a speed that drops and stays low (starved of data).",
        png=to_png(figure),
        detail=f"{told}. The gradient norm is the one before clipping.",
    )


def _curve(axis: Any, step: np.ndarray, values: np.ndarray, title: str, smooth: bool) -> None:
    axis.set_title(title)
    axis.grid(True, axis="y")
    axis.locator_params(axis="y", nbins=4)
    axis.locator_params(axis="x", nbins=4, integer=True, min_n_ticks=1)
    finite = np.isfinite(values)
    if finite.sum() <= 1:
        axis.plot(step[finite], values[finite], "o", color=BLUE)
    elif smooth:
        axis.plot(step, np.where(finite, values, np.nan), color=BLUE, alpha=0.4, linewidth=0.7)
        axis.plot(step, _running_mean(values), color=BLUE, linewidth=2)
    else:
        axis.plot(step, np.where(finite, values, np.nan), color=BLUE, linewidth=2)
    if not finite.any():
        axis.text(0.5, 0.5, "no finite value", transform=axis.transAxes, ha="center", va="center", color=NEUTRAL)
        axis.set_yticks([])
    bad = step[~finite]
    if len(bad):  # a rug along the bottom edge
        axis.plot(bad, np.zeros(len(bad)), "|", color=RED, markersize=12, transform=axis.get_xaxis_transform())


def _running_mean(values: np.ndarray) -> np.ndarray:
    """Centered mean over a 30th of the run, of what is finite."""
    half = len(values) // 60
    finite = np.isfinite(values)
    window = np.ones(2 * half + 1)
    count = np.convolve(finite, window)[half : half + len(values)]
    total = np.convolve(np.where(finite, values, 0), window)[half : half + len(values)]
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)
