"""The laptop preset's run: where it spends its time (part of `bench.step`), and its speed on images of users' own size
(part of `bench.feed`).
"""

import io
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, redirect_stdout
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from torch import Tensor

from bench.command import Goal, Line, Options, judged, table_row
from bench.timing import machine, summary
from dexcore.data.store import write_store
from dexcore.data.synthetic import SyntheticMVU
from dexcore.engine.stop import StopRequest
from dexcore.models.precision import compute_dtype, uses_bf16
from dexcore.nn import fast_layers
from dexcore.train.config import PRESETS, PretrainConfig
from dexcore.train.finish import finish
from dexcore.train.loop import Pretraining
from dexcore.train.run.folder import open_run_folder

PARTS = ("data", "forward", "backward", "clip and optimizer", "GEMA")

# Images of 512 pixels, and the speed on them as a share of that on the sample images: in the first epoch, in which all
# are decoded, and afterwards.
STORE_IMAGES, STORE_SIZE = 1500, 512
STORE_GOALS = {"first epoch": 0.5, "later epochs": 0.8}

Batch = dict[str, Tensor]


class PartsOfStep:
    """Notes when a training's step comes from one part to the next, by hooks on model, gradients and optimizer."""

    def __init__(self, training: Pretraining) -> None:
        self.training = training
        self._at: dict[str, float] = {}
        training.model.register_forward_hook(lambda *arguments: self._note("forward"))
        for parameter in training.parameters:  # the last of them is the backward's end
            parameter.register_post_accumulate_grad_hook(lambda parameter: self._note("backward"))
        training.optimizer.register_step_post_hook(lambda *arguments: self._note("clip and optimizer"))

    def _note(self, part: str) -> None:
        self._at[part] = time.perf_counter()

    def take(self, batches: Iterable[Batch]) -> list[dict[str, float]]:
        """A step for each of the batches; each one's seconds by part (`PARTS`)."""
        training, taken = self.training, []
        with fast_layers(training.model, compute_dtype(training.device, training.config.run.precision)):
            began = time.perf_counter()
            for batch in batches:
                self._note("data")
                training.step(batch, training.schedule.at(training.step_done))
                self._note("GEMA")
                ends = [began, *(self._at[part] for part in PARTS)]
                taken.append({part: end - start for part, (start, end) in zip(PARTS, pairwise(ends), strict=True)})
                began = time.perf_counter()
        return taken


def measure_preset(options: Options) -> list[Line]:
    """Where the laptop preset's run, on its own images, spends its time: the steps by part, and what follows them."""
    preset = PRESETS["laptop"]
    config = replace(preset, run=replace(preset.run, device=str(options.device)))
    with tempfile.TemporaryDirectory() as folder:
        lines = measure_parts(Pretraining(config, Path(folder)), options)
        after = seconds_after_steps(replace(config, out=f"{folder}/run"))
    whole = lines[-1]
    steps = whole["median"] * whole["steps"]
    print(f"evaluation and report {after:.0f} s, after {steps:.0f} s of steps: {steps + after:.0f} s a run", flush=True)
    whole["seconds_after_steps"] = after
    return lines


def measure_store(options: Options) -> list[Line]:
    """The laptop preset's images per second on a store, beside those on its own sample images, which take turns."""
    preset = PRESETS["laptop"]
    config = replace(preset, run=replace(preset.run, device=str(options.device)))
    images, size = (40, 32) if options.quick else (STORE_IMAGES, STORE_SIZE)
    with tempfile.TemporaryDirectory() as folder:
        source = SyntheticMVU(size=size)
        write_store(map(source.record, range(images)), f"{folder}/store", name="bench", max_side=size)
        own = replace(config, data=replace(config.data, store=f"{folder}/store"))
        seconds = turns_of_epochs(Pretraining(config, Path(folder)), Pretraining(own, Path(folder)), options)
    print(f"laptop preset on {images} images of {size} x {size}, no workers")
    print(table_row("", "images/s", "samples", "x samples"))
    lines = []
    for epoch, (on_samples, on_store) in seconds.items():
        ratio = on_samples / on_store
        print(table_row(epoch, f"{1 / on_store:.0f}", f"{1 / on_samples:.0f}", f"{ratio:.2f}"), flush=True)
        line: Line = {"bench": "feed", **machine(options.device), "kind": "laptop preset on a store"}
        line |= {"contender": epoch, "images": images, "size": size}
        line |= {"images_per_second": 1 / on_store, "speedup": ratio}
        if not options.quick:
            goal = Goal("times the images per second on the samples", ratio, STORE_GOALS[epoch])
            line |= judged(goal)
        lines.append(line)
    return lines


