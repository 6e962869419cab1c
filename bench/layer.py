"""A DEX layer's training step against its bare GEMMs, the published loop and other ways to compute the same.

    python -m bench.layer            # all shapes, float32 and bf16; on a GPU the reference shape in bf16
    python -m bench.layer --save     # the same, and JSON lines in bench/results

A step is routing, experts, director, both losses, backward and GEMA. Its bare GEMMs are 2 of the director and 2 + 4
of the experts, each one large matmul over k*B*N rows into memory that is there already. ("strict" counts the
director's over B*N rows, as they are: no layer can reach 1.00 of that, since R experts read and write R times the
weights.) The published loop passes the same check of outputs, losses, gradients and directors before it is timed.

The second table compares the contenders of `bench.contenders` under three routings: uniform, Zipf's, and all images
on two experts. Its rates count the step's GEMMs alone, as a share of the largest GEMM's. Of memory it has two figures:
"held", what is kept from the forward to the backward, bf16 copies of the weights included, which is what adds up over
a model's layers; and on a GPU "peak", the most that the step holds at once. The goal, at most half of the published
loop's, is of the memory held with keep="z"; counting says that it is missed (docs/kernels.md). Of one layer's peak it
cannot be met: z, w*a and dz are alive together in any backward, and the gradients and the weights' copies are all's.
"""

import sys
from collections.abc import Callable

import torch
from torch import Tensor

from bench.command import Ceilings, Goal, Line, Options, Refused, capture_or_reason, dtype_name, run, table_row
from bench.contenders import (
    CONTENDERS,
    EXPERTS,
    REFERENCE,
    TOP_K,
    Shape,
    check_all,
    held_memory,
    make_layer,
    make_step,
    step_bytes,
    step_flops,
)
from bench.contenders import check as check_step
from bench.routings import ROUTINGS, counts
from bench.timing import CPU, beside_ceilings, captured, ceilings, interleaved, machine, peak_gpu_memory, peak_memory

SHAPES = (Shape(32, 65, 768), Shape(16, 65, 384), Shape(64, 17, 192))
GOALS = dict(zip(SHAPES, (1.15, 1.30, 1.50), strict=True))
QUICK = Shape(6, 17, 64)

# On an H100, at the reference shape in bf16.
GEMM_SHARE, SPEEDUP, HELD_RATIO = 0.75, 2.5, 2.0
BARE = "bare GEMMs"
FORWARD_BACKWARD = "dexcore, no GEMA"
KEEP_Z, KEEP_NONE = "dexcore, keep z", "dexcore, keep none"


def bare_gemms(
    shape: Shape, dtype: torch.dtype, director_rows: int, device: torch.device = CPU
) -> Callable[[], object]:
    """The layer's GEMMs alone, each as one, into memory that is there already."""
    rows, width, hidden = TOP_K * shape.images * shape.tokens, shape.width, 4 * shape.width
    x, w1, w2 = (
        torch.randn(shape, device=device).to(dtype) for shape in ((rows, width), (hidden, width), (width, hidden))
    )
    y = torch.empty_like(x)
    h, u = (torch.empty(rows, hidden, dtype=dtype, device=device) for _ in range(2))
    dw1, dw2 = torch.empty_like(w1), torch.empty_like(w2)
    d = director_rows

    def call() -> None:
        torch.mm(x[:d], w1.t(), out=h[:d])
        torch.mm(h[:d], w2.t(), out=y[:d])
        torch.mm(x, w1.t(), out=h)
        torch.mm(h, w2.t(), out=y)
        torch.mm(x.t(), h, out=dw2)
        torch.mm(x, w2, out=u)
        torch.mm(u.t(), x, out=dw1)
        torch.mm(u, w1, out=y)

    return call


