"""A run tried out before it is begun: its memory, its speed, and how long it will take."""

import time
from statistics import median, quantiles

from dexcore.amounts import duration
from dexcore.engine.device import device_name
from dexcore.engine.memory import peak_memory
from dexcore.models.precision import uses_bf16
from dexcore.report.comparison import KINDS
from dexcore.report.objectives import OBJECTIVES
from dexcore.train.compiled import training_layers
from dexcore.train.loop import Pretraining
from dexcore.train.run.comparison import cost
from dexcore.train.teacher import shape_of

_MIB = 2**20
_WARM_UP, _TIMED = 3, 7  # steps: the first ones take several times as long as those that follow


def rehearse(run: Pretraining) -> list[str]:
    """Do some steps to warm up and some with a clock, on all ranks together, and describe the run in lines.

    Changes the model in memory and writes nothing.
    """
    config, ranks, schedule = run.config, run.ranks, run.schedule
    workers = run.workers
    run.model.train()
    with run.memory, training_layers(config.run, run.model, run.device, ranks.say) as measuring:
        with measuring():
            run.warm_up()
        batches = iter(run.batches(workers=0))
        times: list[tuple[float, float]] = []
        steps = min(_WARM_UP + _TIMED, schedule.total_steps)
        ranks.say(f"dry run: {steps} steps, the first of which takes longest; an estimate follows each")
        for _ in range(steps):
            began = time.perf_counter()
            batch = next(batches)
            loaded = time.perf_counter()
            run.step(batch, schedule.at(run.step_done))  # ends with a transfer from the device
            times.append((loaded - began, time.perf_counter() - loaded))
            ranks.say(_estimate(times, steps, workers, schedule.total_steps))
    prepare, step = map(median, zip(*times[-_TIMED:], strict=True))
    seconds = _seconds(prepare, step, workers)
    trained = sum(parameter.numel() for parameter in run.parameters)
    fixed = sum(parameter.numel() for parameter in run.model.parameters()) - trained
    costs = cost(config.model, shape_of(run.teacher))
    precision = "bf16" if uses_bf16(run.device, config.run.precision) else "fp32"
    return [
        "dry run: no run folder was written",
        f"  device     {device_name(run.device)}, {precision}",
        f"  model      {KINDS[config.model.mlp]}",
        f"  objective  {OBJECTIVES[config.objective.kind].what}",
        f"             {trained:,} trained parameters, {fixed:,} of directors and positions",
        f"  cost       {costs.inference_flops / 1e9:.4g} GFLOPs an image at inference, "
        f"{costs.training_flops / 1e9:.4g} in a training step (matrix products)",
        f"  images     {len(run.rows):,} for training; {config.run.epochs:g} epochs of {run.order.epoch_size:,} are "
        f"{schedule.total_steps:,} steps",
        f"  batch      {config.data.batch_size} = {ranks.count} processes x {config.data.accumulate} parts x "
        f"{run.part_size} images",
        f"  memory     {peak_memory(run.device) / _MIB:,.0f} MiB at the peak, a process",
        f"  speed      {step:.3f} s a step, {prepare:.3f} s to prepare a process's batch ({workers} workers): "
        f"{config.data.batch_size / seconds:.0f} images/s",
        f"  to finish  {duration(seconds * schedule.total_steps)}, and the evaluation",
    ]


def _seconds(prepare: float, step: float, workers: int) -> float:
    """Of a whole step, of which workers prepare the images meanwhile."""
    return max(prepare / workers, step) if workers else prepare + step


def _estimate(times: list[tuple[float, float]], steps: int, workers: int, total_steps: int) -> str:
    """What the steps so far say, in a line: a guess after one, then the quartiles of those behind the warm-up.

    The first step takes longer than those that follow, up to three times or so: hence its spread.
    """
    seconds = [_seconds(*one, workers) for one in times]
    settled = seconds[_WARM_UP:] if len(seconds) > _WARM_UP else seconds[1:]
    if len(settled) > 1:
        low, _, high = quantiles(settled, n=4, method="inclusive")
    elif settled:
        low, high = min(settled[0], seconds[0]) / 1.5, max(settled[0], seconds[0])
    else:
        low, high = seconds[0] / 3, seconds[0] * 1.2
    return (
        f"  step {len(times)} of {steps}: {seconds[-1]:.3g} s; so far {low:.3g} to {high:.3g} s a step, "
        f"{duration(low * total_steps)} to {duration(high * total_steps)} to finish"
    )
