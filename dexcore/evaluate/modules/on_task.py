"""What a fixed probe of a task loses without an expert."""

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dexcore.data.assemble.progress import Progress
from dexcore.evaluate.embedding import FeatureTable, features
from dexcore.evaluate.embedding.images import TaskImages, images_of
from dexcore.evaluate.probes.dense import TOKENS, check_dense, fit_dense
from dexcore.evaluate.probes.linear import best_linear
from dexcore.evaluate.probes.run import layers_of
from dexcore.evaluate.probes.splits import Splits
from dexcore.evaluate.scores import Predictions, Scores, compare, score
from dexcore.evaluate.tasks import Row, Task
from dexcore.extras import require
from dexcore.measures.bootstrap import Estimate
from dexcore.models.inputs import slices_of
from dexcore.nn import rule_of, set_expert_mask
from dexcore.nn.expert_mask import REROUTE
from dexcore.nn.mlp import DEXMlp, dex_layers


@dataclass(frozen=True)
class TaskDamage:
    """A linear probe, of a task of masks the dense one, fitted once and read on features without each expert.

    Attributes:
        task, metric: of the probe.
        value: of the whole model, on test.
        lost: a block each, by expert: the whole model's number minus that without the expert, on the same cases.
        shares: a block each, by expert: P(expert | test images).
        layer: the features that the probe takes: "cls" or "mean", as chosen on val; of masks "patch tokens".
        flags: what a reader must know.
    """

    task: str
    metric: str
    value: Estimate
    lost: tuple[tuple[Estimate, ...], ...]
    shares: tuple[tuple[float, ...], ...]
    layer: str
    flags: tuple[str, ...]


def check_task_damage(encoders: Mapping[str, nn.Module], task: Task) -> None:
    """See, before anything is computed, that `task_damage` can be measured of these models, those of them with experts.

    Raises:
        TaskError: the task has no image of train or test, or an unsound label.
        ValueError: no model has experts, or one has none for a modality of the task.
        FeaturesError: one takes neighbouring slices, which a task does not show.
        MissingExtraError: scikit-learn is not installed, which classes need.
    """
    if task.spec.is_segmentation:
        check_dense(task)
    else:
        require("sklearn.linear_model", "eval")
        Splits.of(task)
    routed = {name: one for name, one in encoders.items() if any(isinstance(part, DEXMlp) for part in one.modules())}
    if not routed:
        raise ValueError(f"task {task.name}: {', '.join(encoders)} has no experts that its probe could do without")
    for name, encoder in routed.items():
        images_of(task, slices=slices_of(encoder))
        rule = rule_of(encoder)
        known = rule.modalities if rule is not None else ()
        unknown = sorted({row.modality.value for row in task.rows} - set(known))
        if known and unknown:
            raise ValueError(
                f"{name}: gives experts by modality, and has none for {', '.join(unknown)} of task {task.name}"
            )


def task_damage(
    encoder: nn.Module,
    task: Task,
    *,
    instead: str = REROUTE,
    cache: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> TaskDamage:
    """Knock out one expert after the other, and read the test images with a probe that knows nothing of it.

    Args:
        encoder: has DEX layers; through its experts, and left as it was.
        task: of classes or of masks.
        instead: what stands in for the expert (`dexcore.nn.set_expert_mask`).
        cache: of features; masked ones are kept apart from others. Patch tokens without an expert, which would be the
            whole features' size for each of them, are not kept.
        progress: show it on stderr.

    Raises:
        TaskError, FeaturesError: task and features cannot be probed.
        ValueError: no DEX layer, or no other expert to reroute to.
        OSError: the disk for temporary files has no room for the masks and tokens of one expert.
    """
    sizes = [layer.num_experts for layer in dex_layers(encoder)]
    seen: dict[str, Any] = {"mode": "experts"}
    if task.spec.is_segmentation:
        seen |= {"crop": "whole", "tokens": True}
    probe = (_dense if task.spec.is_segmentation else _linear)(task, features(encoder, task, cache=cache, **seen))
    images = TaskImages(task, probe.rows)

    def without(block: int | None = None, expert: int | None = None) -> tuple[FeatureTable, Scores]:
        keep = [[(b, e) != (block, expert) for e in range(size)] for b, size in enumerate(sizes)]
        with tempfile.TemporaryDirectory() as scratch:
            own = scratch if task.spec.is_segmentation else cache
            with torch.no_grad(), set_expert_mask(encoder, keep, instead):
                made = features(encoder, images, cache=own, **seen).of([row.image for row in probe.rows])
            return made, score(probe.read(made, Path(scratch)), task)

    table, whole = without()
    assert table.gates is not None
    places = [(block, expert) for block, size in enumerate(sizes) for expert in range(size)]
    lost: list[list[Estimate]] = [[] for _ in sizes]
    bar = Progress(len(places), "knocking out experts of", unit="probe") if progress else None
    for block, expert in places:
        lost[block].append(compare(whole, without(block, expert)[1]).difference)
        if bar is not None:
            bar.update()
    return TaskDamage(
        task=task.name,
        metric=task.spec.metric,
        value=whole.primary,
        lost=tuple(map(tuple, lost)),
        shares=tuple(tuple(table.gates[:, b, :size].mean(axis=0).tolist()) for b, size in enumerate(sizes)),
        layer=probe.layer,
        flags=tuple(dict.fromkeys((*probe.flags, *whole.flags))),
    )


@dataclass(frozen=True, eq=False)
class _Fitted:
    """A probe that is fitted: ``read`` takes features of the test images, ``rows``, and a folder for masks."""

    rows: tuple[Row, ...]
    layer: str
    flags: tuple[str, ...]
    read: Callable[[FeatureTable, Path], Predictions]


def _linear(task: Task, table: FeatureTable) -> _Fitted:
    best = best_linear(task, layers_of(table, task))

    def read(made: FeatureTable, scratch: Path) -> Predictions:
        seen = made.cls if best.layer == "cls" else made.mean
        assert seen is not None
        return best.splits.predictions(best.linear.probability(seen), "probe", None)

    return _Fitted(best.splits.test.rows, best.layer, best.flags, read)


def _dense(task: Task, table: FeatureTable) -> _Fitted:
    head = fit_dense(task, table)
    return _Fitted(head.test, TOKENS, (), lambda made, scratch: head.predictions(made, scratch / "masks", "probe"))
