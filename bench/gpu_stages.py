"""The stages of `bench.gpu`, one a process: ``python -m bench.gpu_stages NAME --out DIR``."""

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench import align, contenders, ema, layer
from bench.command import Options, dtype_name, measured_ceilings
from bench.contenders import EXPERTS, REFERENCE, TOP_K, Shape, step_flops
from bench.timing import CPU, Timing, beside_ceilings, captured, machine

_BF16 = torch.bfloat16
_DTYPES = (torch.bfloat16, torch.float32, torch.float16)
_QUICK = Shape(4, 5, 64)  # the least width whose half-precision operands have descriptors on sm_90
_PACKAGES = ("torch", "triton", "timm", "einops", "numpy", "safetensors", "pytest", "hypothesis")


class Results:
    """Lines in results.jsonl, each on disk at once."""

    def __init__(self, stage: str, out: Path) -> None:
        self.stage, self.file = stage, out / "results.jsonl"

    def write(self, **line: Any) -> None:
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"stage": self.stage} | line, default=str) + "\n")

    def say(self, text: str, **line: Any) -> None:
        """A line of the page."""
        print(text, flush=True)
        self.write(said=text, **line)

    def goal(self, key: str, value: float) -> None:
        self.write(goal=key, value=value)


def environment(options: Options, out: Results) -> None:
    found = machine(options.device)
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "missing"
    out.say(
        f"{found['device']}, {found['cpu']}, Python {platform.python_version()}, "
        + ", ".join(f"{name} {number}" for name, number in versions.items()),
        **found,
    )
    if options.on_gpu:
        query = ["nvidia-smi", "--query-gpu=name,driver_version,clocks.sm,clocks.max.sm,power.limit", "--format=csv"]
        try:
            out.write(smi=subprocess.run(query, capture_output=True, text=True, check=False).stdout.splitlines())
        except FileNotFoundError:  # ROCm
            out.write(smi="not here")


def compile_kernels(options: Options, out: Results) -> None:
    """In parallel what the stages after it launch, so that none of them waits for a compiler."""
    from dexcore.kernels import warm_up
    from dexcore.nn import DEXMlp

    width = REFERENCE.width
    # By name: "auto" would leave float32's experts to PyTorch, and the stage after this one calls their kernels.
    pool = DEXMlp(width, 4 * width, num_experts=EXPERTS, top_k=TOP_K, backend="triton")
    model = nn.Sequential(nn.LayerNorm(width), pool)
    model.to(options.device)
    for dtype in _DTYPES:
        pool.keep = "z" if dtype == torch.float16 else "both"  # as "auto" would have it: "both" by name is refused
        with torch.autocast(options.device.type, dtype, enabled=dtype != torch.float32):
            seconds = warm_up(model, REFERENCE)
        out.say(f"{dtype_name(dtype)}: {seconds:.1f} s", dtype=dtype_name(dtype), seconds=seconds)


def kernels(options: Options, out: Results) -> None:
    """Every kernel of a step, forward and backward; one that is wrong does not hide the others."""
    from bench.kernel_cases import check
    from bench.kernel_work import Problem
    from bench.routings import ROUTINGS
    from dexcore.kernels.configs import architecture_of, multiprocessors_of

    shape = _QUICK if options.quick else REFERENCE
    device = options.device
    chip = (architecture_of(device), multiprocessors_of(device)) if options.on_gpu else ("sm_90",)
    wrong = 0
    for routing in ROUTINGS[:1] if options.quick else ROUTINGS:
        for dtype in _DTYPES:
            case = f"{shape} {dtype_name(dtype)}, {routing}"
            try:
                check(Problem(shape, dtype, routing, *chip), device)
            except Exception as error:  # a compiler's, the driver's or a wrong result's: all are told, none stops
                wrong += 1
                text = str(error).splitlines()[0] if str(error) else ""
                out.say(f"{case}: WRONG: {type(error).__name__}: {text}", right=False)
            else:
                out.say(f"{case}: right", right=True)
    if wrong:
        raise SystemExit(f"{wrong} cases are wrong")


def ceilings(options: Options, out: Results) -> None:
    for dtype, found in measured_ceilings(options).items():
        gemm, copy = found["gemm_gflops"], found["copy_gbs"]
        out.say(f"{dtype_name(dtype)}: GEMM {gemm / 1e3:.4g} TFLOP/s, copy {copy:.4g} GB/s", **found)


def _steps(options: Options, **settings: bool) -> tuple[Shape, partial]:
    shape = _QUICK if options.quick else REFERENCE
    return shape, partial(
        contenders.make_step, shape=shape, dtype=_BF16, device=options.device, routing="uniform", **settings
    )


def layer_step(options: Options, out: Results, prefix: str = "") -> None:
    shape, make = _steps(options)
    worst = contenders.check(shape, _BF16, options.device, "uniform")
    out.say(f"results are the published loop's: differ by {worst:.2g} of {contenders.BOUND[_BF16]:.2g} allowed")
    calls = {
        "dexcore": make("dexcore"),
        layer.FORWARD_BACKWARD: make("dexcore", update=False),
        "published": make("published"),
        layer.BARE: _bare_gemms(shape, options),
    }
    times, rate = _beside_the_largest_gemm(calls, options, out)
    _say_shares(times, shape, rate, out)
    out.goal(f"{prefix}speedup", times["published"].median / times["dexcore"].median)
    # The graph's replaces it.
    out.goal(f"{prefix}gemm_share", step_flops(shape) / times[layer.FORWARD_BACKWARD].median / rate)
    _say_bare(times, out)


