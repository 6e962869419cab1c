"""What ``python -m bench`` and ``python -m bench.<name>`` share: options, the order of work, records and goals.

A bench is a module with

    check(options) -> Refused                         results first; raises where dexcore's are wrong. None: none here
    measure(options, ceilings, refused) -> [line]     prints a table, returns its JSON lines
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import torch

from bench import plot
from bench.timing import ceilings, machine, write_line
from dexcore.engine.memory import keep_freed_memory

Ceilings = dict[torch.dtype, dict[str, float]]
Refused = dict[str, dict[str, str]]  # by case: the contenders that are not timed, and why
Line = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """What the command line says.

    Attributes:
        device: where to measure.
        quick: small shapes and few rounds, to see that everything runs; the times mean nothing and are not saved.
        save: add the lines to bench/results and draw them.
        seconds: about how long to measure one table's contenders together.
        compiled: whether what `torch.compile` makes competes too; on a GPU it takes half a minute to make.
    """

    device: torch.device
    quick: bool = False
    save: bool = False
    seconds: float = 12.0
    compiled: bool = True

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """What is measured: bf16 on a GPU, float32 too on a CPU."""
        return (torch.bfloat16,) if self.on_gpu else (torch.float32, torch.bfloat16)

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"


class Goal(NamedTuple):
    """A measured value and what it should reach, or, ``at_most``, not exceed."""

    name: str
    value: float
    target: float
    at_most: bool = False

    @property
    def met(self) -> bool:
        return self.value <= self.target if self.at_most else self.value >= self.target

    @property
    def record(self) -> Line:
        """As a line holds it."""
        return self._asdict() | {"met": self.met}

    def __str__(self) -> str:
        goal = f"goal {'at most ' if self.at_most else ''}{self.target:.2f}"
        return f"{self.name}: {self.value:.2f} ({goal}, {'met' if self.met else 'missed'})"


def judged(*goals: Goal) -> Line:
    """Print whether goals are met; what a line records of them."""
    for goal in goals:
        print(f"  {goal}")
    return {"goals": [goal.record for goal in goals]}


def table_row(name: str, *cells: str, width: int = 26) -> str:
    """A line of a table."""
    return f"{name:{width}}" + "".join(f"{cell:>10}" for cell in cells)


def dtype_name(dtype: torch.dtype) -> str:
    """ "float32" and so on."""
    return str(dtype).removeprefix("torch.")


def capture_or_reason(capture: Callable[[], Any]) -> tuple[Any, str]:
    """What ``capture`` returns, or None and why it could not."""
    try:
        return capture(), ""
    except RuntimeError as error:
        return None, str(error).splitlines()[0]


def parse(doc: str | None, arguments: list[str] | None = None) -> Options:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one (ROCm too)")
    parser.add_argument("--quick", action="store_true", help="tiny shapes: does it run? The times mean nothing")
    parser.add_argument("--save", action="store_true", help="add the lines to bench/results and draw them")
    parser.add_argument("--seconds", type=float, default=12.0, help="about how long to measure a table (default 12)")
    given = parser.parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch finds no CUDA or ROCm device here")
    if given.quick and given.save:
        parser.error("--quick measures nothing worth saving: leave out --save")
    device = torch.device(given.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return Options(device, given.quick, given.save, min(given.seconds, 0.1) if given.quick else given.seconds)


def measured_ceilings(options: Options) -> Ceilings:
    """The largest GEMM and the largest copy, for each dtype that is measured."""
    found = {dtype: ceilings(dtype, options.device, options.quick) for dtype in options.dtypes}
    for dtype, ceiling in found.items():
        print(
            f"largest {dtype_name(dtype)} GEMM {ceiling['gemm_gflops'] / 1e3:.3g} TFLOP/s, "
            f"largest copy {ceiling['copy_gbs']:.3g} GB/s"
        )
    return found


def run(doc: str | None, benches: dict[str, ModuleType], arguments: list[str] | None = None) -> None:
    """The whole command: checks of all benches, the ceilings, then each bench's tables."""
    options = parse(doc, arguments)
    if not options.on_gpu:
        torch.set_num_threads(1 if options.quick else 2)
        kept = keep_freed_memory()
        print(f"{machine()}; freed memory is {'kept' if kept else 'given back'}")
        print(
            "skipped, since they need a GPU: the kernels' times, CUDA graphs, and all goals but those of layer and step"
        )
    else:
        print(machine(options.device))
    if options.quick:
        print("QUICK: shapes are tiny, times mean nothing")
    refused = {}
    for name, bench in benches.items():
        found = bench.check(options)
        print(f"{name}: {'nothing to check without a GPU' if found is None else 'results are right'}", flush=True)
        refused[name] = found or {}
        for case, reasons in refused[name].items():
            for contender, reason in reasons.items():
                print(f"  not timed, {case}: {contender}: {reason}")
    ceilings_by_dtype = measured_ceilings(options)
    for name, bench in benches.items():
        print(f"\n{name}", flush=True)
        for line in bench.measure(options, ceilings_by_dtype, refused[name]):
            if options.save:
                write_line(line["bench"], line)
    if options.save:
        for path in plot.draw():
            print(f"drawn: {path}")
