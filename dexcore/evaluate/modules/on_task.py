"""What a fixed probe of a task loses without an expert."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from dexcore.data.assemble.progress import Progress
from dexcore.evaluate.embedding import features
from dexcore.evaluate.embedding.images import TaskImages
from dexcore.evaluate.probes.linear import best_linear
from dexcore.evaluate.probes.run import layers_of
from dexcore.evaluate.probes.splits import Splits
from dexcore.evaluate.scores import Scores, compare, score
from dexcore.evaluate.tasks import Task, TaskError
from dexcore.extras import require
from dexcore.measures.bootstrap import Estimate
from dexcore.nn import rule_of, set_expert_mask
from dexcore.nn.expert_mask import REROUTE
from dexcore.nn.mlp import DEXMlp, dex_layers


@dataclass(frozen=True)
class TaskDamage:
    """A linear probe, fitted once on whole features, read on features without each expert.

    Attributes:
        task, metric: of the probe.
        value: of the whole model, on test.
        lost: a block each, by expert: the whole model's number minus that without the expert, on the same cases.
        shares: a block each, by expert: P(expert | test images).
        layer: the features that the probe takes, as chosen on val: "cls" or "mean".
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
        TaskError: the task has masks, no image of train or test, or an unsound label.
        ValueError: no model has experts, or one has none for a modality of the task.
        MissingExtraError: scikit-learn is not installed.
    """
    if task.spec.is_segmentation:
        raise TaskError(
            f"task {task.name}: is of kind {task.kind}, expected a task of classes: what a probe loses without an "
            "expert is measured of a linear probe alone"
        )
    require("sklearn.linear_model", "eval")
    Splits.of(task)
    routed = {name: one for name, one in encoders.items() if any(isinstance(part, DEXMlp) for part in one.modules())}
    if not routed:
        raise ValueError(f"task {task.name}: {', '.join(encoders)} has no experts that its probe could do without")
    for name, encoder in routed.items():
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
        task: of classification.
        instead: what stands in for the expert (`dexcore.nn.set_expert_mask`).
        cache: of features; masked ones are kept apart from others.
        progress: show it on stderr.

    Raises:
        TaskError, FeaturesError: task and features cannot be probed.
        ValueError: no DEX layer, or no other expert to reroute to.
    """
    sizes = [layer.num_experts for layer in dex_layers(encoder)]
    table = features(encoder, task, mode="experts", cache=cache)
    probe = best_linear(task, layers_of(table, task))
    rows = probe.splits.test.rows
    images = TaskImages(task, rows)

    def scored(without: tuple[int, int] | None) -> tuple[np.ndarray, Scores]:
        keep = [np.ones(size, bool) for size in sizes]
        if without is not None:
            keep[without[0]][without[1]] = False
        with torch.no_grad(), set_expert_mask(encoder, keep, instead):
            made = features(encoder, images, mode="experts", cache=cache).of([row.image for row in rows])
        seen = made.cls if probe.layer == "cls" else made.mean
        assert seen is not None
        assert made.gates is not None
        predictions = probe.splits.predictions(probe.linear.probability(seen), "probe", None)
        return made.gates, score(predictions, task)

    gates, whole = scored(None)
    places = [(block, expert) for block, size in enumerate(sizes) for expert in range(size)]
    lost: list[list[Estimate]] = [[] for _ in sizes]
    bar = Progress(len(places), "knocking out experts of", unit="probe") if progress else None
    for place in places:
        found = compare(whole, scored(place)[1])
        lost[place[0]].append(found.difference)
        if bar is not None:
            bar.update()
    return TaskDamage(
        task=task.name,
        metric=task.spec.metric,
        value=whole.primary,
        lost=tuple(map(tuple, lost)),
        shares=tuple(tuple(gates[:, b, :size].mean(axis=0).tolist()) for b, size in enumerate(sizes)),
        layer=probe.layer,
        flags=tuple(dict.fromkeys((*probe.flags, *whole.flags))),
    )
