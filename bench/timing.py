"""How benches measure: contenders in turn, medians, what the machine is, one JSON line a result."""

import json
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: median, and the 20th and 80th percentile."""

    median: float
    p20: float
    p80: float


def interleaved(contenders: dict[str, Callable[[], object]], seconds: float) -> dict[str, Timing]:
    """Time the contenders in turn, A B C A B C ..., so that a drift of the machine's speed meets all of them.

    Args:
        contenders: what to call, by name; each is called twice before the clock starts.
        seconds: about how long to measure all of them together; at least 7 rounds.
    """
    for call in contenders.values():
        call()
        call()
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    began = time.perf_counter()
    while len(next(iter(taken.values()))) < 7 or time.perf_counter() - began < seconds:
        for name, call in contenders.items():
            start = time.perf_counter()
            call()
            taken[name].append(time.perf_counter() - start)
    return {name: _summary(times) for name, times in taken.items()}


def _summary(times: list[float]) -> Timing:
    fifths = statistics.quantiles(times, n=5)
    return Timing(statistics.median(times), fifths[0], fifths[3])


def peak_memory(make_step: Callable[..., Callable[[], object]], *arguments: object) -> float:
    """MB that three steps add to what a fresh process holds before them (its peak resident set)."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_of, (make_step, arguments))


def _peak_of(make_step: Callable[..., Callable[[], object]], arguments: tuple[object, ...]) -> float:
    torch.set_num_threads(2)
    step = make_step(*arguments)
    before = _status_mb("VmRSS")
    for _ in range(3):
        step()
    return _status_mb("VmHWM") - before


def _status_mb(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":")) / 1024


def ceilings(dtype: torch.dtype) -> dict[str, float]:
    """The largest GEMM (GFLOP/s) and the largest copy (GB/s) that this machine does."""
    side, length = 4096, 2**26
    a, b, c = torch.randn(side, side).to(dtype), torch.randn(side, side).to(dtype), torch.empty(side, side, dtype=dtype)
    source, target = torch.zeros(length), torch.zeros(length)
    gemm, copy = (
        min(_once(call) for _ in range(5)) for call in (lambda: torch.mm(a, b, out=c), lambda: target.copy_(source))
    )
    return {"gemm_gflops": 2 * side**3 / gemm / 1e9, "copy_gbs": 2 * 4 * length / copy / 1e9}


def _once(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        fields = dict(line.split(":", 1) for line in info.read_text().split("\n\n")[0].splitlines() if ":" in line)
        cpu = " ".join(fields.get("model name\t", cpu).split()) + f", model {fields.get('model		', '?').strip()}"
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def write_line(name: str, line: dict[str, Any]) -> None:
    """Add a result to bench/results/NAME.jsonl; timings may stand in it as they are."""
    RESULTS.mkdir(exist_ok=True)
    plain = {key: asdict(value) if isinstance(value, Timing) else value for key, value in line.items()}
    with (RESULTS / f"{name}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(plain) + "\n")
