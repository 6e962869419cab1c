"""Time the GEMM kernels' tiles on this GPU, and write the fastest into kernels/configs.json.

    python -m bench.tune                                      # ViT-B's layers in bf16
    python -m bench.tune --layers 192x768 --dtypes float16    # one of them
    python -m bench.tune --dry-run                            # print, write nothing

Every candidate must compile without spills and agree with the rule's tile before it is timed. The four kernels over
the experts' rows get one block_m: that with the least time of all four. The paper's batch stands for all: the table
knows no batch. Hundreds of kernels are compiled first, as many at once as there are cores: a layer takes minutes. Each
is compiled once, and one that does not compile is not tried again.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path

import torch
import triton
from torch import Tensor
from triton.testing import do_bench

from bench.command import Line
from bench.contenders import EXPERTS, TOP_K
from bench.routings import routing
from bench.timing import machine, write_line
from dexcore.kernels.configs import (
    DTYPES,
    SHARED_MEMORY,
    TABLE_FILE,
    Gemm,
    Key,
    LayerConfig,
    UnsupportedDeviceError,
    architecture_of,
    layer_config,
    read_table,
    write_table,
)
from dexcore.kernels.expert_dact import expert_dact
from dexcore.kernels.expert_down import expert_down, expert_dx
from dexcore.kernels.expert_up import expert_up
from dexcore.kernels.expert_wgrad import expert_wgrad
from dexcore.kernels.launch import compiling
from dexcore.kernels.plan import make_plan

LAYERS = ((768, 3072),)
IMAGES, TOKENS = 224, 65
OVER_ROWS = ("up", "down", "dact", "dx")
NO_GPU = 2  # exit code

# Largest difference from the rule's result over its root mean square: a rounding apart, where sums have other orders.
_BOUND = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}

Times = dict[str, dict[Gemm, float]]  # kernel -> tile -> milliseconds
Broken = dict[tuple[str, Gemm], str]  # kernel and tile -> why it does not compile
Call = Callable[[Gemm], list[Tensor]]


def candidates(key: Key, few: bool = False) -> list[Gemm]:
    """Tiles worth compiling: 16 to 128 elements a thread, within the shared memory; ``few``: the likeliest."""
    single = key.dtype == torch.float32
    rows, columns = ((32, 64, 128), (32, 64, 128)) if single else ((64, 128, 256), (64, 128, 256))
    tiles = [
        Gemm(*numbers) for numbers in product(rows, columns, (16, 32) if single else (32, 64), (4, 8), (1, 2, 3, 4))
    ]
    deepest = max(tile.block_k for tile in tiles)
    widest = max(16, triton.next_power_of_2(max(key.width, key.hidden)))
    return [
        tile
        for tile in tiles
        if 16 <= tile.block_m * tile.block_n // (32 * tile.warps) <= 128
        and not (few and (tile.block_k < deepest or tile.stages < 3 or tile.block_m < 128))
        and tile.shared_memory(key.dtype.itemsize) <= SHARED_MEMORY[key.architecture]
        and max(tile.block_n, tile.block_k) <= widest
    ]


def kernels(
    key: Key, device: torch.device, sizes: Iterable[int], images: int = IMAGES, tokens: int = TOKENS
) -> dict[str, Call]:
    """A training step's GEMMs by `LayerConfig`'s names, each to be called with a tile whose block_m is in ``sizes``."""
    generator = torch.Generator(device).manual_seed(0)
    _, width, hidden, dtype = key
    rows = images * TOP_K * tokens

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=generator, device=device) * scale).to(dtype)

    gates, indices = (t.to(device) for t in routing("uniform", images, EXPERTS, TOP_K))
    plans = {size: make_plan(indices, EXPERTS, tokens, size) for size in sizes}
    any_plan = next(iter(plans.values()))  # the weight gradients do not use its tiles
    x, dy = normal(images, tokens, width), normal(images, tokens, width)
    z, wa = normal(rows, hidden), normal(rows, hidden)
    w1, b1 = normal(EXPERTS, hidden, width, scale=width**-0.5), normal(EXPERTS, hidden)
    w2, b2 = normal(EXPERTS, width, hidden, scale=hidden**-0.5), normal(EXPERTS, width)
    director_a = normal(images * tokens, hidden)
    up_director, down_director = (w1[0].clone(), b1[0].clone()), (director_a, w2[0].clone(), b2[0].clone())
    flat_x, flat_dy = x.view(-1, width), dy.view(-1, width)

    def up(tile: Gemm) -> list[Tensor]:
        plan = plans[tile.block_m]
        results = expert_up(x, w1, b1, gates, plan, "gelu", "ieee", tile, keep_z=True, director=up_director)
        return [t for t in results if t is not None]

    def down(tile: Gemm) -> list[Tensor]:
        plan = plans[tile.block_m]
        results = expert_down(wa, w2, b2, gates, plan, "ieee", tile, director=down_director)
        return [t for t in results if t is not None]

    def dact(tile: Gemm) -> list[Tensor]:
        plan = plans[tile.block_m]
        return [expert_dact(dy, w2, z, gates, plan, "gelu", "ieee", tile, keep_a=False)[0]]

    def dx(tile: Gemm) -> list[Tensor]:
        return [expert_dx(z, w1, plans[tile.block_m], "ieee", tile)]

    def wgrad1(tile: Gemm) -> list[Tensor]:
        return [
            expert_wgrad(z, flat_x, any_plan, torch.float32, "ieee", tile, left_by_image=False, right_by_image=True)
        ]

    def wgrad2(tile: Gemm) -> list[Tensor]:
        return [
            expert_wgrad(flat_dy, wa, any_plan, torch.float32, "ieee", tile, left_by_image=True, right_by_image=False)
        ]

    return {"up": up, "down": down, "dact": dact, "dx": dx, "wgrad1": wgrad1, "wgrad2": wgrad2}


def compile_ahead(calls: dict[str, Call], rule: LayerConfig, tiles: list[Gemm]) -> tuple[float, Broken]:
    """Compile in parallel all that `time_all` will run; seconds, and what does not compile."""
    began = time.perf_counter()
    made: dict[tuple[str, Gemm], list] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool, triton.AsyncCompileMode(pool, ignore_errors=True):
        for name, call in calls.items():
            for tile in dict.fromkeys((getattr(rule, name), *tiles)):
                with compiling(made.setdefault((name, tile), []).append):
                    call(tile)
    broken: Broken = {}
    for which, compiled in made.items():
        try:
            for kernel in compiled:
                if hasattr(kernel, "result"):  # it was compiled by the pool: its error is raised here
                    kernel.result()
        except (RuntimeError, triton.runtime.errors.TritonError) as error:
            broken[which] = _first_line(error)
    return time.perf_counter() - began, broken


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def spills(call: Call, tile: Gemm) -> int:
    """Registers that the call's kernels spill, without launching them."""
    compiled: list = []
    with compiling(compiled.append):
        call(tile)
    for kernel in compiled:
        kernel._init_handles()  # loads it; only then its registers are known
    return max(kernel.n_spills for kernel in compiled)


