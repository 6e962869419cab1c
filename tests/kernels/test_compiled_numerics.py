"""What `dot` and `rounded` compile to: the interpreter takes other ways there, and cannot see a wrong one.

Compiling needs a process without the interpreter; it imports this file for the kernels.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import triton
import triton.language as tl

from dexcore.kernels import numerics
from dexcore.kernels.numerics import dot, rounded

ROOT = Path(__file__).parents[2]
PRECISIONS = ("ieee", "tf32", "tf32x3")
# How PTX names a conversion of two numbers at once, by what they become.
TO_NEAREST = {"bfloat16": "cvt.rn.bf16x2.f32", "float16": "cvt.rn.f16x2.f32"}

CODE = """
import importlib.util
import json
import sys

root, here, numerics = sys.argv[1:]
sys.path += [here, root]
from fake_gpu import pretend

pretend("sm_90")
import dexcore.kernels

# In the place of the right one, before anything takes it from there.
spec = importlib.util.spec_from_file_location("dexcore.kernels.numerics", numerics)
module = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = module
spec.loader.exec_module(module)

import test_compiled_numerics
from bench.assembly import conversions, dots

print(json.dumps(test_compiled_numerics.compile_all(dots, conversions)))
"""


@triton.jit
def _dot_kernel(a_ptr, b_ptr, out_ptr, SIZE: tl.constexpr, PRECISION: tl.constexpr):
    i = tl.arange(0, SIZE)
    where = i[:, None] * SIZE + i[None, :]
    acc = dot(tl.load(a_ptr + where), tl.load(b_ptr + where), tl.zeros((SIZE, SIZE), tl.float32), PRECISION)
    tl.store(out_ptr + where, acc)


@triton.jit
def _round_kernel(x_ptr, out_ptr, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    tl.store(out_ptr + i, rounded(tl.load(x_ptr + i), out_ptr.dtype.element_ty))


def compile_all(dots, conversions):
    """What the dots multiply by precision, and how is rounded by dtype; in a process that `pretend`s to have a GPU."""
    import torch

    from dexcore.kernels.launch import compiling, launch

    compiled = []
    with compiling(compiled.append):
        for precision in PRECISIONS:
            launch(_dot_kernel, (1,), *torch.empty(3, 64, 64), SIZE=64, PRECISION=precision)
        for dtype in TO_NEAREST:
            launch(_round_kernel, (1,), torch.empty(512), torch.empty(512, dtype=getattr(torch, dtype)), SIZE=512)
    texts = [kernel.asm for kernel in compiled]
    return {
        "dots": dict(zip(PRECISIONS, (dots(asm["ttir"]) for asm in texts), strict=False)),
        "conversions": dict(zip(TO_NEAREST, (conversions(asm["ttir"], asm["ptx"]) for asm in texts[3:]), strict=True)),
    }


RIGHT = {
    "dots": {precision: [precision] for precision in PRECISIONS},
    "conversions": {dtype: [instruction] for dtype, instruction in TO_NEAREST.items()},
}


def found_with(right, wrong, folder):
    """What compiles with `numerics` changed so."""
    source = Path(numerics.__file__).read_text(encoding="utf-8")
    assert source.count(right) == 1
    changed = folder / "numerics.py"
    changed.write_text(source.replace(right, wrong), encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(folder / "cache")
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(ROOT), str(Path(__file__).parent), str(changed)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_dots_have_the_precision_that_is_asked_for_and_rounding_is_to_nearest(tmp_path):
    assert found_with("@triton.jit\ndef dot(", "@triton.jit\ndef dot(", tmp_path) == RIGHT


@pytest.mark.parametrize(
    ("right", "wrong", "what"),
    [
        ("input_precision=PRECISION", 'input_precision="tf32"', "dots"),
        ("return x.to(DTYPE)", 'return x.to(DTYPE, fp_downcast_rounding="rtz")', "conversions"),
        (
            "return x.to(DTYPE)",
            'return x.to(DTYPE, fp_downcast_rounding="rtz" if DTYPE == tl.bfloat16 else "rtne")',
            "conversions",
        ),
    ],
)
def test_wrong_numerics_compile_to_something_else(right, wrong, what, tmp_path):
    assert found_with(right, wrong, tmp_path)[what] != RIGHT[what]
