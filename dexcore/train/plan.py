"""What a run on many GPUs would take: memory, time and messages of a step, before one is rented.

Counted: parameters, FLOPs, what a step keeps for its backward (`dexcore.train.counted`), bytes and numbers of
collectives. Predicted from them and a few numbers of a card and its network: times. Nothing here was measured on such
a machine.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from dexcore.amounts import duration
from dexcore.engine.config import check_field
from dexcore.train.config import PRESETS, Checkpointing, ModelConfig
from dexcore.train.counted import Counted, count

Kind = Literal["ddp", "fsdp", "hsdp"]
KINDS: tuple[Kind, ...] = ("ddp", "fsdp", "hsdp")
GIB = 2**30
MVU_IMAGES = 4_970_000
EFFICIENCY = (
    0.4  # of the peak, in the products of matrices: assumed, within what ViTs of these widths are seen to reach
)
# Images that a core prepares a second, colour photographs of 640 x 480 for 256 pixels: the slowest line of
# bench/results/feed.jsonl.
IMAGES_A_CORE = 528
_CONTEXT = 1.5 * GIB  # CUDA's and NCCL's own, and the allocator's gaps
_WITHIN, _HOP = 10e-6, 8e-6  # seconds: until a collective begins, and from a machine to the next one of a ring


@dataclass(frozen=True)
class GPU:
    """A card, by its maker's data sheet, and its share of the network in machines that are sold with it.

    Attributes:
        memory: bytes.
        flops: of bf16 matrix products with float32 sums a second, dense.
        bandwidth: bytes a second of its memory.
        link: bytes a second to another card of the machine, one way.
        network: bytes a second to other machines, one way.
    """

    name: str
    memory: float
    flops: float
    bandwidth: float
    link: float
    network: float


GPUS = {
    "a100": GPU("A100 SXM 80 GB", 80e9, 312e12, 2.04e12, 300e9, 25e9),
    "h100": GPU("H100 SXM 80 GB", 80e9, 989e12, 3.35e12, 450e9, 50e9),
    "h200": GPU("H200 SXM 141 GB", 141e9, 989e12, 4.8e12, 450e9, 50e9),
    "b200": GPU("B200 SXM 180 GB", 180e9, 2250e12, 8e12, 900e9, 50e9),
}

_PAPER = PRESETS["paper"].model
MODELS: dict[str, ModelConfig] = {
    "base": _PAPER,
    "large": replace(_PAPER, dim=1024, depth=24, heads=16),
    "huge": replace(_PAPER, dim=1280, depth=32, heads=16),
}


@dataclass(frozen=True)
class Machines:
    """Where a run would go.

    Attributes:
        gpus: in all.
        gpu: which.
        per_node: GPUs of a machine.
        efficiency: share of the peak that the products of matrices reach.
    """

    gpus: int
    gpu: GPU
    per_node: int = 8
    efficiency: float = EFFICIENCY

    def __post_init__(self) -> None:
        check_field(1 <= self.gpus <= 2**17, "--gpus", "1 to 131,072", self.gpus)
        check_field(1 <= self.per_node <= 1024, "--gpus-per-node", "1 to 1,024", self.per_node)
        whole = self.gpus <= self.per_node or self.gpus % self.per_node == 0
        check_field(whole, "--gpus", f"a multiple of the {self.per_node} of a machine", self.gpus)
        check_field(0 < self.efficiency <= 1, "--efficiency", "above 0, at most 1", self.efficiency)

    @property
    def of_node(self) -> int:
        return min(self.gpus, self.per_node)


class Messages(NamedTuple):
    """Collectives of a step beside the two small all-reduces: numbers, and bytes that a process sends.

    Attributes:
        gathers: of blocks, forward and backward.
        scatters: of gradients.
        reduces: of whole gradients (ddp, in buckets of 25 MiB), or of shards between machines (hsdp).
        gathered, scattered, reduced: bytes.
    """

    gathers: int
    scatters: int
    reduces: int
    gathered: float
    scattered: float
    reduced: float


@dataclass(frozen=True)
class Plan:
    """A step of a model on machines, by kind.

    Attributes:
        kind: of parallelism.
        images: of a step, a process.
        memory: bytes of a process at the peak, on its card.
        host: bytes of its shards in host memory.
        fits: whether the card has them.
        messages: of a step.
        computing: seconds in the model, forward and backward.
        exposed: seconds in which it waits for messages.
        update: seconds of optimizer and directors.
    """

    kind: Kind
    images: int
    memory: float
    host: float
    fits: bool
    messages: Messages
    computing: float
    exposed: float
    update: float

    @property
    def step(self) -> float:
        """Seconds."""
        return self.computing + self.exposed + self.update

    @property
    def share(self) -> float:
        """Of a step in the model."""
        return self.computing / self.step


def plan(
    counted: Counted,
    machines: Machines,
    kind: Kind,
    batch_size: int,
    checkpointing: Checkpointing = "none",
    offload: bool = False,
) -> Plan:
    """Predict a step.

    Args:
        counted: the model.
        machines: where it would run.
        kind: of parallelism; hsdp shards within a machine.
        batch_size: images of a step, over all processes.
        checkpointing: what blocks run again in the backward.
        offload: whether fsdp and hsdp hold their shards in host memory; what its way takes is not in the times.

    Raises:
        ConfigError: the batch cannot be shared out.
    """
    gpu, n = machines.gpu, machines.gpus
    check_field(batch_size >= 1, "--batch-size", "at least 1", batch_size)
    check_field(batch_size % n == 0, "--batch-size", f"a multiple of the {n} GPUs", batch_size)
    images = batch_size // n
    shards = {"ddp": 1, "fsdp": n, "hsdp": machines.of_node}[kind]
    sent = messages(counted, n, shards)
    forward = counted.flops / 3 * images / (gpu.flops * machines.efficiency)
    backward = (3 if checkpointing == "block" else 2) * forward  # selective: no product of matrices is run again
    nodes = n // machines.of_node
    # Rings over whole machines go through all of their network cards at once; hsdp's between machines are one a card.
    ring = gpu.link if nodes == 1 else min(gpu.link, machines.of_node * gpu.network)
    speed, wait = (ring, _WITHIN + _HOP * (nodes - 1)) if shards in (1, n) else (gpu.link, _WITHIN)
    of_gathers = sent.gathered / speed + wait * sent.gathers
    of_scatters = sent.scattered / speed + wait * sent.scatters
    between = gpu.network if 1 < shards < n else ring
    of_reduces = sent.reduced / between + (_WITHIN + 2 * _HOP * (nodes - 1)) * sent.reduces
    # What a forward gathers is half; the backward gathers the other half, sums, and reduces over another network.
    exposed = max(0.0, of_gathers / 2 - forward)
    exposed += max(0.0, of_gathers / 2 + of_scatters - backward, of_reduces - backward)
    exposed += 2 * (_WITHIN + 2 * _HOP * (nodes - 1))  # the two small ones, which nothing hides
    exposed += copied_of(counted, shards) / gpu.bandwidth
    update = (28 * counted.trained + 4 * counted.experts) / shards / gpu.bandwidth
    states = states_of(counted, shards)
    host = states if offload and shards > 1 else 0.0
    memory = states - host + memory_of_pass(counted, shards, images, checkpointing)
    return Plan(kind, images, memory, host, memory <= gpu.memory, sent, forward + backward, exposed, update)


def messages(counted: Counted, processes: int, shards: int) -> Messages:
    """The collectives of a step: rings, in which a process sends (n - 1) / n of what is gathered or scattered."""
    if processes == 1:
        return Messages(0, 0, 0, 0.0, 0.0, 0.0)
    bucket = 25 * 2**20
    if shards == 1:
        gradients = 4 * counted.trained
        twice = 2 * (processes - 1) / processes
        return Messages(0, 0, math.ceil(gradients / bucket), 0.0, 0.0, twice * gradients)
    part, replicas = (shards - 1) / shards, processes // shards
    units = len(counted.units)
    # The root's parameters stay gathered between forward and backward.
    gathered = 4 * (2 * sum(counted.units[:-1]) + counted.units[-1])
    reduced = 2 * (replicas - 1) / replicas * 4 * counted.trained / shards
    return Messages(
        2 * units - 1, units, units if replicas > 1 else 0, part * gathered, part * 4 * counted.trained, reduced
    )


def copied_of(counted: Counted, shards: int) -> float:
    """Bytes that a step reads and writes once more since experts are not cut on their first axis: FSDP2 puts what it
    gathers in order by a copy, in the forward and in the backward, and so the gradients before they are scattered."""
    return 3 * 2 * 4 * counted.experts if shards > 1 else 0.0


def states_of(counted: Counted, shards: int) -> float:
    """Bytes of weights, gradients and AdamW's two moments that a process holds, all float32."""
    return (4 * counted.parameters + 12 * counted.trained) / shards


