"""Compile what one launcher call launches, without a GPU, and write down what it takes: an edge of bench.resources.

    python -m bench.compile_entry OUT.json "expert_up sm_90 bf16 768x3072 gelu z wa director" ...

The launchers themselves are called, on CPU tensors of the real shape that nobody touches, so that the code compiled
is the code that runs, Triton's specializations on divisibility included. Beside OUT.json stands OUT.json.d, the files
that the result depends on, for ninja; of configs.py what it says for the entry is a part of ninja's command instead.
"""

import importlib
import json
import re
import subprocess
import sys
import tempfile
import types
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

ROOT = Path(__file__).resolve().parents[1]

if "dexcore" not in sys.modules:
    # The package without its models: a third of the time that a small kernel takes.
    package = types.ModuleType("dexcore")
    package.__path__ = [str(ROOT / "dexcore"), str(ROOT)]
    sys.modules["dexcore"] = package

from bench import assembly  # noqa: E402
from dexcore.kernels import configs, plan, route  # noqa: E402
from dexcore.kernels.expert_order import Input  # noqa: E402
from dexcore.kernels.expert_wgrad import Product  # noqa: E402
from dexcore.kernels.launch import compiling  # noqa: E402

IMAGES, TOKENS, EXPERTS, TOP_K = 224, 65, 8, 2
MANY_EXPERTS = 256
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# A launcher's file is imported when it is needed, so that an entry depends on no other's.
HOMES = {
    "make_plan": "plan",
    "route_forward": "route",
    "route_gradients": "route",
    "route_backward": "route",
    "expert_load": "route",
    "input_rows": "expert_order",
    "gradient_rows": "expert_order",
    "expert_up": "expert_up",
    "expert_down": "expert_down",
    "expert_dx": "expert_down",
    "expert_dact": "expert_dact",
    "expert_wgrad": "expert_wgrad",
    "mix_align_forward": "mix_align",
    "align_forward": "mix_align",
    "align_backward": "mix_align",
    "sum_slots": "mix_align",
    "gate_and_bias_gradients": "bias_gradients",
    "group_ema": "group_ema",
    "cast_all": "cast",
}


class _Machine:
    """As much of a Triton driver as compiling asks for."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        # Triton keeps what it compiled by device, whatever its target.
        return list(TARGETS.values()).index(self.target)

    def get_current_stream(self, device: int) -> int:
        return 0

    def is_active(self) -> bool:
        return True


def layer_tiles(entry: str) -> configs.LayerConfig:
    """The tiles that an entry is compiled with."""
    _, architecture, precision, shape, *_ = entry.split()
    width, hidden = map(int, shape.split("x"))
    dtype, _, precision = precision.partition("-")
    return configs.layer_config(architecture, width, hidden, DTYPES[dtype], precision or "ieee")


class Layer:
    """The tensors of one DEX layer in training under autocast.

    Parameters, the biases among them, their gradients, gates, and the layer's input and its gradient are float32; all
    else, the copies of weights that the experts' kernels are given among it, has the compute dtype. With "half-x" the
    input, too.
    """

    def __init__(self, entry: str) -> None:
        _, self.architecture, precision, shape, *options = entry.split()
        dtype, _, self.precision = precision.partition("-")
        self.precision = self.precision or "ieee"
        self.dtype = DTYPES[dtype]
        self.width, self.hidden = map(int, shape.split("x"))
        self.config = layer_tiles(entry)
        self.options = set(options)
        self.experts = MANY_EXPERTS if "many" in self.options else EXPERTS
        indices = self.empty(IMAGES, TOP_K, dtype=torch.int64)
        with mock.patch.object(plan, "launch"):
            self.plan, _ = plan.make_plan(indices, EXPERTS, TOKENS, self.config.up.block_m)
        self.indices = indices

    def empty(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.empty(shape, dtype=dtype or self.dtype)

    def float(self, *shape: int) -> Tensor:
        return self.empty(*shape, dtype=torch.float32)

    def bias(self, *shape: int) -> Tensor | None:
        return None if "no-bias" in self.options else self.float(*shape)

    @property
    def input_dtype(self) -> torch.dtype:
        return self.dtype if "half-x" in self.options else torch.float32

    @property
    def images(self) -> Tensor:
        """x as the experts are given it, y and y's gradient."""
        return self.empty(IMAGES, TOKENS, self.width)

    @property
    def routed(self) -> Tensor:
        """What of the layer's input the router is given."""
        alone = self.one_of("cls", "mean") == "cls" and "keep" not in self.options  # dexcore.ops.route takes it out
        tokens = 1 if alone else TOKENS
        return self.empty(IMAGES, tokens, self.width, dtype=self.input_dtype)

    @property
    def gates(self) -> Tensor:
        return self.float(IMAGES, TOP_K)

    @property
    def wide(self) -> Tensor:
        """w a."""
        return self.empty(self.plan.rows, self.hidden)

    @property
    def columns(self) -> int:
        """Of z and dz."""
        return 2 * self.hidden if "swiglu" in self.options else self.hidden

    @property
    def pre(self) -> Tensor:
        """z or dz."""
        return self.empty(self.plan.rows, self.columns)

    @property
    def narrow(self) -> Tensor:
        """o, dy or dx, a row for every slot's token."""
        return self.empty(self.plan.rows, self.width)

    @property
    def row_gates(self) -> Tensor:
        return self.float(self.plan.rows)

    @property
    def padded(self) -> int:
        """Rows of images in whole tiles, the director's."""
        return triton.cdiv(IMAGES * TOKENS, self.plan.block_m) * self.plan.block_m

    @property
    def input(self) -> Input:
        """x as the experts are given it."""
        return Input(self.narrow, self.row_gates, self.empty(self.padded, self.width))

    def image_rows(self, columns: int) -> Tensor:
        return self.empty(IMAGES * TOKENS, columns)

    @property
    def w1(self) -> Tensor:
        return self.empty(EXPERTS, self.columns, self.width)

    @property
    def w2(self) -> Tensor:
        return self.empty(EXPERTS, self.width, self.hidden)

    def one_of(self, *choices: str) -> str:
        (choice,) = self.options & set(choices)
        return choice

    @property
    def activation(self) -> str:
        return self.one_of("gelu", "gelu_tanh", "quick_gelu", "relu", "silu", "swiglu")

    @property
    def align_settings(self) -> dict[str, Any]:
        constants = {"teacher_temperature": 0.5, "smallest_probability": 1e-6, "cosine_eps": 1e-8}
        return {"with_gradient": "gradient" in self.options, **constants}


