"""Tile shapes of the GEMM kernels: a frozen table, never timed while a model trains.

What is measured stands in configs.json, which ``python -m bench.tune`` writes on a GPU; everything else follows a rule.
Both depend on the architecture, D, H and the dtype alone, never on batch or length.
"""

import functools
import json
from pathlib import Path
from typing import NamedTuple

import torch
import triton

from dexcore.kernels.numerics import INTERPRETED

TABLE_FILE = Path(__file__).with_name("configs.json")
INTERPRETER = "interpreter"
# Bytes of shared memory a program may have. Triton does not check the limit for AMD's.
SHARED_MEMORY = {
    "sm_80": 163 * 1024,
    "sm_86": 99 * 1024,
    "sm_89": 99 * 1024,
    "sm_90": 227 * 1024,
    "sm_100": 227 * 1024,
    "gfx942": 64 * 1024,
}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Of an architecture's largest chip, where no device is at hand: else `multiprocessors_of` asks that.
MULTIPROCESSORS = {"sm_80": 108, "sm_86": 84, "sm_89": 142, "sm_90": 132, "sm_100": 148, "gfx942": 304, INTERPRETER: 4}
EPILOGUE_PARTS = 4  # of the columns of `expert_up`'s accumulator, which it writes one after the other
_WITH_DESCRIPTORS = ("sm_90", "sm_100", INTERPRETER)
_SMALLEST = 16  # tl.dot takes no less, on any side


class Gemm(NamedTuple):
    """A GEMM kernel's output tile, its step along K, how Triton schedules it, and whether operands have descriptors."""

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int
    described: bool = False

    def shared_memory(self, itemsize: int) -> int:
        """Bytes of the operands' tiles in all stages."""
        return self.stages * (self.block_m + self.block_n) * self.block_k * itemsize


class LayerConfig(NamedTuple):
    """The GEMM kernels of one layer. All that walk the experts' rows share one ``block_m``, the plan's.

    ``wgrad`` is of both weights' gradients, [H, D] and [D, H]; its block_k is of rows, and divides the plan's block_m.
    """

    up: Gemm
    down: Gemm
    dact: Gemm
    dx: Gemm
    wgrad: Gemm


class Key(NamedTuple):
    """What a layer's tiles depend on."""

    architecture: str
    width: int
    hidden: int
    dtype: torch.dtype


class UnsupportedDeviceError(RuntimeError):
    """The kernels do not run on a device; the message says why."""


def architecture_of(device: torch.device | str) -> str:
    """ "sm_90", "gfx942", ...; "interpreter" where Triton's interpreter is on.

    Raises:
        UnsupportedDeviceError: no GPU, or one of another architecture.
    """
    if INTERPRETED.value:
        return INTERPRETER
    device = torch.device(device)
    if device.type != "cuda":
        raise UnsupportedDeviceError(
            f"the Triton kernels run on CUDA and ROCm devices, or anywhere under TRITON_INTERPRET=1; got {device.type}"
        )
    return _architecture(_index(device))


def multiprocessors_of(device: torch.device | str) -> int:
    """Of a device that `architecture_of` takes; a MIG slice has its own."""
    if INTERPRETED.value:
        return MULTIPROCESSORS[INTERPRETER]
    return _multiprocessors(_index(torch.device(device)))


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


@functools.cache
def _multiprocessors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


@functools.cache
def _architecture(index: int) -> str:
    properties = torch.cuda.get_device_properties(index)
    if torch.version.hip:
        name = properties.gcnArchName.split(":")[0]
    else:
        name = f"sm_{properties.major}{properties.minor}"
    if name not in SHARED_MEMORY:
        raise UnsupportedDeviceError(
            f"the Triton kernels support {', '.join(SHARED_MEMORY)}; cuda:{index} ({properties.name}) is {name}"
        )
    return name


@functools.cache
def layer_config(
    architecture: str, width: int, hidden: int, dtype: torch.dtype, precision: str = "ieee"
) -> LayerConfig:
    """The measured tiles of a layer, or the rule's.

    Args:
        architecture: as `architecture_of` gives it.
        width: D.
        hidden: H.
        dtype: what the GEMMs' operands have: float32, float16 or bfloat16.
        precision: of float32 dot products.

    Raises:
        ValueError: no such architecture or dtype, or a width below 1.
    """
    if architecture != INTERPRETER and architecture not in SHARED_MEMORY:
        known = ", ".join((*SHARED_MEMORY, INTERPRETER))
        raise ValueError(f"architecture must be one of {known}, got {architecture!r}")
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(map(str, DTYPES))}, got {dtype}")
    if width < 1 or hidden < 1:
        raise ValueError(f"width and hidden must be at least 1, got {width} and {hidden}")
    config = _measured().get(Key(architecture, width, hidden, dtype)) or _rule(architecture, width, hidden, dtype)
    if dtype == torch.float32 and precision == "ieee" and architecture != INTERPRETER:
        # Without tensor cores operands go from shared memory through registers, and spill: 173 instructions of dx.
        config = LayerConfig(*(gemm._replace(described=False) for gemm in config))
    return config


