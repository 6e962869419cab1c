"""Each kernel of a layer's training step at the reference shape: time, and share of the machine's two ceilings.

    python -m bench.kernels

On a GPU every kernel is held to float64 first, and measured. Elsewhere nothing can run: what is printed, and marked,
is a PREDICTION, the larger of FLOPs over 800 TFLOP/s and bytes over 3.0 TB/s. Bytes and FLOPs are those that the
functions beside the launchers count, which the tests hold to the kernels' own loads and stores.
"""

import sys

import torch

from bench.command import Ceilings, Goal, Line, Options, Refused, dtype_name, judged, run, table_row
from bench.contenders import REFERENCE, Shape
from bench.kernel_cases import calls
from bench.kernel_cases import check as check_kernels
from bench.kernel_work import Problem, Work, work
from bench.routings import ROUTINGS
from bench.timing import beside_ceilings, machine
from dexcore.kernels.configs import architecture_of, multiprocessors_of
from dexcore.kernels.numerics import INTERPRETED

# What an H100 does in practice, for predictions.
ASSUMED = {"gemm_gflops": 800e3, "copy_gbs": 3.0e3}
ASSUMED_ARCHITECTURE = "sm_90"
# Goals on an H100: the shares of the largest copy's bandwidth.
COPY_SHARES = {"mix_align_forward": 0.85, "group_ema": 0.90}
# A step whose copies group EMA has written does without.
INSTEAD = ("group_ema", "cast_all")
_QUICK = Shape(6, 17, 64)


def predicted(amount: Work, ceiling: dict[str, float] = ASSUMED) -> float:
    """Seconds, if the busier of the tensor cores and the memory alone counts."""
    return max(amount.flops / ceiling["gemm_gflops"], amount.bytes / ceiling["copy_gbs"]) / 1e9


def _problem(options: Options, routing: str) -> Problem:
    # Without a GPU the shape costs nothing.
    shape = _QUICK if options.quick and options.on_gpu else REFERENCE
    if not options.on_gpu:
        return Problem(shape, torch.bfloat16, routing, ASSUMED_ARCHITECTURE)
    device = options.device
    return Problem(shape, torch.bfloat16, routing, architecture_of(device), multiprocessors_of(device))


def check(options: Options) -> Refused | None:
    """Every kernel against float64; without a GPU nothing runs, and nothing is checked."""
    if not options.on_gpu:
        return None
    if INTERPRETED.value:
        raise RuntimeError("TRITON_INTERPRET is set: the kernels would be interpreted; unset it")
    for routing in ROUTINGS:
        check_kernels(_problem(options, routing), options.device)
    return {}


def measure(options: Options, ceilings: Ceilings, refused: Refused | None) -> list[Line]:
    """A table a routing: measured on a GPU, predicted elsewhere."""
    lines: list[Line] = []
    for routing in ROUTINGS:
        problem = _problem(options, routing)
        lines += _measured(options, problem) if options.on_gpu else _predicted(problem)
    return lines


def _common(problem: Problem, kernel: str, amount: Work) -> Line:
    line: Line = {**problem.shape._asdict(), "dtype": dtype_name(problem.dtype), "routing": problem.routing}
    return line | {"architecture": problem.architecture, "kernel": kernel, **amount._asdict()}


def _predicted(problem: Problem) -> list[Line]:
    lines, total = [], 0.0
    print(
        f"PREDICTION, nothing here was measured: {problem.shape} {dtype_name(problem.dtype)}, {problem.routing}, "
        f"{problem.architecture}, at {ASSUMED['gemm_gflops'] / 1e3:.0f} TFLOP/s and {ASSUMED['copy_gbs'] / 1e3} TB/s"
    )
    print(table_row("", "MB", "GFLOP", "us, pred."))
    for name, amount in work(problem).items():
        seconds = predicted(amount)
        total += seconds if name not in INSTEAD else 0
        print(table_row(name, f"{amount.bytes / 1e6:.1f}", f"{amount.flops / 1e9:.1f}", f"{seconds * 1e6:.1f}"))
        line = {
            "bench": "kernels",
            "prediction": True,
            "predicted": seconds,
            "assumed": ASSUMED,
            "time": machine()["time"],
        }
        lines.append(line | _common(problem, name, amount))
    print(table_row("all, PREDICTION", "", "", f"{total * 1e6:.1f}"))
    return lines


def _measured(options: Options, problem: Problem) -> list[Line]:
    amounts = work(problem)
    cases = {name: case.call for name, case in calls(problem, options.device).items()}
    times, ceiling = beside_ceilings(cases, options.seconds, problem.dtype, options.device, options.quick)
    lines = []
    print(f"{problem.shape} {dtype_name(problem.dtype)}, {problem.routing}, {problem.architecture}")
    print(table_row("", "us", "p20", "p80", "of GEMM", "of copy", "us, pred."))
    for name, time in times.items():
        amount = amounts[name]
        gemm_share = amount.flops / time.median / 1e9 / ceiling["gemm_gflops"]
        copy_share = amount.bytes / time.median / 1e9 / ceiling["copy_gbs"]
        at_ceilings = predicted(amount, ceiling)
        cells = [f"{seconds * 1e6:.1f}" for seconds in (time.median, time.p20, time.p80)]
        cells += [f"{gemm_share:.2f}", f"{copy_share:.2f}", f"{at_ceilings * 1e6:.1f}"]
        print(table_row(name, *cells), flush=True)
        line: Line = {"bench": "kernels", "prediction": False, **machine(options.device), **vars(time), **ceiling}
        line |= _common(problem, name, amount) | {"gemm_share": gemm_share, "copy_share": copy_share}
        if name in COPY_SHARES:
            goal = Goal("share of the largest copy's bandwidth", copy_share, COPY_SHARES[name])
            line |= judged(goal)
        lines.append(line)
    return lines


if __name__ == "__main__":
    run(__doc__, {"kernels": sys.modules[__name__]})