def memory_of_pass(counted: Counted, shards: int, images: int, checkpointing: Checkpointing) -> float:
    """Bytes of a process at the peak of a step, beside those of `states_of`."""
    kept = counted.kept[checkpointing] * images + counted.filled[checkpointing]
    block, rest = max(counted.units[:-1]), counted.units[-1]
    copies = copies_of_weights(counted, shards, checkpointing)
    gathered = 0.0
    if shards > 1:  # a block that runs, the next one and its copy to be cut, the rest; gradients, whole and to be sent
        gathered = 4 * (3 * block + rest) + 8 * block
    return copies + gathered + kept + _CONTEXT


def copies_of_weights(counted: Counted, shards: int, checkpointing: Checkpointing) -> int:
    """Bytes of weights in bf16 while a block runs: autocast's casts, which stay for the backward of what is not run
    again, and DEX layers' copies, which stay from step to step where nothing shards the model."""
    copied = counted.copied_units
    cast = [unit - part for unit, part in zip(counted.units, copied, strict=True)]
    casts = sum(cast) if checkpointing == "none" else max(cast[:-1])
    return 2 * (casts + (sum(copied) if shards == 1 else max(copied)))


def fitting_batch(batch_size: int, gpus: int) -> int:
    """The batch, or the next larger one that so many GPUs can share out."""
    return math.ceil(batch_size / gpus) * gpus