def _arguments(launcher: str, layer: Layer) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the launcher is called with."""
    options, config, made = layer.options, layer.config, layer.plan
    width, hidden, precision = layer.width, layer.hidden, layer.precision
    match launcher:
        case "make_plan":
            balance = route.Balance.of(layer.float(IMAGES, EXPERTS)) if "balance" in options else None
            return (layer.indices, EXPERTS, TOKENS, config.up.block_m, balance), {}
        case "expert_load":
            return (layer.gates, layer.indices, EXPERTS), {}
        case "route_forward":
            weight = layer.float(layer.experts, width)
            noise = layer.float(IMAGES, layer.experts) if "noise" in options else None
            kept = layer.float(IMAGES, width) if "keep" in options else None
            return (layer.routed, weight, noise, TOP_K, 0.5, layer.one_of("cls", "mean"), kept), {}
        case "route_gradients":
            gates, feature, weight = layer.gates, layer.float(IMAGES, width), layer.float(layer.experts, width)
            forward = weight, gates, layer.indices, layer.float(IMAGES, layer.experts), layer.float(layer.experts)
            return (gates, None, layer.float(), feature, *forward, 0.5), {}
        case "route_backward":
            gates, probs, weight = layer.gates, layer.float(IMAGES, EXPERTS), layer.float(EXPERTS, width)
            pool = layer.one_of("cls", "mean")
            return (gates, probs, layer.routed, weight, gates, layer.indices, probs, 0.5, pool), {}
        case "input_rows":
            x = layer.empty(IMAGES, TOKENS, width, dtype=layer.input_dtype)
            return (x, layer.gates, made, layer.dtype), {"by_image": "director" in options}
        case "gradient_rows":
            loss = {"grad_loss": layer.float(), "gradient": layer.images} if "align" in options else {}
            return (layer.images, made, layer.dtype), loss
        case "expert_up":
            columns = layer.columns
            director = (layer.empty(columns, width), layer.bias(columns)) if "director" in options else None
            keep = {"keep_z": "z" in options, "keep_a": "wa" in options}
            operands = layer.input, layer.w1, layer.bias(EXPERTS, columns)
            return (*operands, made, layer.activation, precision, config.up), {**keep, "director": director}
        case "expert_down":
            parts = layer.empty(layer.padded, hidden), layer.empty(width, hidden), layer.bias(width)
            operands = layer.wide, layer.w2, layer.bias(EXPERTS, width), layer.row_gates
            director = parts if "director" in options else None
            return (*operands, made, precision, config.down), {"director": director}
        case "expert_dact":
            operands = layer.narrow, layer.w2, layer.pre, layer.row_gates
            return (*operands, made, layer.activation, precision, config.dact), {"keep_a": "wa" in options}
        case "expert_dx":
            return (layer.pre, layer.w1, made, precision, config.dx), {}
        case "expert_wgrad":
            products = Product(layer.pre, layer.narrow), Product(layer.narrow, layer.wide)
            multiprocessors = configs.MULTIPROCESSORS[layer.architecture]
            settings = {"bias": "no-bias" not in options}
            return (*products, made, torch.float32, precision, config.wgrad, multiprocessors), settings
        case "mix_align_forward":
            kind = layer.one_of("kd", "cosine", "mse")
            return (layer.narrow, made, layer.image_rows(width), kind), layer.align_settings
        case "align_forward":
            kind = layer.one_of("kd", "cosine", "mse")
            return (layer.image_rows(width), layer.image_rows(width), kind), layer.align_settings
        case "align_backward":
            return (layer.float(), layer.image_rows(width)), {}
        case "sum_slots":
            pool = [pool for pool in ("cls", "mean") if pool in options]
            through = (layer.float(IMAGES, width), *pool) if pool else ()
            return (layer.narrow, made, layer.input_dtype, *through), {}
        case "gate_and_bias_gradients":
            parts = layer.float(triton.cdiv(hidden, config.dact.block_n), made.rows)
            b2 = layer.bias(EXPERTS, width)
            bias_dtype = None if b2 is None else torch.float32
            return (parts, layer.float(IMAGES, width), b2, layer.gates, made, bias_dtype), {}
        case "group_ema":
            shapes = [(hidden, width), (hidden,), (width, hidden), (width,)]
            if "unaligned" in options:
                shapes = [(width + 1, width + 1)]
            dtype = torch.float32 if "copies" in options else layer.dtype
            directors = [layer.empty(*shape, dtype=dtype) for shape in shapes]
            experts = [layer.empty(EXPERTS, *shape, dtype=dtype) for shape in shapes]
            arguments = directors, experts, [layer.float(EXPERTS)] * len(shapes), 0.99
            if "copies" in options:
                arguments += tuple([layer.empty(*tensor.shape) for tensor in part] for part in (directors, experts))
            return arguments, {}
        case "cast_all":
            sources = [layer.float(EXPERTS, hidden, width), layer.float(EXPERTS, hidden)]
            return (sources, [layer.empty(*source.shape) for source in sources]), {}
    raise ValueError(f"no launcher {launcher!r}")


def compile_entry(entry: str) -> list[dict[str, Any]]:
    """Compile an entry of `bench.matrix`.

    Returns:
        A record for each kernel: registers, stack bytes, spills (on NVIDIA the instructions that touch the stack, on
        AMD the registers spilled), shared memory bytes, tensor-core instructions, what its dots multiply, by what
        float32 is converted to half precision, and on NVIDIA the instructions of its main loop and outside of it.
    """
    architecture = entry.split()[1]
    driver.set_active(_Machine(TARGETS[architecture]))
    records: list[dict[str, Any]] = []

    def report(compiled: Any) -> None:
        amd = architecture == "gfx942"
        text, ttir = compiled.asm["amdgcn" if amd else "ptx"], compiled.asm["ttir"]
        record = {"kernel": compiled.metadata.name, **(_amd_usage(compiled) if amd else _nvidia_usage(compiled))}
        record["shared"] = compiled.metadata.shared
        record["instructions"] = [name for name, code in assembly.TENSOR_INSTRUCTIONS.items() if code in text]
        record["dots"] = assembly.dots(ttir)
        record["conversions"] = assembly.conversions(ttir, None if amd else text)
        records.append(record)

    with compiling(report):
        call_launcher(entry)
    return records


def call_launcher(entry: str) -> None:
    """The call that an entry of `bench.matrix` stands for."""
    launcher = entry.split()[0]
    arguments, settings = _arguments(launcher, Layer(entry))
    home = importlib.import_module(f"dexcore.kernels.{HOMES[launcher]}")
    getattr(home, launcher)(*arguments, **settings)


def _nvidia_usage(compiled: Any) -> dict[str, int]:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        used, sass = (
            subprocess.run([tool, option, file.name], capture_output=True, text=True, check=True).stdout
            for option in ("-res-usage", "-sass")
        )
    registers, stack = (int(re.search(rf"{name}:(\d+)", used)[1]) for name in ("REG", "STACK"))
    usage = {"registers": registers, "stack": stack, "spills": len(re.findall(r"\b(?:LDL|STL)\b", sass))}
    return usage | {"loop": assembly.ptx_loop(compiled.asm["ptx"]), "outside": assembly.sass_outside(sass)}


def _amd_usage(compiled: Any) -> dict[str, int]:
    def metadata(name: str) -> int:
        return int(re.search(rf"\.{name}:\s+(\d+)", compiled.asm["amdgcn"])[1])

    return {
        "registers": metadata("vgpr_count"),
        "stack": metadata("private_segment_fixed_size"),
        "spills": metadata("vgpr_spill_count") + metadata("sgpr_spill_count"),
    }


def _write(out: Path, entries: list[str]) -> None:
    found = {entry: compile_entry(entry) for entry in entries}
    files = sorted(
        str(Path(module.__file__).resolve())
        for name, module in sys.modules.items()
        if name.startswith("dexcore.kernels.") and module is not configs
    )
    depends = [str(Path(__file__).resolve()), str(Path(assembly.__file__).resolve()), *files]
    out.with_name(out.name + ".d").write_text(f"{out}: " + " ".join(depends) + "\n", encoding="utf-8")
    out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    _write(Path(sys.argv[1]), sys.argv[2:])