def _say_shares(times: dict[str, Timing], shape: Shape, rate: float, out: Results) -> None:
    for name, time in times.items():
        share = step_flops(shape) / time.median / rate
        out.say(f"{name}: {time.median * 1e3:.3f} ms, {share:.2f} of the largest GEMM's rate", **vars(time))


def _say_bare(times: dict[str, Timing], out: Results) -> None:
    share = times[layer.BARE].median / times[layer.FORWARD_BACKWARD].median
    out.say(f"bare GEMMs take {share:.2f} of forward and backward")


def _bare_gemms(shape: Shape, options: Options) -> Callable[[], object]:
    return layer.bare_gemms(shape, _BF16, shape.images * shape.tokens, options.device)


def _beside_the_largest_gemm(
    calls: dict[str, Callable[[], object]], options: Options, out: Results
) -> tuple[dict[str, Timing], float]:
    """The calls' times, and the FLOP/s of the GEMM that took turns with them."""
    times, found = beside_ceilings(calls, options.seconds, _BF16, options.device, options.quick)
    rate = found["gemm_gflops"]
    out.say(f"largest GEMM beside them: {rate / 1e3:.4g} TFLOP/s", **found)
    return times, rate * 1e9


def graph(options: Options, out: Results) -> None:
    shape, make = _steps(options)
    if (reason := layer.check_captured(shape, _BF16, options.device)) is not None:
        raise SystemExit(f"a step could not be captured: {reason}")
    out.say("a captured step replays the same bits")
    calls = {
        "whole step": captured(make("dexcore")),
        layer.FORWARD_BACKWARD: captured(make("dexcore", update=False)),
        layer.BARE: captured(_bare_gemms(shape, options)),
    }
    times, rate = _beside_the_largest_gemm(calls, options, out)
    _say_shares(times, shape, rate, out)
    out.goal("gemm_share", step_flops(shape) / times[layer.FORWARD_BACKWARD].median / rate)
    _say_bare(times, out)


def memory(options: Options, out: Results) -> None:
    shape, _ = _steps(options)
    held = {}
    for name, contender, keep in (("published", "published", "both"), ("dexcore", "dexcore", "z")):
        held[name] = contenders.held_memory(
            contenders.make_layer(contender, shape, options.device, keep), shape, _BF16, "uniform"
        )
        out.say(f"{name}: {held[name]:.1f} MB" + (", z kept" if keep == "z" else ""), held_mb=held[name])
    out.goal("memory_ratio", held["published"] / held["dexcore"])


def _bench(module: Any, options: Options, out: Results, key: str, wanted: Callable[[dict], bool]) -> None:
    """check and measure of a bench; its worst share of the copy is the goal's."""
    refused = module.check(options)
    found = measured_ceilings(options)
    shares = []
    for line in module.measure(options, found, refused):
        out.write(**line)
        if wanted(line):
            shares.append(line["copy_share"])
            case = " ".join(filter(None, (line.get("kind") or line.get("routing"), line.get("dtype"))))
            out.say(f"{line['contender']}, {case}: {line['median'] * 1e3:.3f} ms, {shares[-1]:.2f} of the copy")
    out.goal(key, min(shares))


def align_loss(options: Options, out: Results) -> None:
    name = "kernels" if options.on_gpu else "dexcore"
    _bench(align, options, out, "align_share", lambda line: line["contender"] == name)


def directors(options: Options, out: Results) -> None:
    _bench(ema, options, out, "ema_share", lambda line: line["contender"] == "dexcore")


def whole_step(options: Options, out: Results) -> None:
    from bench import step

    for case in step.cases(options):
        for dtype in step.dtypes(options):
            for line in step.measure_case(case, dtype, options, measured_ceilings(options)):
                out.say(f"{case} {dtype_name(dtype)} {line['contender']}: {line['median'] * 1e3:.1f} ms", **line)


def tune(options: Options, out: Results) -> None:
    from bench import tune as tuning
    from dexcore.kernels.configs import Key, architecture_of

    key = Key(architecture_of(options.device), REFERENCE.width, 4 * REFERENCE.width, _BF16)
    found = tuning.tune(
        key, options.device, out.file.with_name("configs.json"), few=True, write=lambda line: out.write(**line)
    )
    for name, tile in found._asdict().items():
        out.say(f"{name}: {tuple(tile)}")


def tuned_layer(options: Options, out: Results) -> None:
    from dexcore.kernels import configs

    configs.TABLE_FILE = out.file.with_name("configs.json")
    layer_step(options, out, "tuned_")  # beside the page's goals: the graph's share counts there


STAGES = {
    "environment": environment,
    "compile": compile_kernels,
    "kernels": kernels,
    "ceilings": ceilings,
    "layer": layer_step,
    "graph": graph,
    "memory": memory,
    "align": align_loss,
    "ema": directors,
    "step": whole_step,
    "tune": tune,
    "tuned layer": tuned_layer,
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=30.0, help="its limit")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("PyTorch finds no CUDA or ROCm device here; --device cpu rehearses")
    device = torch.device("cuda") if given.device == "cuda" else CPU
    if device == CPU:
        torch.set_num_threads(1)
    seconds = 0.0 if given.quick else given.seconds / 8  # of timing; the rest is for checks and for what is made
    options = replace(Options(device, given.quick), seconds=seconds, compiled=False)
    STAGES[given.stage](options, Results(given.stage, given.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