def milliseconds(call: Call, tile: Gemm) -> float:
    """Median time, caches cold."""
    return do_bench(lambda: call(tile), return_mode="median")


def fault(call: Call, tile: Gemm, expected: list[Tensor], bound: float) -> str:
    """Why a tile is not to be timed; empty if it is."""
    try:
        spilled = spills(call, tile)
        if spilled:
            return f"spills {spilled} registers"
        results = call(tile)
    except (RuntimeError, triton.runtime.errors.TritonError) as error:
        return f"does not run: {_first_line(error)}"
    for result, want in zip(results, expected, strict=True):
        error = (result.double() - want.double()).abs().max() / want.double().square().mean().sqrt()
        if not error <= bound:
            return f"is wrong: differs from the rule's result by {error:.2g}, allowed {bound:.2g}"
    return ""


def time_all(calls: dict[str, Call], rule: LayerConfig, tiles: list[Gemm], bound: float, broken: Broken) -> Times:
    """Each kernel's time with the rule's tile and with every sound candidate; what is ``broken`` is not called."""
    times: Times = {}
    for name, call in calls.items():
        own = getattr(rule, name)
        expected, times[name] = call(own), {}
        for tile in dict.fromkeys((own, *tiles)):
            reason = broken.get((name, tile)) and f"does not compile: {broken[name, tile]}"
            reason = reason or fault(call, tile, expected, bound)
            if reason:
                print(f"  {name} {tuple(tile)} {reason}", flush=True)
            else:
                times[name][tile] = milliseconds(call, tile)
        if not times[name]:
            raise RuntimeError(f"{name}: no tile compiles, runs and agrees with the rule's; nothing was written")
    return times