def _rule(architecture: str, width: int, hidden: int, dtype: torch.dtype) -> LayerConfig:
    aligned = width % 16 == 0 and hidden % 16 == 0
    wide = _wide(architecture, aligned, dtype)
    tiles = LayerConfig(
        up=_fitted(wide.up, columns=hidden, reduced=width),
        down=_fitted(wide.down, columns=width, reduced=hidden),
        dact=_fitted(wide.dact, columns=hidden, reduced=width),
        dx=_fitted(wide.dx, columns=width, reduced=hidden),
        wgrad=_fitted(wide.wgrad, rows=min(width, hidden), columns=min(width, hidden)),
    )
    if architecture == "sm_90" and aligned and dtype != torch.float32:
        tiles = _broadened(tiles, width, hidden)
    described = can_describe(architecture, width, hidden, dtype, tiles)
    return LayerConfig(*(gemm._replace(described=described) for gemm in tiles))


def can_describe(architecture: str, width: int, hidden: int, dtype: torch.dtype, tiles: LayerConfig) -> bool:
    """Whether a layer's operands may have tensor descriptors.

    Rows of matrices and of tiles have to be whole numbers of 16 bytes, and those of matrices of steps along K: a
    descriptor knows where the weights of all experts end, not those of one, and the next one's Inf times the zeros
    beyond K would be NaN.
    """
    steps = max(tiles.up.block_k, tiles.down.block_k, tiles.dact.block_k, tiles.dx.block_k, 16 // dtype.itemsize)
    narrowest = tiles.up.block_n // EPILOGUE_PARTS * dtype.itemsize
    fits = width % steps == 0 and hidden % steps == 0 and narrowest >= 16
    return architecture in _WITH_DESCRIPTORS and fits


def _broadened(tiles: LayerConfig, width: int, hidden: int) -> LayerConfig:
    """Twice the columns on Hopper, for the kernels with short epilogues of a layer that fills the chip.

    A prediction, not measured: 128 x 128 does 2 * 128 * 128 / (2 * (128 + 128)) = 64 FLOPs for each byte of bf16 that
    it reads from the second-level cache, 128 x 256 does 85. At 570 TFLOP/s that is 8.9 and 6.7 TB/s, of the 5.5 to 7
    that an H100's cache may give. ``up`` and ``dact`` stay: there two programs share a multiprocessor, so that one's
    epilogue runs beside the other's dot products. Broad tiles have a multiprocessor to themselves, and where they are
    few it idles: hence at least half a chip's worth of them in one expert's weights, and none that is partly empty.
    """
    broad = Gemm(128, 256, 64, 8, 4)
    if width * hidden < broad.block_m * broad.block_n * MULTIPROCESSORS["sm_90"] // 2:
        return tiles
    if width % broad.block_n == 0:
        tiles = tiles._replace(down=broad, dx=broad)
        if hidden % broad.block_n == 0:
            tiles = tiles._replace(wgrad=broad)
    return tiles


def _fitted(tile: Gemm, *, columns: int, rows: int | None = None, reduced: int | None = None) -> Gemm:
    """No side longer than a small layer's; warps for as many elements a thread, and four at least, as wgmma takes."""

    def side(limit: int, size: int | None) -> int:
        return limit if size is None else min(limit, max(_SMALLEST, triton.next_power_of_2(size)))

    block_m, block_n = side(tile.block_m, rows), side(tile.block_n, columns)
    warps = tile.warps * block_m * block_n // (tile.block_m * tile.block_n)
    return Gemm(block_m, block_n, side(tile.block_k, reduced), max(min(4, tile.warps), warps), tile.stages)


def _wide(architecture: str, aligned: bool, dtype: torch.dtype) -> LayerConfig:
    """The tiles of a layer that is wide enough for any.

    Each compiles without stack or spills for sm_80 and sm_90, in all activations and all precisions of float32. Where
    D or H is no multiple of 16, rows are not aligned, every element has a pointer of its own, and the pointers need
    the registers. Precision "ieee" has no tensor cores: there threads hold the operands too.
    """
    if architecture == INTERPRETER:
        return _layer(Gemm(32, 32, 32, 4, 1))
    if dtype == torch.float32 and aligned:
        rows = Gemm(128, 64, 32, 8, 3)
        tiles = _layer(rows, up=rows._replace(block_k=16), dact=Gemm(128, 64, 16, 8, 2), wgrad=Gemm(128, 128, 16, 8, 3))
    elif dtype == torch.float32:
        tiles = _layer(Gemm(64, 64, 16, 8, 2), wgrad=Gemm(64, 64, 16, 4, 2))
    elif aligned:
        tile = Gemm(128, 128, 64, 8, 3)
        # The longest loops by far, and sm_80 has room for a fourth stage.
        tiles = _layer(tile, wgrad=tile._replace(stages=4) if architecture == "sm_80" else tile)
    else:
        tiles = _layer(Gemm(64, 64, 32, 4, 2))
    if architecture.startswith("gfx"):
        # 64 KiB of shared memory. Eight warps of 64 threads would exchange up's quarters through all of it.
        tiles = LayerConfig(*(tile._replace(stages=2) for tile in tiles))
        tiles = tiles._replace(up=tiles.up._replace(warps=4))
    return tiles


def _layer(rows: Gemm, *, up: Gemm | None = None, dact: Gemm | None = None, wgrad: Gemm | None = None) -> LayerConfig:
    """``rows`` for all that nothing else is given for."""
    return LayerConfig(up or rows, rows, dact or rows, rows, wgrad or rows)


@functools.cache
def _measured() -> dict[Key, LayerConfig]:
    return read_table(TABLE_FILE)


def read_table(path: Path) -> dict[Key, LayerConfig]:
    """What `write_table` wrote.

    Raises:
        ValueError: an entry is there twice, is of kernels that are gone, or cannot run; the message names it.
    """
    table: dict[Key, LayerConfig] = {}
    for entry in json.loads(path.read_text(encoding="utf-8")):
        fields = dict(entry)
        dtype = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}.get(fields.pop("dtype", ""))
        key = Key(*(fields.pop(name, None) for name in Key._fields[:3]), dtype)  # type: ignore[arg-type]
        if {"wgrad1", "wgrad2"} & fields.keys():
            raise ValueError(
                f"{path.name}: {key} has tiles for wgrad1 and wgrad2, which are one kernel now, wgrad: tune again with "
                "`python -m bench.tune`"
            )
        if None in key or fields.keys() != set(LayerConfig._fields):
            raise ValueError(f"{path.name}: incomplete or unknown fields in {entry}")
        if key in table:
            raise ValueError(f"{path.name}: {key} is there twice")
        table[key] = LayerConfig(**{name: Gemm(*numbers) for name, numbers in fields.items()})
        try:
            check(key, table[key])
        except ValueError as error:
            raise ValueError(f"{path.name}: {key}: {error}") from error
    return table


