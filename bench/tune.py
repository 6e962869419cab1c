"""Time the GEMM kernels' tiles on this GPU, and write the fastest into kernels/configs.json.

    python -m bench.tune                                      # ViT-B's layers in bf16
    python -m bench.tune --layers 192x768 --dtypes float16    # one of them
    python -m bench.tune --dry-run                            # print, write nothing

Every candidate must compile without spills and agree with the rule's tile before it is timed. Operands have tensor
descriptors where the layer can have them; the rule's tiles are timed by pointers too. The four kernels over the
experts' rows get one block_m: that with the least time of all kernels, the weight gradients' block_k dividing it. The
paper's batch stands for all: the table knows no batch. Hundreds of kernels are compiled first, as many at once as there
are cores: a layer takes minutes. Each is compiled once, and one that does not compile is not tried again.
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
from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
from torch import Tensor
from triton.testing import do_bench

from bench.command import Line
from bench.contenders import EXPERTS, TOP_K
from bench.kernel_cases import PlainRows
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
    can_describe,
    layer_config,
    multiprocessors_of,
    read_table,
    write_table,
)
from dexcore.kernels.expert_dact import expert_dact
from dexcore.kernels.expert_down import expert_down, expert_dx
from dexcore.kernels.expert_order import Input
from dexcore.kernels.expert_up import expert_up
from dexcore.kernels.expert_wgrad import Product, expert_wgrad
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


class Call(NamedTuple):
    """A kernel, to be called with a tile."""

    run: Callable[[Gemm], list[Tensor]]
    tokens: Callable[[Gemm, list[Tensor]], list[Tensor]] = lambda tile, results: results  # what all tiles have alike

    def __call__(self, tile: Gemm) -> list[Tensor]:
        return self.run(tile)


def candidates(key: Key, few: bool = False) -> list[Gemm]:
    """Tiles worth compiling: 16 to 128 elements a thread, within the shared memory; ``few``: the likeliest.

    With descriptors where the layer can have them.
    """
    single = key.dtype == torch.float32
    rows, columns = ((32, 64, 128), (32, 64, 128)) if single else ((64, 128, 256), (64, 128, 256))
    tiles = [
        Gemm(*numbers) for numbers in product(rows, columns, (16, 32) if single else (32, 64), (4, 8), (1, 2, 3, 4))
    ]
    deepest = max(tile.block_k for tile in tiles)
    widest = max(16, triton.next_power_of_2(max(key.width, key.hidden)))
    # By the deepest step: then any of them may stand beside any other in one layer.
    stepping = tiles[0]._replace(block_k=deepest)
    described = can_describe(*key, LayerConfig(*[stepping] * len(LayerConfig._fields)))
    return [
        tile._replace(described=described)
        for tile in tiles
        if 16 <= tile.block_m * tile.block_n // (32 * tile.warps) <= 128
        and not (few and (tile.block_k < deepest or tile.stages < 3 or tile.block_m < 128))
        and tile.shared_memory(key.dtype.itemsize) <= SHARED_MEMORY[key.architecture]
        and max(tile.block_n, tile.block_k) <= widest
    ]


class _Operands:
    """What a step's GEMMs read, in the expert order of one plan; the tokens are the same for all."""

    def __init__(self, tokens: "_Tokens", block_m: int) -> None:
        images, _, length = tokens.wa.shape[:3]
        self.plan, _ = make_plan(tokens.indices, EXPERTS, length, block_m)
        rows = PlainRows(tokens.indices, tokens.gates, EXPERTS, length, block_m).rows.flatten()
        self.rows, self.images = rows, images * length

        def ordered(by_slot: Tensor) -> Tensor:
            """[B, k, N, .] to [rows, .], zeros where a row has no token."""
            made = by_slot.new_zeros((self.plan.rows, by_slot.shape[3]))
            made[rows] = by_slot.flatten(0, 2)
            return made

        def of_images(by_image: Tensor) -> Tensor:
            """[B, N, .] to whole tiles."""
            return F.pad(by_image.flatten(0, 1), (0, 0, 0, -self.images % block_m))

        def twice(by_image: Tensor) -> Tensor:
            return by_image.unsqueeze(1).expand(-1, TOP_K, -1, -1)

        gates = ordered(tokens.gates[:, :, None, None].expand(-1, -1, length, 1)).flatten()
        self.x = Input(ordered(twice(tokens.x)), gates, of_images(tokens.x))
        self.dy, self.z, self.wa = ordered(twice(tokens.dy)), ordered(tokens.z), ordered(tokens.wa)
        self.director_a = of_images(tokens.director_a)


class _Tokens(NamedTuple):
    """Drawn: by image [B, N, .] or slot [B, k, N, .]."""

    gates: Tensor
    indices: Tensor
    x: Tensor
    dy: Tensor
    director_a: Tensor
    z: Tensor
    wa: Tensor


