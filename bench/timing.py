"""How benches measure: contenders in turn, medians, what the machine is, one JSON line a result."""

import json
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from dexcore.nn.linear import faster_by_onednn, linear
from dexcore.ops.copies import drop_all

RESULTS = Path(__file__).parent / "results"
CPU = torch.device("cpu")
# Written before each call on a GPU: more than any cache holds, and the host launches the call meanwhile.
_FLUSHED_BYTES = 2**30
_COPY = "largest copy"


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: median, and the 20th and 80th percentile."""

    median: float
    p20: float
    p80: float


def interleaved(
    contenders: dict[str, Callable[[], object]], seconds: float, device: torch.device = CPU
) -> dict[str, Timing]:
    """Time the contenders in turn, A B C A B C ..., so that a drift of the machine's speed meets all of them.

    Args:
        contenders: what to call, by name; each is called three times before the clock starts, in turn as well: until
            they have found their places in memory that all share, they meet pages that the system has yet to clear.
        seconds: about how long to measure all of them together; at least 7 rounds.
        device: where they run. On a GPU each call finds the caches cold, and its time is the device's, unless the
            host takes longer to launch it than a gigabyte takes to be written.
    """
    for _ in range(3):
        for call in contenders.values():
            call()
    seconds_of = _stopwatch(device)
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    began = time.perf_counter()
    while contenders and (len(next(iter(taken.values()))) < 7 or time.perf_counter() - began < seconds):
        for name, call in contenders.items():
            taken[name].append(seconds_of(call))
    return {name: summary(times) for name, times in taken.items()}


def summary(times: list[float]) -> Timing:
    """Median and percentiles of at least two calls' seconds."""
    fifths = statistics.quantiles(times, n=5)
    return Timing(statistics.median(times), fifths[0], fifths[3])


def _stopwatch(device: torch.device) -> Callable[[Callable[[], object]], float]:
    """What measures the seconds of one call on ``device``."""
    if device.type == "cpu":
        return _seconds_on_cpu
    flushed = torch.empty(_FLUSHED_BYTES, dtype=torch.int8, device=device)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def seconds_on_gpu(call: Callable[[], object]) -> float:
        flushed.zero_()
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    return seconds_on_gpu


def _seconds_on_cpu(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def captured(call: Callable[[], object]) -> Callable[[], None]:
    """What ``call`` does on the GPU, as a CUDA graph: the result replays it, without Python's part of the time.

    Raises:
        RuntimeError: the call waits for the device, or does something else that cannot be captured.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        call()
    return graph.replay


def peak_memory(make_step: Callable[..., Callable[[], object]], *arguments: object) -> float:
    """MB that three steps add to what a fresh process holds before them (its peak resident set)."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_of, (make_step, arguments))


def _peak_of(make_step: Callable[..., Callable[[], object]], arguments: tuple[object, ...]) -> float:
    torch.set_num_threads(2)
    step = make_step(*arguments)
    before = status_mib("VmRSS")
    for _ in range(3):
        step()
    return status_mib("VmHWM") - before


def status_mib(field: str, process: int | str = "self") -> float:
    """A field of /proc/PROCESS/status: VmRSS is the memory held, VmHWM the most that ever was."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":")) / 1024


def peak_gpu_memory(step: Callable[[], object]) -> float:
    """MB that a step holds on the GPU at its peak, above the parameters and gradients that are there between steps.

    Half-precision copies of the weights count, though dexcore keeps them between steps.
    """
    step()
    torch.cuda.synchronize()
    drop_all()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def ceilings(dtype: torch.dtype, device: torch.device = CPU, quick: bool = False) -> dict[str, float]:
    """The largest GEMM (GFLOP/s) and the largest copy (GB/s) that this machine does, by medians as all else.

    ``quick``: of a size that proves nothing.
    """
    return beside_ceilings({}, 0, dtype, device, quick)[1]


def beside_ceilings(
    contenders: dict[str, Callable[[], object]],
    seconds: float,
    dtype: torch.dtype,
    device: torch.device,
    quick: bool = False,
) -> tuple[dict[str, Timing], dict[str, float]]:
    """`interleaved`, and the two ceilings, which take turns with the contenders.

    A GPU that has worked for seconds is slower than one that begins: what is read against a ceiling is measured at the
    same clocks.
    """
    gemms, (copy, moved) = large_gemms(dtype, device, quick), large_copy(device, quick)
    calls = {f"GEMM {name}": call for name, (call, _) in gemms.items()} | {_COPY: copy}
    times = interleaved(contenders | calls, seconds, device)
    flops = max(flops / times.pop(f"GEMM {name}").median for name, (_, flops) in gemms.items())
    return times, {"gemm_gflops": flops / 1e9, "copy_gbs": moved / times.pop(_COPY).median / 1e9}


def large_gemms(
    dtype: torch.dtype, device: torch.device, quick: bool = False
) -> dict[str, tuple[Callable[[], object], int]]:
    """GEMMs, one of which is the fastest here, and their FLOPs."""
    found: dict[str, tuple[Callable[[], object], int]] = {}
    for side in (256,) if quick else (4096,) if device.type == "cpu" else (4096, 8192, 16384):
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        found[str(side)] = partial(torch.mm, a, b, out=torch.empty_like(a)), 2 * side**3
        if dtype == torch.float32 and faster_by_onednn(device):
            found[f"{side} by oneDNN"] = partial(linear, a, b, None), 2 * side**3
    return found


def large_copy(device: torch.device, quick: bool = False) -> tuple[Callable[[], object], int]:
    """A copy, and the bytes that it reads and writes."""
    length = 2**16 if quick else 2**26 if device.type == "cpu" else 2**28
    source, target = (torch.zeros(length, device=device) for _ in range(2))
    return partial(target.copy_, source), 2 * source.nbytes


def machine(device: torch.device = CPU) -> dict[str, Any]:
    """What the numbers were measured on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        fields = dict(line.split(":", 1) for line in info.read_text().split("\n\n")[0].splitlines() if ":" in line)
        cpu = " ".join(fields.get("model name\t", cpu).split()) + f", model {fields.get('model		', '?').strip()}"
    found = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if device.type == "cpu":
        return found | {"device": "cpu"}
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = "none"
    runtime = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}"
    return found | {"device": torch.cuda.get_device_name(device), "runtime": runtime, "triton": triton}


def write_line(name: str, line: dict[str, Any]) -> None:
    """Add a result to bench/results/NAME.jsonl; timings may stand in it as they are."""
    RESULTS.mkdir(exist_ok=True)
    plain = {key: asdict(value) if isinstance(value, Timing) else value for key, value in line.items()}
    with (RESULTS / f"{name}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(plain) + "\n")
