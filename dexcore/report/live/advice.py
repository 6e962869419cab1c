"""What goes wrong in a run, and what to do about it."""

from typing import NamedTuple

import numpy as np

from dexcore.report.comparison import by_rule
from dexcore.report.live.course import RECENT, Course, Standing
from dexcore.report.routes import STARVING

_SPIKE = 6.0  # deviations above what came before
_AT_LEAST = 0.2  # and of the loss before
_WAITING = 0.1  # of a step's time
_ENOUGH = 20  # steps, to say something of them
_MOMENTS, _RISEN = 3, 0.02  # in a row, and of the least loss
_LATE, _NEAR = 0.75, 0.95  # of a run; of its peak


class Advice(NamedTuple):
    """What is wrong, and what helps."""

    problem: str
    remedy: str


def advise(course: Course) -> list[Advice]:
    """All there is to say of the last steps, the gravest first."""
    found = [_quiet(course), _skipped(course), _spike(course), _starving(course), _apart(course)]
    found += [_overfitted(course), _waiting(course)]
    return [one for one in found if one is not None]


def _quiet(course: Course) -> Advice | None:
    if course.standing is not Standing.QUIET:
        return None
    return Advice(
        "no step was written for more than a minute and ten steps' time, and the process lives",
        "look at its terminal; py-spy dump --pid shows where it waits",
    )


def _skipped(course: Course) -> Advice | None:
    if not course.skipped:
        return None
    times = f"{course.skipped} step{'s were' if course.skipped > 1 else ' was'} skipped, the last {course.last_skipped}"
    return Advice(
        f"{times}: loss or gradient was not finite",
        "--replay skipped.jsonl names the images; where it goes on: a smaller --optimizer.base-lr with --allow-change",
    )


def _spike(course: Course) -> Advice | None:
    """A loss far above what the steps before deviated by."""
    name = "loss_self" if "loss_self" in course.scalars else "loss"
    last, before = course.recent(name, _ENOUGH), course.recent(name, 2 * RECENT, before=_ENOUGH)
    last, before = last[np.isfinite(last)], before[np.isfinite(before)]
    if len(before) < RECENT or not len(last):
        return None
    middle = float(np.median(before))
    deviation = 1.4826 * float(np.median(np.abs(before - middle)))
    highest = float(last.max())
    if highest <= middle + max(_SPIKE * deviation, _AT_LEAST * abs(middle)):
        return None
    return Advice(
        f"the loss rose to {highest:.3f} within the last {_ENOUGH} steps, from {middle:.3f} before",
        "where it stays there: a smaller --optimizer.base-lr or --optimizer.clip-norm with --allow-change",
    )


def _starving(course: Course) -> Advice | None:
    """Experts that get hardly an image."""
    if len(course.load) < RECENT or not course.mlp or by_rule(course.mlp):
        return None
    hungry = []
    for number, share_r in enumerate(course.mean_load(), start=1):
        experts = [str(expert + 1) for expert in np.flatnonzero(share_r * len(share_r) < STARVING)]
        if experts:
            hungry.append(f"block {number}: {', '.join(experts)}")
    if not hungry:
        return None
    return Advice(
        f"experts get less than a tenth of an even share ({'; '.join(hungry)})",
        "a larger --dex.lambda-balance, or less --dex.noise-start, with --allow-change",
    )


def _apart(course: Course) -> Advice | None:
    """Directors that do not come nearer to their experts when exploration has ended."""
    moments = course.similarity
    if moments is None or not course.total_steps or len(moments.align) < 3:
        return None
    gap = np.nan_to_num(moments.align).mean(axis=1)
    if moments.step[-1] < _LATE * course.total_steps or gap[-1] < _NEAR * gap.max():
        return None
    return Advice(
        f"the alignment loss does not fall: {gap[-1]:.3f} above its least, at most {gap.max():.3f} before",
        "a larger --dex.lambda-align, or a smaller --dex.momentum-end, with --allow-change",
    )


def _overfitted(course: Course) -> Advice | None:
    """A held-out loss that has risen over several moments."""
    if course.heldout is None or course.heldout.best is None:
        return None
    step, least = course.heldout.best
    since = course.heldout.loss[course.heldout.step > step]
    if len(since) < _MOMENTS or not since[-_MOMENTS:].min() > (1 + _RISEN) * least:
        return None
    return Advice(
        f"the held-out loss rises: {since[-1]:.3f}, from {least:.3f} after step {step}",
        "model-best holds that model; more images, fewer epochs, or a larger --optimizer.weight-decay help",
    )


def _waiting(course: Course) -> Advice | None:
    share = course.shares().get("seconds_data", 0.0)
    if share <= _WAITING or course.steps < _ENOUGH:
        return None
    return Advice(
        f"the model waits for images {100 * share:.0f} % of the time",
        "more --data.workers, or a store of smaller images on a faster disk",
    )