def turns_of_epochs(samples: Pretraining, store: Pretraining, options: Options) -> dict[str, tuple[float, ...]]:
    """Seconds an image, on the samples and on the store, by the names in ``STORE_GOALS``.

    Of the epochs between the first and the last two nothing is taken: some images are decoded in them, others not.
    """
    steps = 2 if options.quick else samples.order.epoch_size // samples.config.data.batch_size
    each = [(training, iter(training.batches(workers=0))) for training in (samples, store)]
    epochs: list[tuple[float, ...]] = []
    with ExitStack() as stack:
        for training, _ in each:
            training.model.train()
            dtype = compute_dtype(training.device, training.config.run.precision)
            stack.enter_context(fast_layers(training.model, dtype))
        _step(*each[0])  # warms up; the store's first step is cold, as its first epoch is
        for _ in range(4):
            taken = [[_step(*one) for one in each] for _ in range(steps)]
            epochs.append(tuple(sum(column) / len(column) for column in zip(*taken, strict=True)))
    later = tuple(sum(column) / 2 for column in zip(*epochs[2:], strict=True))
    return {"first epoch": epochs[0], "later epochs": later}


def _step(training: Pretraining, batches: Iterator[Batch]) -> float:
    """Seconds an image, its share of the batch's way from the store included."""
    began = time.perf_counter()
    training.step(next(batches), training.schedule.at(training.step_done))
    return (time.perf_counter() - began) / training.config.data.batch_size


def seconds_after_steps(config: PretrainConfig) -> float:
    """What a run takes after its last step, which its length hardly changes: it has two steps here.

    ``config.data.epoch_size`` must be set.
    """
    two = 2 * config.data.batch_size / config.data.epoch_size
    optimizer = replace(config.optimizer, warmup_epochs=0.0)
    config = replace(config, run=replace(config.run, epochs=two), optimizer=optimizer)
    with open_run_folder(config) as folder, StopRequest() as stop, redirect_stdout(io.StringIO()):
        training = Pretraining(config, folder)
        training.train(stop)
        began = time.perf_counter()
        finish(training, training.model)
        return time.perf_counter() - began


def measure_parts(training: Pretraining, options: Options) -> list[Line]:
    """A line a part, and one of the whole step.

    The sum of the losses counts to the backward, and what ranks agree on (the transfer to the host) to the optimizer.
    """
    config, kind = training.config, "laptop preset"
    training.model.train()
    batches = _for_seconds(training.batches(workers=0), options.seconds)
    taken = PartsOfStep(training).take(batches)[2:]
    columns = {part: [step[part] for step in taken] for part in PARTS}
    columns["whole step"] = [sum(step.values()) for step in taken]
    times = {part: summary(seconds) for part, seconds in columns.items()}
    whole, steps = times["whole step"].median, training.schedule.total_steps
    dtype = "bfloat16" if uses_bf16(training.device, config.run.precision) else "float32"

    print(f"{kind}, {config.data.batch_size} images a step, {dtype}; a run has {steps} steps")
    print(table_row("", "ms", "p20", "p80", "share", "s a run"))
    lines = []
    for part, time_of in times.items():
        share = time_of.median / whole
        cells = [f"{seconds * 1e3:.1f}" for seconds in vars(time_of).values()]
        print(table_row(part, *cells, f"{share:.0%}", f"{time_of.median * steps:.0f}"), flush=True)
        line: Line = {"bench": "step", **machine(training.device), "kind": kind, "contender": part, "dtype": dtype}
        line |= {"images": config.data.batch_size, "tokens": training.model.num_visible + 1}
        line |= {"width": config.model.dim, "layers": config.model.depth, "decoder_layers": config.model.decoder_depth}
        lines.append(line | {**vars(time_of), "share": share, "steps": steps})
    return lines


def _for_seconds(batches: Iterable[Batch], seconds: float) -> Iterator[Batch]:
    """As many as about so many seconds take, at least 9."""
    began = time.perf_counter()
    for number, batch in enumerate(batches, start=1):
        yield batch
        if number >= 9 and time.perf_counter() - began > seconds:
            return