def fastest(times: Times) -> LayerConfig:
    """The fastest tile of every kernel, with one block_m for those over the experts' rows."""

    def best(name: str, block_m: int | None = None) -> Gemm:
        return min((t for t in times[name] if block_m in (None, t.block_m)), key=times[name].__getitem__)

    shared = set.intersection(*({tile.block_m for tile in times[name]} for name in OVER_ROWS))
    if not shared:
        raise RuntimeError("no block_m is left that up, down, dact and dx can all use; nothing was written")
    block_m = min(sorted(shared), key=lambda m: sum(times[name][best(name, m)] for name in OVER_ROWS))
    return LayerConfig(*(best(name, block_m if name in OVER_ROWS else None) for name in LayerConfig._fields))


def tune(
    key: Key,
    device: torch.device,
    table_file: Path | None,
    few: bool = False,
    write: Callable[[Line], None] | None = None,
) -> LayerConfig:
    """Time a layer's kernels, print what was found, and put it into the table and, by ``write``, the results."""
    rule = layer_config(*key)
    tiles = candidates(key, few)
    calls = kernels(key, device, sorted({tile.block_m for tile in (*rule, *tiles)}))
    seconds, broken = compile_ahead(calls, rule, tiles)
    print(f"  compiled in {seconds:.0f} s", flush=True)
    times = time_all(calls, rule, tiles, _BOUND[key.dtype], broken)
    found = fastest(times)
    line = {"bench": "tune", **machine(device), **key._asdict(), "dtype": str(key.dtype).removeprefix("torch.")}
    for name in LayerConfig._fields:
        before, after = (times[name].get(getattr(config, name)) for config in (rule, found))
        print(f"  {name:7} {after:8.4f} ms {tuple(getattr(found, name))}; before {before or float('nan'):8.4f} ms")
        line[name] = {"ms": after, "tile": getattr(found, name), "before_ms": before, "before": getattr(rule, name)}
    if table_file is not None:
        write_table(table_file, read_table(table_file) | {key: found})
        (write or partial(write_line, "tune"))(line)
    return found


def _layer(text: str) -> tuple[int, int]:
    width, _, hidden = text.partition("x")
    if not (width.isdigit() and hidden.isdigit() and int(width) and int(hidden)):
        raise argparse.ArgumentTypeError(f"a layer is DxH, as 768x3072, got {text!r}")
    return int(width), int(hidden)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [str(dtype).removeprefix("torch.") for dtype in DTYPES]
    parser.add_argument("--layers", type=_layer, nargs="+", default=LAYERS, help="DxH ... (default: 768x3072, ViT-B)")
    parser.add_argument("--dtypes", choices=names, nargs="+", default=["bfloat16"], help="(default: bfloat16)")
    parser.add_argument("--few", action="store_true", help="the likeliest tiles alone: a minute a layer")
    parser.add_argument("--dry-run", action="store_true", help="print what is fastest, write nothing")
    options = parser.parse_args(arguments)
    device = torch.device("cuda")
    try:
        if not torch.cuda.is_available():
            raise UnsupportedDeviceError("PyTorch finds no CUDA or ROCm device here")
        architecture = architecture_of(device)
        if architecture not in SHARED_MEMORY:
            raise UnsupportedDeviceError("the interpreter is on: unset TRITON_INTERPRET")
    except UnsupportedDeviceError as error:
        print(f"bench.tune times kernels on a GPU, and cannot: {error}. The rule in kernels/configs.py is used.")
        return NO_GPU
    for name, (width, hidden) in product(options.dtypes, options.layers):
        key = Key(architecture, width, hidden, getattr(torch, name))
        print(f"{architecture} {width}x{hidden} {name}", flush=True)
        tune(key, device, None if options.dry_run else TABLE_FILE, options.few)
    return 0


if __name__ == "__main__":
    sys.exit(main())