def measure_cpu(options: Options) -> list[Line]:
    """The table against bare GEMMs and the published loop."""
    lines = []
    heads = ("step ms", "/ bare", "goal", "/ strict", "/ publ.", "MB", "MB publ.", "differ by")
    print(table_row("images x tokens x width", *heads))
    for dtype in (torch.float32, torch.bfloat16):
        for shape in (QUICK,) if options.quick else SHAPES:
            difference = check_step(shape, dtype)
            rows = shape.images * shape.tokens
            against_gemms = interleaved(
                {
                    "bare": bare_gemms(shape, dtype, TOP_K * rows),
                    "strict": bare_gemms(shape, dtype, rows),
                    "dexcore": make_step("dexcore", shape, dtype),
                },
                options.seconds / 2,
            )
            against_loop = interleaved(
                {name: make_step(name, shape, dtype) for name in ("published", "dexcore")}, options.seconds / 2
            )
            times = {"published": against_loop["published"]} | against_gemms
            memory = {name: peak_memory(make_step, name, shape, dtype) for name in ("dexcore", "published")}
            ratios = {name: times["dexcore"].median / times[name].median for name in ("bare", "strict")}
            ratios["published"] = against_loop["dexcore"].median / against_loop["published"].median
            goal = f"{GOALS[shape]:.2f}" if dtype == torch.float32 and shape in GOALS else ""
            name = dtype_name(dtype)
            cells = [f"{times['dexcore'].median * 1e3:.1f}", f"{ratios['bare']:.2f}", goal, f"{ratios['strict']:.2f}"]
            cells += [f"{ratios['published']:.2f}", f"{memory['dexcore']:.0f}", f"{memory['published']:.0f}"]
            print(table_row(f"{shape} {name}", *cells, f"{difference:.1e}"), flush=True)
            line = {"bench": "layer", **machine(), **shape._asdict(), "dtype": name, **times, "ratios": ratios}
            measured = {} if options.quick else ceilings(dtype)
            line |= {"flops": step_flops(shape)}
            lines.append(line | {"peak_mb": memory, "difference": difference, **measured})
    return lines


def contest_shape(options: Options) -> Shape:
    """Where the contenders meet."""
    if options.quick:
        return QUICK
    return REFERENCE if options.on_gpu else SHAPES[0]


def case_name(dtype: torch.dtype, routing: str) -> str:
    return f"{dtype_name(dtype)}, {routing}"


def check(options: Options) -> Refused:
    """Hold the contenders to float64, and a captured step to one that is not."""
    refused = {
        case_name(dtype, routing): check_all(contest_shape(options), dtype, options.device, routing)
        for dtype in options.dtypes
        for routing in ROUTINGS
    }
    if options.on_gpu:
        for dtype in options.dtypes:
            check_captured(contest_shape(options), dtype, options.device)
    return {case: reasons for case, reasons in refused.items() if reasons}


def check_captured(shape: Shape, dtype: torch.dtype, device: torch.device) -> str | None:
    """A step replayed from a CUDA graph computes the same bits; RuntimeError where it does not.

    Returns:
        Why it could not be captured; then nothing was checked.
    """
    # Without GEMA, so that all steps start from the same director.
    expected = make_step("dexcore", shape, dtype, device, "uniform", update=False)()
    step = make_step("dexcore", shape, dtype, device, "uniform", update=False)
    found: list[Tensor] = []

    def keep() -> None:
        found[:] = step()

    replay, reason = capture_or_reason(lambda: captured(keep))
    if replay is None:
        return reason
    for tensor in found:
        tensor.detach().fill_(float("nan"))
    replay()
    for name, ours, theirs in zip(("y", "align", "balance", "dx"), found, expected, strict=True):
        if not torch.equal(ours, theirs):
            raise RuntimeError(f"a step replayed from a CUDA graph computes another {name}")


def measure(options: Options, ceilings_by_dtype: Ceilings, refused: Refused) -> list[Line]:
    """Both tables; on a GPU the second alone."""
    lines = [] if options.on_gpu else measure_cpu(options)
    for dtype in options.dtypes:
        for routing in ROUTINGS:
            case = case_name(dtype, routing)
            lines += measure_contest(options, dtype, routing, ceilings_by_dtype[dtype], refused.get(case, {}))
    return lines


