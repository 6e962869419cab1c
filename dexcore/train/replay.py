"""Steps that were skipped, done again: which image makes a number that is not finite, and where it shows."""

import json
from pathlib import Path
from typing import Any

import torch

from dexcore.engine.config import ConfigError
from dexcore.engine.gradient_norm import gradients_of
from dexcore.evaluate.reconstruct import names_of
from dexcore.nn import discard_load
from dexcore.train.loop import Pretraining

_MOST = 10  # steps, the last ones; images and parameters that are named


def replay(run: Pretraining, file: Path) -> list[str]:
    """Do the steps of a skipped.jsonl again, without a change of the weights, and say in lines what is not finite.

    Images, crops, masks and noise are those of the step; the weights are those that ``run`` has, of its newest
    checkpoint: what came between the two is in them or missing.

    Args:
        run: resumed, of a process alone.
        file: its skipped.jsonl, or a part of it; of more than ten steps the last ten are done.

    Raises:
        ConfigError: the file cannot be read, or is of another run.
    """
    entries = _entries(file)
    with_weights = f"with the weights after step {run.step_done}"
    lines = [f"replay of {len(entries)} skipped steps, {with_weights}; images, crops, masks and noise are the step's"]
    run.model.train()
    for entry in entries:
        lines += _replayed(run, entry, file)
    return lines


def _entries(file: Path) -> list[dict[str, Any]]:
    try:
        entries = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        ordered = sorted(entries, key=lambda entry: int(entry["step"]))
        complete = all(isinstance(entry["sample_ids"], list) for entry in ordered)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"replay: {file} cannot be read as a run's skipped.jsonl: {error}") from error
    if not ordered or not complete:
        raise ConfigError(f"replay: {file} holds no skipped step")
    return ordered[-_MOST:]


def _replayed(run: Pretraining, entry: dict[str, Any], file: Path) -> list[str]:
    step = int(entry["step"])
    if not 0 <= step < run.schedule.total_steps:
        raise ConfigError(f"replay: {file} holds step {step}, the run has {run.schedule.total_steps}")
    batch = next(iter(run.batches(0, step)))
    ids = batch["sample_id"].tolist()
    if ids != entry["sample_ids"]:
        raise ConfigError(f"replay: {file} is of another run: step {step} shows other images here")
    values = run.schedule.at(step)
    losses = run.gradients(batch, values)
    parameters = [(name, p) for name, p in run.model.named_parameters() if p.grad is not None]
    wrong = [name for name, p in parameters if not all(g.isfinite().all() for g in gradients_of([p]))]
    alone = [place for place in range(len(ids)) if not _is_finite(run, batch, place, values)]
    run.optimizer.zero_grad(set_to_none=True)
    if run.layers:
        discard_load(run.model)
    loss = "finite" if losses.isfinite().all() else "not finite"
    lines = [f"step {step}: the loss is {loss}, the gradient not in {len(wrong)} of {len(parameters)} parameters"]
    lines += [f"  {name}" for name in wrong[:_MOST]]
    if alone:
        lines.append(f"  not finite alone, {len(alone)} of {len(ids)} images:")
        lines += [f"  {_told(run, ids[place])}" for place in alone[:_MOST]]
    else:
        lines.append("  no image alone makes a number that is not finite")
    return lines


def _is_finite(run: Pretraining, batch: dict[str, Any], place: int, values: Any) -> bool:
    """Whether an image alone has a finite loss and gradient."""
    one = {name: column[place : place + 1] for name, column in batch.items() if torch.is_tensor(column)}
    losses = run.gradients({**batch, **one}, values)
    return bool(losses.isfinite().all()) and all(g.isfinite().all() for g in gradients_of(run.parameters))


def _told(run: Pretraining, image: int) -> str:
    _, (modality,) = names_of(run.images, torch.tensor([image]).numpy())
    paths = getattr(run.images, "path", None)
    return f"  image {image}, {modality}" + ("" if paths is None else f": {paths[image]}")