def write_table(path: Path, table: dict[Key, LayerConfig]) -> None:
    """A line an entry, in the keys' order."""
    lines = []
    for key, config in sorted(table.items(), key=lambda item: (*item[0][:3], str(item[0].dtype))):
        check(key, config)
        name = str(key.dtype).removeprefix("torch.")
        lines.append(json.dumps({**key._asdict(), "dtype": name, **config._asdict()}))
    path.write_text("[" + ",".join("\n  " + line for line in lines) + "\n]\n", encoding="utf-8")


def check(key: Key, config: LayerConfig) -> None:
    """Raise ValueError unless a layer's kernels can be launched so."""
    if key.architecture not in SHARED_MEMORY:
        raise ValueError(f"architecture must be one of {', '.join(SHARED_MEMORY)}, got {key.architecture!r}")
    if key.dtype not in DTYPES or key.width < 1 or key.hidden < 1:
        raise ValueError("a layer has D and H of at least 1 and one of the kernels' dtypes")
    if len({config.up.block_m, config.down.block_m, config.dact.block_m, config.dx.block_m}) > 1:
        raise ValueError("up, down, dact and dx must share one block_m: they walk the rows of one plan")
    for name, gemm in config._asdict().items():
        if name == "wgrad" and config.up.block_m % gemm.block_k:
            raise ValueError(f"wgrad: block_k must divide the other kernels' block_m, got {gemm}")
        if any(side < _SMALLEST or side & (side - 1) for side in gemm[:3]):
            raise ValueError(f"{name}: a tile's sides must be powers of two, {_SMALLEST} at least, got {gemm}")
        if gemm.warps not in (1, 2, 4, 8, 16) or gemm.stages < 1:
            raise ValueError(f"{name}: warps must be 1, 2, 4, 8 or 16 and stages at least 1, got {gemm}")
        needed, limit = gemm.shared_memory(key.dtype.itemsize), SHARED_MEMORY[key.architecture]
        if gemm.described and not can_describe(key.architecture, key.width, key.hidden, key.dtype, config):
            raise ValueError(f"{name}: {key} cannot have tensor descriptors, got {gemm}")
        if needed > limit:
            raise ValueError(f"{name}: {gemm} needs {needed} bytes of shared memory, {key.architecture} has {limit}")
