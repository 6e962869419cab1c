"""Predicted times of a layer's step on an H100, kernel by kernel, beside those of the first kernels; none is measured.

    python -m bench.predict                    # from bench/results/resources-VERSION.json of the running Triton
    python -m bench.predict --triton 3.6.0     # of another

The free places of the multiprocessors take a GEMM kernel's programs in their order (`queue`). A program's step along K
needs

    tensor cores    the tile's FLOPs, at the rate of the largest GEMM, 798 TFLOP/s
    shared memory   128 bytes a clock: wgmma reads the left tile once, the right one each 64 rows; copies write both
    cache           40 bytes a clock and multiprocessor: both operands' tiles, from the second level
    issue           the main loop's PTX instructions, one a clock from each of four schedulers

and a program once the instructions outside of its loop. One that has a multiprocessor to itself waits for the longest
of the first three and then for what is issued. Of several, one's epilogue runs beside another's loop: their needs add
up by the fourth powers, to little more than the longest. No kernel is faster than its bytes at 3.0 TB/s; one that is no
GEMM takes those and a launch. Clock, cache rate and the two ways to add are fitted to `FIRST`.
"""

import argparse
import heapq
import json
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import triton

from bench import matrix
from bench.command import table_row
from bench.contenders import REFERENCE, step_flops
from bench.kernel_work import Problem, Work, work
from bench.resources import BUILD, RESULTS, build
from dexcore.kernels import configs
from dexcore.kernels.configs import Gemm

Records = list[dict[str, Any]]

MULTIPROCESSORS, CLOCK = configs.MULTIPROCESSORS["sm_90"], 1.7e9
LARGEST_GEMM, HBM = 798e12, 3.0e12  # FLOP/s, bytes/s
_TENSOR = LARGEST_GEMM / MULTIPROCESSORS / CLOCK  # FLOPs a clock
_CACHE, _SHARED, _SCHEDULERS = 40, 128, 4  # bytes a clock; bytes a clock; instructions of a warp a clock
_REGISTERS, _SHARED_MEMORY, _RESERVED, _THREADS = 65536, 228 * 1024, 1024, 2048  # a multiprocessor's
_LAUNCH, _LAUNCH_BY_PYTORCH = 3e-6, 2.2e-6  # s, of a kernel in a graph that does nearly nothing
_POWER, _ISSUE_ALONE = 4, 0.95


class Rows(NamedTuple):
    """A GEMM over the rows of all experts: how many columns it makes, and what it sums over."""

    columns: str
    reduced: str


class Weights(NamedTuple):
    """A GEMM that makes a [rows, columns] gradient for every expert, summed over the expert's rows."""

    rows: str
    columns: str


# By the tiles' names in `LayerConfig`: what one launch makes. What is not here is no GEMM to this file.
SHAPES: dict[str, tuple[Rows, ...] | tuple[Weights, ...]] = {
    "up": (Rows("hidden", "width"),),
    "down": (Rows("width", "hidden"),),
    "dact": (Rows("hidden", "width"),),
    "dx": (Rows("width", "hidden"),),
    "wgrad": (Weights("hidden", "width"), Weights("width", "hidden")),
}
# With the directors' update, which is not in the sum. It can make the copies that a step casts otherwise.
AFTER_THE_STEP, CAST = ("expert_load", "group_ema", "group_ema copies"), "cast_all"


class Beside(NamedTuple):
    """What PyTorch launches in a step, and the bytes that it moves."""

    launches: int
    bytes: float = 0.0


BESIDE = {"by PyTorch: sum of losses, mean": Beside(2)}
# Launched on two streams at once (`dexcore.kernels.launch.forked`): what the first one does, and the second.
FORKED = ("expert_dx", "sum_slots"), ("expert_wgrad",)


class Before(NamedTuple):
    """A kernel of the first ones: microseconds, launches, and of a GEMM what its time was predicted from."""

    microseconds: float
    launches: int = 1
    shape: Rows | Weights | None = None
    tile: Gemm | None = None
    registers: int = 0
    shared: int = 0
    loop: int = 0
    outside: int = 0
    director: bool = False