def measure_contest(
    options: Options, dtype: torch.dtype, routing: str, ceiling: dict[str, float], refused: dict[str, str]
) -> list[Line]:
    """All contenders on one routing."""
    shape, device = contest_shape(options), options.device
    steps: dict[str, Callable[[], object]] = {
        name: make_step(name, shape, dtype, device, routing) for name in CONTENDERS if name not in refused
    }
    memory = measure_memory(options, dtype, routing, steps)
    uncaptured: dict[str, str] = {}
    if options.on_gpu:
        steps[FORWARD_BACKWARD] = make_step("dexcore", shape, dtype, device, routing, update=False)
        uncaptured = add_graphs(steps, shape, dtype, device, routing)
        steps[BARE] = bare_gemms(shape, dtype, shape.images * shape.tokens, device)
        times, ceiling = beside_ceilings(steps, options.seconds, dtype, device, options.quick)
    else:
        times = interleaved(steps, options.seconds, device)
    flops = step_flops(shape)
    moved = step_bytes(shape, sum(map(bool, counts(routing, shape.images, EXPERTS, TOP_K))), dtype.itemsize)
    shares = {name: flops / time.median / 1e9 / ceiling["gemm_gflops"] for name, time in times.items()}
    speedups = {name: times["published"].median / time.median for name, time in times.items()}
    goals = _goals(shares, speedups, memory, uncaptured) if options.on_gpu else []

    print(f"{shape} {case_name(dtype, routing)}")
    print(table_row("", "step ms", "p20", "p80", "of GEMM", "x publ.", "held MB", "peak MB"))
    lines = []
    for name in dict.fromkeys((*times, *memory)):
        line: Line = {"bench": "contenders", **machine(device), **shape._asdict(), "dtype": dtype_name(dtype)}
        line |= {"routing": routing, "contender": name, "flops": flops, "bytes": moved, **ceiling}
        cells = [""] * 5
        if name in times:
            time = times[name]
            cells = [f"{seconds * 1e3:.2f}" for seconds in (time.median, time.p20, time.p80)]
            cells += [f"{shares[name]:.2f}", f"{speedups[name]:.2f}"]
            line |= {**vars(time), "gemm_share": shares[name], "speedup": speedups[name]}
        if name in memory:
            cells += [f"{megabytes:.0f}" for megabytes in memory[name].values()]
            line |= memory[name]
        if name == "dexcore":
            line["goals"] = [goal.record for goal in goals]
        print(table_row(name, *cells), flush=True)
        lines.append(line)
    for goal in goals:
        print(f"  {goal}")
    return lines


def measure_memory(
    options: Options, dtype: torch.dtype, routing: str, steps: dict[str, Callable[[], object]]
) -> dict[str, dict[str, float]]:
    """MB that every contender, and dexcore with less kept, holds for its backward, and on a GPU at its peak."""
    shape, device = contest_shape(options), options.device
    memory: dict[str, dict[str, float]] = {}
    cases = [(name, name, "both") for name in steps] + [(KEEP_Z, "dexcore", "z"), (KEEP_NONE, "dexcore", "none")]
    for name, contender, keep in cases:
        layer = make_layer(contender, shape, device, keep)
        memory[name] = {"held_mb": held_memory(layer, shape, dtype, routing)}
        if options.on_gpu:
            step = steps.get(name) or make_step(contender, shape, dtype, device, routing, keep=keep)
            memory[name]["peak_mb"] = peak_gpu_memory(step)
    return memory


def add_graphs(
    steps: dict[str, Callable[[], object]], shape: Shape, dtype: torch.dtype, device: torch.device, routing: str
) -> dict[str, str]:
    """Put the steps that can be captured in a CUDA graph beside themselves; why the others cannot, by name."""
    uncaptured = {}
    for name, contender, update in (
        ("dexcore", "dexcore", True),
        (FORWARD_BACKWARD, "dexcore", False),
        ("grouped", "grouped", True),
    ):
        if name not in steps:
            continue
        step = make_step(contender, shape, dtype, device, routing, update=update)
        replay, reason = capture_or_reason(lambda step=step: captured(step))
        if replay is not None:
            steps[f"{name}, graph"] = replay
        else:
            print(f"{name}: the step could not be captured in a CUDA graph: {reason}")
            uncaptured[name] = reason
    return uncaptured


def _goals(
    shares: dict[str, float],
    speedups: dict[str, float],
    memory: dict[str, dict[str, float]],
    uncaptured: dict[str, str],
) -> list[Goal]:
    # From the graph: the kernels' share, not the host's. The table has the eager one beside it.
    share = shares.get(f"{FORWARD_BACKWARD}, graph", shares[FORWARD_BACKWARD])
    held = memory["published"]["held_mb"] / memory[KEEP_Z]["held_mb"]
    return [
        Goal("forward and backward, share of the largest GEMM's rate", share, GEMM_SHARE),
        Goal("times the published loop's speed", speedups["dexcore"], SPEEDUP),
        Goal("memory held for the backward, the published loop's over dexcore's with z kept", held, HELD_RATIO),
        Goal("the whole step captured in a CUDA graph", 0.0 if "dexcore" in uncaptured else 1.0, 1.0),
    ]


if __name__ == "__main__":
    run(__doc__, {"layer": sys.modules[__name__]})