def kernels(
    key: Key, device: torch.device, sizes: Iterable[int], images: int = IMAGES, tokens: int = TOKENS
) -> dict[str, Call]:
    """A training step's GEMMs by `LayerConfig`'s names, each to be called with a tile.

    ``sizes`` are the block_m that tiles over the experts' rows may have; the weight gradients' rows are padded to the
    first, which their block_k has to divide.
    """
    generator = torch.Generator(device).manual_seed(0)
    _, width, hidden, dtype = key

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=generator, device=device) * scale).to(dtype)

    gates, indices = (t.to(device) for t in routing("uniform", images, EXPERTS, TOP_K))
    by_image = [normal(images, tokens, columns) for columns in (width, width, hidden)]
    drawn = _Tokens(gates, indices, *by_image, *(normal(images, TOP_K, tokens, hidden) for _ in range(2)))
    made = {block_m: _Operands(drawn, block_m) for block_m in sizes}
    # The kernels are given weights in the dtype of the products, and biases as they are, in float32.
    w1, b1 = normal(EXPERTS, hidden, width, scale=width**-0.5), normal(EXPERTS, hidden).float()
    w2, b2 = normal(EXPERTS, width, hidden, scale=hidden**-0.5), normal(EXPERTS, width).float()
    up_director, down_director = (w1[0].clone(), b1[0].clone()), (w2[0].clone(), b2[0].clone())

    def up(tile: Gemm) -> list[Tensor]:
        given = made[tile.block_m]
        settings = {"keep_z": True, "director": up_director}
        results = expert_up(given.x, w1, b1, given.plan, "gelu", "ieee", tile, **settings)
        return [t for t in results if t is not None]

    def down(tile: Gemm) -> list[Tensor]:
        given = made[tile.block_m]
        director = given.director_a, *down_director
        results = expert_down(given.wa, w2, b2, given.x.gates, given.plan, "ieee", tile, director=director)
        return [t for t in results if t is not None]

    def dact(tile: Gemm) -> list[Tensor]:
        given = made[tile.block_m]
        operands = given.dy, w2, given.z, given.x.gates, given.plan
        dz, _, gate_parts = expert_dact(*operands, "gelu", "ieee", tile, keep_a=False)
        return [dz, gate_parts]

    def dx(tile: Gemm) -> list[Tensor]:
        given = made[tile.block_m]
        return [expert_dx(given.z, w1, given.plan, "ieee", tile)]

    def wgrad(tile: Gemm) -> list[Tensor]:
        given = next(iter(made.values()))
        products = Product(given.z, given.x.rows), Product(given.dy, given.wa)
        settings = tile, multiprocessors_of(device)
        results = expert_wgrad(*products, given.plan, torch.float32, "ieee", *settings, bias=True)
        return [t for t in results if t is not None]

    def rows_and_director(tile: Gemm, results: list[Tensor]) -> list[Tensor]:
        given = made[tile.block_m]
        return [t[given.rows] for t in results[:-1]] + [results[-1][: given.images]]

    def rows_and_gates(tile: Gemm, results: list[Tensor]) -> list[Tensor]:
        dz, gate_parts = results
        return [dz[made[tile.block_m].rows], gate_parts[:, made[tile.block_m].rows].sum(0)]

    def all_rows(tile: Gemm, results: list[Tensor]) -> list[Tensor]:
        return [t[made[tile.block_m].rows] for t in results]

    return {
        "up": Call(up, rows_and_director),
        "down": Call(down, rows_and_director),
        "dact": Call(dact, rows_and_gates),
        "dx": Call(dx, all_rows),
        "wgrad": Call(wgrad),
    }


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
        results = call.tokens(tile, call(tile))
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
        expected, times[name] = call.tokens(own, call(own)), {}
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

    def best(name: str, block_m: int) -> Gemm | None:
        """Of the tiles that a plan of ``block_m`` allows."""
        fitting = [t for t in times[name] if (t.block_m == block_m if name in OVER_ROWS else block_m % t.block_k == 0)]
        return min(fitting, key=times[name].__getitem__, default=None)

    found = {}
    for block_m in sorted({tile.block_m for tile in times["up"]}):
        tiles = {name: tile for name in LayerConfig._fields if (tile := best(name, block_m))}
        if len(tiles) == len(LayerConfig._fields):
            found[LayerConfig(**tiles)] = sum(times[name][tile] for name, tile in tiles.items())
    if not found:
        raise RuntimeError("no block_m is left that up, down, dact, dx and wgrad can all use; nothing was written")
    return min(found, key=found.__getitem__)


def tune(
    key: Key,
    device: torch.device,
    table_file: Path | None,
    few: bool = False,
    write: Callable[[Line], None] | None = None,
) -> LayerConfig:
    """Time a layer's kernels, print what was found, and put it into the table and, by ``write``, the results."""
    rule = layer_config(*key)
    tiles = [*candidates(key, few), *(tile._replace(described=False) for tile in rule)]
    calls = kernels(key, device, dict.fromkeys(tile.block_m for tile in (rule.up, *tiles)))
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
