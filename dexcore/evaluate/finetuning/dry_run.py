"""A fine-tuning tried out before it is begun: its memory, its speed, and how long it will take."""

import time
from statistics import median

import torch

from dexcore.amounts import duration
from dexcore.engine.device import device_name
from dexcore.engine.memory import peak_memory
from dexcore.evaluate.finetuning.data import sound
from dexcore.evaluate.finetuning.training import Finetuning
from dexcore.models.precision import compute_dtype, uses_bf16
from dexcore.nn import fast_layers

_MIB = 2**20
_WARM_UP, _TIMED = 2, 5  # steps


def rehearse(training: Finetuning) -> list[str]:
    """Do some steps, on all ranks together, and describe the run in lines. Writes nothing."""
    config, length, workers = training.config, training.length, training.workers
    training.model.train()
    steps = min(_WARM_UP + _TIMED, length.total_steps)
    times: list[tuple[float, float]] = []
    with (
        torch.random.fork_rng(devices=[]),
        fast_layers(training.model, compute_dtype(training.device, config.precision)),
    ):
        batches = sound(training.batches(workers=0))
        for _ in range(steps):
            began = time.perf_counter()
            batch = next(batches)
            loaded = time.perf_counter()
            training.step(batch)  # ends with a transfer from the device
            times.append((loaded - began, time.perf_counter() - loaded))
    prepare, step = map(median, zip(*times[-_TIMED:], strict=True))
    seconds = max(prepare / workers, step) if workers else prepare + step
    trained = sum(parameter.numel() for parameter in training.parameters)
    fixed = sum(parameter.numel() for parameter in training.model.parameters()) - trained
    counts = ", ".join(f"{len(training.task.split(split))} {split}" for split in ("train", "val", "test"))
    precision = "bf16" if uses_bf16(training.device, config.precision) else "fp32"
    every = f" for each of {config.seeds} seeds" if config.seeds > 1 else ""
    return [
        "dry run: nothing was written",
        f"  device     {device_name(training.device)}, {precision}",
        f"  model      {training.name}: {trained:,} trained parameters, {fixed:,} that stay",
        f"  task       {training.task.name}, {training.task.kind}: {counts} images",
        f"  length     {length.total_steps:,} steps of {config.batch_size} images, "
        f"{length.total_steps * config.batch_size / length.images:.1f} epochs; {length.warmup_steps} of warm-up",
        f"  memory     {peak_memory(training.device) / _MIB:,.0f} MiB at the peak, a process",
        f"  speed      {step:.3f} s a step, {prepare:.3f} s to prepare a process's batch ({workers} workers): "
        f"{config.batch_size / seconds:.0f} images/s",
        f"  to finish  {duration(seconds * length.total_steps)}{every}, and the predictions",
    ]