SOURCE = "the first kernels, read with Triton 3.6"
_SQUARE, _BROAD = Gemm(128, 128, 64, 8, 3), Gemm(128, 256, 64, 8, 4)
# Predicted from their PTX and SASS by hand, before this file.
FIRST = {
    "expert_up": Before(405, 1, Rows("hidden", "width"), _SQUARE, 116, 98304, 97, 2023, director=True),
    "expert_down": Before(335, 1, Rows("width", "hidden"), _BROAD, 216, 196608, 119, 1784, director=True),
    "expert_dact": Before(480, 1, Rows("hidden", "width"), _SQUARE, 154, 98304, 106, 3100),
    "expert_dx": Before(250, 1, Rows("width", "hidden"), _BROAD, 208, 196608, 119, 1015),
    "expert_wgrad of W1": Before(285, 1, Weights("hidden", "width"), _BROAD, 199, 196608, 257, 1448),
    "expert_wgrad of W2": Before(275, 1, Weights("width", "hidden"), _BROAD, 202, 196608, 197, 1177),
    "mix_align_forward": Before(43),
    "align_backward": Before(24),
    "token_sums": Before(9),
    "sum_slots": Before(32),
    "route_forward": Before(4),
    "make_plan": Before(20, 2),
    "bias1_gradient": Before(3),
    "bias2_gradient": Before(5),
    "gate_gradient": Before(5),
    "route_backward": Before(13, 2),
    "by PyTorch: casts of weights, biases, x": Before(118, 8),
    "by PyTorch: x's gradient of the router": Before(62, 2),
    "by PyTorch: sum of losses, mean": Before(66, 30),  # and the bench's own, and ones
    "by PyTorch: assertions": Before(4, 2),
}
# The same kernel by Triton 3.8, which leaves room for two programs.
FIRST_DACT_BY_3_8 = FIRST["expert_dact"]._replace(microseconds=310, registers=128, loop=107, outside=3322)


class Prediction(NamedTuple):
    """Of a kernel.

    Attributes:
        seconds: predicted.
        bound: by what.
        ctas, programs, waves, efficiency: of a GEMM: programs on a multiprocessor at once and in all, how often all
            places are filled, and the share of the places' time that programs take.
        units: how long every program of a GEMM takes, in clocks and in their order.
    """

    seconds: float
    bound: str
    ctas: int = 0
    programs: int = 0
    waves: float = 0.0
    efficiency: float = 0.0
    units: tuple[float, ...] = ()


def queue(units: Iterable[float], slots: int) -> float:
    """When the last of the units ends, each of which, in their order, takes the first place to be free."""
    free = [0.0] * slots
    for unit in units:
        heapq.heappush(free, heapq.heappop(free) + unit)
    return max(free)


