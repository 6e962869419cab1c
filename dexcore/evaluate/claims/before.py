"""What is settled before anything is trained: that the images and tasks will do, and what could be shown."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from dexcore.data.assemble.leak import find_records
from dexcore.data.feed.pretrain_view import Images
from dexcore.evaluate.claims.effects import Asked
from dexcore.evaluate.modules import Sample, take_samples
from dexcore.evaluate.tasks import Task
from dexcore.evaluate.tasks.check import check_task
from dexcore.files import write_whole
from dexcore.measures.effects import ALPHA, POWER
from dexcore.report.as_json import number_or_none
from dexcore.report.claims import Shown

EXPERIMENT_FILE, SMALLEST_FILE = "experiment.json", "smallest_effects.json"
_MOST = 3  # sentences about one task


class ExperimentError(Exception):
    """An experiment that cannot be made, or a folder of another one."""


def settle(out: Path, made_of: Mapping[str, str]) -> None:
    """Keep one experiment in a folder: write down what it is made of, or see that it is this one's.

    Raises:
        ExperimentError: another experiment is kept there; the message says what differs.
        OSError: it cannot be written.
    """
    path = out / EXPERIMENT_FILE
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        out.mkdir(parents=True, exist_ok=True)
        write_whole(path, (json.dumps(dict(made_of), indent=1) + "\n").encode())
        return
    except ValueError as error:
        raise ExperimentError(f"{path} is damaged ({error}); give another folder") from error
    other = [f"{name}: {before.get(name)} -> {value}" for name, value in made_of.items() if before.get(name) != value]
    if other:
        raise ExperimentError(f"{out} holds another experiment; give a folder of its own. {'; '.join(other)}")


def check_images(images: Images, most: int) -> list[str]:
    """See that a store has what is measured on it; what must be known of it.

    Args:
        images: of the store.
        most: images of a modality and a split that are looked at.

    Raises:
        StoreError: fewer than two modalities have training and held-out images.
        ExperimentError: fewer than two have two training cases.
    """
    train, heldout = take_samples(images, most)
    if sum(_cases(train) > 1) < 2:
        raise ExperimentError(
            f"{images.name}: gradients of modalities are compared between cases (patients, volumes, files): expected "
            "two training cases of two modalities at least"
        )
    told = []
    single = [name for name, cases in zip(heldout.modalities, _cases(heldout), strict=True) if cases < 2]
    if single:
        told.append(f"One held-out case of {', '.join(single)}: intervals leave out what others would change.")
    there = [images.modality_names[m] for m in np.unique(images.modality).tolist()]
    left_out = [name for name in there if name not in heldout.modalities]
    if left_out:
        told.append(f"Without images of both splits, and so without a part in knock-outs: {', '.join(left_out)}.")
    return told


def _cases(sample: Sample) -> np.ndarray:
    return np.bincount(sample.label_g, minlength=len(sample.modalities))


def check_tasks(tasks: Sequence[Task], store: Path) -> list[str]:
    """See that tasks are sound, and look their test images up in the store; what must be known of them.

    Raises:
        ExperimentError: numbers of a task would be worthless, for another reason than that the store holds it.
        StoreError: the store is not sound.
    """
    told, owners = [], dict[str, Task]()
    for task in tasks:
        problems = check_task(task).problems
        if problems:
            more = f" and {len(problems) - _MOST} more" if len(problems) > _MOST else ""
            raise ExperimentError(
                f"{'; '.join(problems[:_MOST])}{more}. `dexcore eval check {task.spec.path}` tells all"
            )
        test = task.split("test")
        leaked = find_records(store, (task.record(row) for row in test)).leaked
        if leaked:
            exact = len({one.path for one in leaked if one.exact})
            seen = len({one.path for one in leaked})
            told.append(
                f"{task.name}: {seen} of {len(test)} test images stand in the store, {exact} of them exactly: models "
                "have seen them, without labels."
            )
        shared = {owners.setdefault(task.spec.located(row.image), task).name for row in test} - {task.name}
        if shared:
            told.append(
                f"{task.name} and {', '.join(sorted(shared))} share test images, and are drawn as if they did not: the "
                "interval of their mean is too narrow."
            )
    return told


@dataclass(frozen=True)
class Written:
    """What an experiment can show, as it was written down first.

    Attributes:
        shown: of each claim.
        when: time, ISO 8601, UTC.
        flags: what makes it less than a prediction.
    """

    shown: Mapping[str, Shown]
    when: str
    flags: tuple[str, ...]


def write_once(folder: Path, shown: Mapping[str, Shown], asked: Sequence[Asked], begun: str) -> Written:
    """Write down what could be shown, or find what was written first: it is never written over.

    Args:
        folder: of the experiment.
        shown: as the pilots say now.
        asked: the claims.
        begun: time of the first start of the experiment's first run; "" where none has begun.

    Raises:
        ExperimentError: the file is damaged.
        OSError: it cannot be written.
    """
    path = folder / SMALLEST_FILE
    claims = {one.claim.name: _told(shown[one.claim.name], one.claim.margin) for one in asked}
    now = {"alpha": ALPHA, "power": POWER, "claims": claims}
    if not path.is_file():
        when = datetime.now(UTC).isoformat(timespec="seconds")
        write_whole(path, (json.dumps(now | {"written": when}, indent=1) + "\n").encode())
    try:
        first = json.loads(path.read_text(encoding="utf-8"))
        when = str(first["written"])
        late = bool(begun) and datetime.fromisoformat(when) > datetime.fromisoformat(begun)
        found = {name: Shown(_number(own["smallest"]), _number(own["power_at_margin"]))
                 for name, own in first["claims"].items()}  # fmt: skip
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ExperimentError(f"{path} is damaged: what was written before the first run is lost") from error
    flags = []
    if late:
        flags.append(
            f"What could be shown was written down on {when}, after the first run had begun on {begun}: it is no "
            "prediction."
        )
    changed = [one.claim.title for one in asked if first["claims"].get(one.claim.name) != claims[one.claim.name]]
    if changed:
        flags.append(
            f"What was written down first stands, but margins, tasks, pilots or the code have changed since for: "
            f"{'; '.join(changed)}."
        )
    return Written(found, when, tuple(flags))


def _told(shown: Shown, margin: float) -> dict[str, Any]:
    """Rounded: the last digits are another machine's."""
    told = {"smallest": shown.smallest, "power_at_margin": shown.power, "margin": margin}
    return {name: number_or_none(float(f"{value:.6g}")) for name, value in told.items()}


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