def cores_of_node(plan: Plan, machines: Machines) -> int:
    """Cores that a machine's share of the images takes to be prepared."""
    return math.ceil(plan.images * machines.of_node / plan.step / IMAGES_A_CORE)


def told(
    counted: Counted, machines: Machines, plans: list[Plan], batch_size: int, steps: float, price: float | None
) -> list[str]:
    """Lines that say what a run would take."""
    gpu = machines.gpu
    lines = [
        f"{counted.parameters / 1e6:,.0f} M parameters, {counted.trained / 1e6:,.0f} M of them trained; "
        f"{counted.flops / 1e9:,.1f} GFLOPs an image in a training step",
        f"{machines.gpus} x {gpu.name}, {machines.of_node} a machine; a step of {batch_size:,} images, "
        f"{batch_size // machines.gpus} a GPU; {steps:,.0f} steps",
        "",
        "kind    memory of a GPU      step   images/s   in the model    the run",
    ]
    for one in plans:
        seconds = steps * one.step
        fits = "" if one.fits else "  does not fit"
        paid = f"   {price * machines.gpus * seconds / 3600:,.0f}" if price is not None and one.fits else ""
        lines.append(
            f"{one.kind:5} {one.memory / GIB:6,.1f} of {gpu.memory / GIB:4,.0f} GiB {one.step * 1e3:7,.1f} ms "
            f"{batch_size / one.step:10,.0f} {one.share:13.0%} {duration(seconds):>12}{paid}{fits}"
        )
    best = min((one for one in plans if one.fits), key=lambda one: one.step, default=None)
    lines.append("")
    offloaded = [f"{one.kind} {one.host / GIB:,.1f} GiB" for one in plans if one.host]
    if offloaded:
        lines.append(
            f"In host memory, a process: {', '.join(offloaded)}. The way there and the update on the CPU are not in "
            "the times."
        )
    if best is None:
        lines.append("No kind fits: more GPUs, --grad-checkpointing, or a smaller batch.")
        return lines
    cores = cores_of_node(best, machines)
    lines += [
        f"Images: {batch_size / best.step:,.0f} a second, {cores} cores of each machine (a core prepares "
        f"{IMAGES_A_CORE}).",
        f"Counted: parameters, FLOPs, messages. Predicted: times, at {machines.efficiency:.0%} of the card's peak, and "
        "memory. Not measured on such machines.",
    ]
    return lines


def table(gpu: str = "h100") -> str:
    """The table of docs/scaling.md: the paper's run at its own batch and at a larger one, by model and GPUs."""
    rows = ["| model | GPUs | images a step | ddp | fsdp | hsdp |", "|---|---|---|---|---|---|"]
    for name, config in MODELS.items():
        counted = count(config)
        for gpus in (2, 8, 64, 512):
            for batch in dict.fromkeys((fitting_batch(PRESETS["paper"].data.batch_size, gpus), 4096)):
                cells = []
                for kind in KINDS:
                    if kind == "hsdp" and gpus <= 8:
                        cells.append("")
                        continue
                    one = plan(counted, Machines(gpus, GPUS[gpu]), kind, batch, checkpointing="block")
                    days = duration(200 * MVU_IMAGES / batch * one.step)
                    fits = f"{days}, {one.share:.0%}" if one.fits else "-"
                    cells.append(f"{one.memory / GIB:.0f} GiB, {one.step * 1e3:.0f} ms, {fits}")
                rows.append(f"| {name} | {gpus} | {batch:,} | {' | '.join(cells)} |")
    return "\n".join(rows)