def programs_at_once(registers: int, warps: int, shared: int) -> int:
    """How many programs a multiprocessor runs at once."""
    threads = 32 * warps
    by_registers = _REGISTERS // (8 * math.ceil(registers / 8) * threads)
    return max(1, min(by_registers, _SHARED_MEMORY // (shared + _RESERVED), _THREADS // threads))


def program_clocks(
    tile: Gemm, steps: int, loop: int, outside: int, ctas: int, itemsize: int = 2
) -> tuple[float, dict[str, float]]:
    """How long a program takes among ``ctas`` on its multiprocessor, and what it would need of each resource alone.

    Args:
        tile: its output's, and the step along K.
        steps: of the main loop.
        loop, outside: instructions of a warp in a step, and before and after the loop.
        ctas: programs on the multiprocessor.
        itemsize: of an element of the operands.
    """
    m, n, k, warps = tile.block_m, tile.block_n, tile.block_k, tile.warps
    operands = (m + n) * k * itemsize
    needs = {
        "tensor cores": steps * 2 * m * n * k / _TENSOR,
        "shared memory": steps * (operands + (m + math.ceil(m / 64) * n) * k * itemsize) / _SHARED,
        "cache": steps * operands / _CACHE,
    }
    in_loop, around = (count * warps / _SCHEDULERS for count in (steps * loop, outside))
    needs["issue"] = in_loop + around
    if ctas == 1:
        others = max(needs[name] for name in needs if name != "issue")
        return others + _ISSUE_ALONE * in_loop + around, needs
    together = max(needs["tensor cores"], needs["shared memory"]), needs["cache"], needs["issue"]
    return ctas * sum(need**_POWER for need in together) ** (1 / _POWER), needs


def gemm(
    problem: Problem,
    shapes: tuple[Rows, ...] | tuple[Weights, ...],
    tile: Gemm,
    record: dict[str, Any],
    moved: int = 0,
    *,
    director: bool,
    padding: int = 1,
) -> Prediction:
    """A GEMM kernel.

    Args:
        problem: the layer's step.
        shapes: of what one launch makes.
        tile: that it has.
        record: its registers, shared memory, and instructions in and outside of the loop (`bench.compile_entry`).
        moved: bytes that it must move.
        director: whether the director's rows, one for every token, are among its own.
        padding: an expert's rows are padded to a multiple of it.
    """
    sizes = {"width": problem.shape.width, "hidden": problem.hidden}
    batch, tokens, _ = problem.shape
    ctas = programs_at_once(record["registers"], tile.warps, record["shared"])
    rows = [math.ceil(count * tokens / padding) * padding for count in problem.counts]

    def program(reduced: int) -> tuple[float, dict[str, float]]:
        steps = math.ceil(reduced / tile.block_k)
        return program_clocks(tile, steps, record["loop"], record["outside"], ctas, problem.dtype.itemsize)

    units: list[float] = []
    if isinstance(shapes[0], Rows):
        rows += [batch * tokens] if director else []
        (shape,) = shapes
        reduced = sizes[shape.reduced]
        columns = math.ceil(sizes[shape.columns] / tile.block_n)
        units = [program(reduced)[0]] * (columns * sum(math.ceil(some / tile.block_m) for some in rows))
    else:
        reduced = max(rows)
        tiles = sum(
            math.ceil(sizes[shape.rows] / tile.block_m) * math.ceil(sizes[shape.columns] / tile.block_n)
            for shape in shapes
            if isinstance(shape, Weights)
        )
        # The longest expert first, as the kernel takes them.
        for some in sorted(rows, reverse=True):
            units += [program(some)[0]] * tiles
    slots = ctas * MULTIPROCESSORS
    clocks = queue(units, slots)
    needs = program(reduced)[1]
    seconds, bound = clocks / CLOCK, max(needs, key=needs.__getitem__)
    if moved / HBM > seconds:
        seconds, bound = moved / HBM, "memory"
    efficiency = sum(units) / slots / clocks
    return Prediction(seconds, bound, ctas, len(units), len(units) / slots, efficiency, tuple(units))


def predict(
    problem: Problem, amounts: dict[str, Work], table: dict[str, Records]
) -> dict[str, tuple[Prediction, Records]]:
    """Every kernel whose bytes are given, by `bench.kernel_work`'s names, and its records."""
    found = {}
    entries = entries_of_the_step()
    for name, amount in amounts.items():
        field = name.removeprefix("expert_")
        entry = entries.get(name, "")
        records = table.get(entry, [])
        launches = max(1, len(records))
        main = next((record for record in records if record["dots"]), None)
        if field in SHAPES and main is not None:
            made = gemm(
                problem,
                SHAPES[field],
                getattr(problem.config, field),
                main,
                amount.bytes,
                director="director" in entry,
                padding=problem.config.up.block_m,
            )
            found[name] = made._replace(seconds=made.seconds + (launches - 1) * _LAUNCH), records
        else:
            streamed = amount.bytes / HBM
            bound = "memory" if streamed > launches * _LAUNCH else "launch"
            found[name] = Prediction(streamed + launches * _LAUNCH, bound), records
    return found


def saved_by_streams(lines: "dict[str, Now]") -> float:
    """Seconds less than the sum, as what is `FORKED` runs at once.

    The GEMMs' programs stand in one queue, one a multiprocessor, first those of the first stream, whose kernel is
    launched first. What follows that one runs beside the other's, at the bandwidth that they leave: never in less than
    the whole of its bytes and theirs takes. Were they taken the other way round it would follow them.
    """
    named = [lines[name] for part in FORKED for name in part if name in lines]
    gemms = [line for line in named if line.made is not None]
    if len(gemms) < 2 or any(line.made.ctas != 1 for line in gemms if line.made):
        return 0.0
    units = [unit for line in gemms if line.made for unit in line.made.units]
    together = max(queue(units, MULTIPROCESSORS) / CLOCK, sum(line.megabytes for line in named) * 1e6 / HBM)
    return sum(line.seconds for line in named) - together


def predicted_first(problem: Problem, before: Before) -> float:
    """Seconds that this file's formula gives one of the first kernels' GEMMs."""
    assert before.shape is not None
    assert before.tile is not None
    shapes = (before.shape,)
    return gemm(problem, shapes, before.tile, before._asdict(), director=before.director).seconds  # type: ignore[arg-type]


def entries_of_the_step() -> dict[str, str]:
    """What of `bench.matrix` a step of the reference launches, by `bench.kernel_work`'s names."""
    calls = (*matrix.GEMMS, *matrix.BY_WIDTH, *matrix.ROUTING, *matrix.OTHERS, *matrix.COUNTERS, *matrix.COPIES)
    found = {}
    for call in calls:
        launcher, *options = call.split()
        precision = "fp32-ieee" if call in matrix.ON_PARAMETERS else "bf16"
        name = call if call in matrix.COPIES else launcher
        found[name] = " ".join([launcher, "sm_90", precision, matrix.VIT_B, *options])
    return found


def resources(version: str) -> dict[str, Records]:
    """The step's entries from the table of that Triton; where it holds no instruction counts, compiled anew."""
    entries = list(entries_of_the_step().values())
    file = RESULTS / f"resources-{version}.json"
    if file.is_file():
        table = json.loads(file.read_text(encoding="utf-8"))["entries"]
        if all("loop" in record for entry in entries for record in table.get(entry, [{}])):
            return {entry: table[entry] for entry in entries}
    if version != triton.__version__:
        raise SystemExit(
            f"{file.name} does not hold the step's kernels with their instructions: with Triton {version} call "
            "python -m bench.resources"
        )
    return build(entries, BUILD, 2)


class Now(NamedTuple):
    """A line of the table: what it says of today's kernels."""

    seconds: float = 0.0
    launches: int = 0
    bound: str = ""
    megabytes: float = 0.0
    registers: int = 0
    made: Prediction | None = None  # of a GEMM
    loop: int = 0


def lines_of(problem: Problem, amounts: dict[str, Work], table: dict[str, Records]) -> dict[str, Now]:
    lines = {}
    for name, (made, records) in predict(problem, amounts, table).items():
        launches = max(1, len(records))
        main = next((record for record in records if record["dots"]), records[0] if records else {})
        line = Now(made.seconds, launches, made.bound, amounts[name].bytes / 1e6, main.get("registers", 0))
        lines[name] = line._replace(made=made, loop=main["loop"]) if made.programs else line
    for name, (launches, moved) in BESIDE.items():
        seconds, bound = moved / HBM + launches * _LAUNCH_BY_PYTORCH, "memory" if moved else "launch"
        lines[name] = Now(seconds, launches, bound, moved / 1e6)
    return lines


def report(problem: Problem, amounts: dict[str, Work], table: dict[str, Records]) -> None:
    """Print the table: the arguments are those of `predict`."""
    print(
        f"PREDICTION, nothing here was measured: {problem.shape} bfloat16, {problem.routing}, {problem.architecture}; "
        f"before: {SOURCE}"
    )
    heads = ("us before", "us", "registers", "CTAs", "programs", "waves", "filled", "loop", "launches", "MB")
    print(table_row("", *heads, width=40) + "  bound by")
    lines = lines_of(problem, amounts, table)
    for name in dict.fromkeys((*lines, *FIRST)):
        before, now = FIRST.get(name, Before(0, 0)), lines.get(name, Now())
        at_once = programs_at_once(before.registers, before.tile.warps, before.shared) if before.tile else 0
        made = now.made or Prediction(0.0, "")
        cells = [
            f"{before.microseconds:.0f}" if before.launches else "",
            f"{now.seconds * 1e6:.0f}" if now.bound else "",
        ]
        cells += [_change(before.registers, now.registers), _change(at_once, made.ctas)]
        cells += [f"{made.programs}", f"{made.waves:.1f}", f"{made.efficiency:.2f}"] if now.made else [""] * 3
        cells += [_change(before.loop, now.loop), _change(before.launches, now.launches)]
        cells.append(f"{now.megabytes:.1f}" if now.megabytes else "")
        print(f"{table_row(name, *cells, width=40)}  {now.bound}")
    first = FIRST.values()
    _print_sum("before", problem, sum(b.microseconds for b in first) / 1e6, sum(b.launches for b in first))
    step = sums(lines)
    _print_sum("now, one after the other", problem, step.in_turn, step.launches)
    _print_sum("on two streams", problem, step.on_two_streams, step.launches)
    _print_sum("and with what the update's copies take there", problem, step.with_the_update, step.launches)
    _print_sum("or in a graph, which casts the weights", problem, step.in_a_graph, step.launches + 1)


class Sums(NamedTuple):
    """Seconds of forward and backward. The weights' copies are there, but for ``in_a_graph``."""

    in_turn: float
    on_two_streams: float
    with_the_update: float  # of what it takes longer since it writes the copies
    in_a_graph: float  # which casts them, each time
    launches: int


def sums(lines: dict[str, Now]) -> Sums:
    """Of what `lines_of` returns."""
    step = [line for name, line in lines.items() if name not in (*AFTER_THE_STEP, CAST)]
    in_turn = sum(line.seconds for line in step)
    forked = in_turn - saved_by_streams(lines)
    writes = lines["group_ema copies"].seconds - lines["group_ema"].seconds
    return Sums(in_turn, forked, forked + writes, forked + lines[CAST].seconds, sum(line.launches for line in step))


def _print_sum(when: str, problem: Problem, seconds: float, launches: int) -> None:
    rate = step_flops(problem.shape) / seconds
    print(
        f"{when}: {seconds * 1e6:.0f} us without {', '.join(AFTER_THE_STEP)}, {launches} launches; "
        f"{rate / 1e12:.0f} TFLOP/s, {rate / LARGEST_GEMM:.0%} of the largest GEMM's"
    )


def _change(before: int, now: int) -> str:
    return f"{before or ''}>{now or ''}" if before or now else ""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--triton", default=triton.__version__, help="the version whose table is read")
    options = parser.parse_args(arguments)
    problem = Problem(REFERENCE, torch.bfloat16, "uniform", "sm_90")
    report(problem, work(problem), resources(options.triton))


if __name__ == "__main__":
    main()
