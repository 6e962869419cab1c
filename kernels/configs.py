"""Tile shapes of the GEMM kernels: a frozen table, never timed while a model trains.

What is measured stands in configs.json, which ``python -m bench.tune`` writes on a GPU; everything else follows a rule.
Both depend on the architecture, D, H and the dtype alone, never on batch or length: ranks and runs agree bit for bit.
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
_SMALLEST = 16  # tl.dot takes no less, on any side


class Gemm(NamedTuple):
    """A GEMM kernel's output tile, its step along K, and how Triton schedules it."""

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int

    def shared_memory(self, itemsize: int) -> int:
        """Bytes of the operands' tiles in all stages."""
        return self.stages * (self.block_m + self.block_n) * self.block_k * itemsize


class LayerConfig(NamedTuple):
    """The GEMM kernels of one layer. All that walk the experts' rows share one ``block_m``, the plan's.

    ``wgrad1`` is W1's [H, D] (block_m of H, block_n of D), ``wgrad2`` W2's [D, H]; their block_k is of rows.
    """

    up: Gemm
    down: Gemm
    dact: Gemm
    dx: Gemm
    wgrad1: Gemm
    wgrad2: Gemm


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
    index = torch.cuda.current_device() if device.index is None else device.index
    return _architecture(index)


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
def layer_config(architecture: str, width: int, hidden: int, dtype: torch.dtype) -> LayerConfig:
    """The measured tiles of a layer, or the rule's.

    Args:
        architecture: as `architecture_of` gives it.
        width: D.
        hidden: H.
        dtype: what the GEMMs' operands have: float32, float16 or bfloat16.

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
    return _measured().get(Key(architecture, width, hidden, dtype)) or _rule(architecture, width, hidden, dtype)


def _rule(architecture: str, width: int, hidden: int, dtype: torch.dtype) -> LayerConfig:
    largest = _largest(architecture, width % 16 == 0 and hidden % 16 == 0, dtype)

    def side(limit: int, size: int) -> int:
        return min(limit, max(_SMALLEST, triton.next_power_of_2(size)))

    def over_rows(columns: int, reduced: int) -> Gemm:
        return fitted(largest.block_m, side(largest.block_n, columns), side(largest.block_k, reduced))

    def fitted(block_m: int, block_n: int, block_k: int) -> Gemm:
        # As many elements a thread as the largest tile has, and four warps at least, which wgmma takes.
        warps = largest.warps * block_m * block_n // (largest.block_m * largest.block_n)
        return Gemm(block_m, block_n, block_k, max(min(4, largest.warps), warps), largest.stages)

    return LayerConfig(
        up=over_rows(hidden, width),
        down=over_rows(width, hidden),
        dact=over_rows(hidden, width),
        dx=over_rows(width, hidden),
        wgrad1=fitted(side(largest.block_m, hidden), side(largest.block_n, width), largest.block_k),
        wgrad2=fitted(side(largest.block_m, width), side(largest.block_n, hidden), largest.block_k),
    )


def _largest(architecture: str, aligned: bool, dtype: torch.dtype) -> Gemm:
    """The tile of a layer that is wide enough for any.

    Each is one of the largest that compile without spills for sm_80 and sm_90, in all activations. Where D or H is no
    multiple of 16, rows are not aligned, every element has a pointer of its own, and the pointers need the registers.
    """
    if architecture == INTERPRETER:
        return Gemm(32, 32, 32, 4, 1)
    if dtype == torch.float32:  # without tensor cores (precision "ieee") threads hold their operands too
        return Gemm(64, 64, 16, 4 if aligned else 8, 2)
    if not aligned:
        return Gemm(64, 32, 32, 4, 2)
    return Gemm(128, 128, 64, 8, 2 if architecture.startswith("gfx") else 3)


@functools.cache
def _measured() -> dict[Key, LayerConfig]:
    return read_table(TABLE_FILE)


def read_table(path: Path) -> dict[Key, LayerConfig]:
    """What `write_table` wrote.

    Raises:
        ValueError: an entry is there twice or cannot run; the message names it.
    """
    table: dict[Key, LayerConfig] = {}
    for entry in json.loads(path.read_text(encoding="utf-8")):
        fields = dict(entry)
        dtype = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}.get(fields.pop("dtype", ""))
        key = Key(*(fields.pop(name, None) for name in Key._fields[:3]), dtype)  # type: ignore[arg-type]
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
        if any(side < _SMALLEST or side & (side - 1) for side in gemm[:3]):
            raise ValueError(f"{name}: a tile's sides must be powers of two, {_SMALLEST} at least, got {gemm}")
        if gemm.warps not in (1, 2, 4, 8, 16) or gemm.stages < 1:
            raise ValueError(f"{name}: warps must be 1, 2, 4, 8 or 16 and stages at least 1, got {gemm}")
        needed, limit = gemm.shared_memory(key.dtype.itemsize), SHARED_MEMORY[key.architecture]
        if needed > limit:
            raise ValueError(f"{name}: {gemm} needs {needed} bytes of shared memory, {key.architecture} has {limit}")
