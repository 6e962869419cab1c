"""What is compiled ahead of time is what a layer's step launches.

Triton says for each launch what it would compile, and compiles nothing. That needs a process without the interpreter.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

CODE = """
import json
import sys

import torch
import triton
from fake_gpu import pretend

pretend("sm_90")
sys.path.append(sys.argv[1])
from bench import matrix, tune
from bench.compile_entry import call_launcher
from dexcore.kernels.configs import Key, layer_config
from dexcore.kernels.launch import compiling
from dexcore.nn import DEXMlp, update_directors


def launched(call):
    seen = set()

    def note(*, fn, compile, **_):
        parts = ("signature", "constants", "configs", "num_warps", "num_stages")
        seen.add(str((fn.name, *(compile[part] for part in parts))))
        return True  # do not compile

    triton.knobs.runtime.jit_cache_hook = note
    with compiling(lambda kernel: None):
        call()
    return sorted(seen)


def step(keep="both", noise_std=0.0, pool="cls", bias=True, dtype=torch.float32):
    layer = DEXMlp(768, 3072, bias=bias, keep=keep, pool=pool, backend="triton").train()
    layer.noise_std = noise_std
    x = torch.empty(224, 65, 768, dtype=dtype, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    losses = layer.routing.align_loss + layer.routing.balance_loss
    torch.autograd.backward([y, losses], [torch.empty_like(y), torch.ones(())])
    update_directors(layer, 0.99)


@torch.no_grad()
def inference():
    with torch.autocast("cpu", torch.bfloat16):
        DEXMlp(768, 3072, backend="triton").eval()(torch.empty(224, 65, 768))


key = Key("sm_90", 768, 3072, torch.bfloat16)
rule = layer_config(*key)
with compiling(lambda kernel: None):
    gemms = tune.kernels(key, torch.device("cpu"), [rule.up.block_m])


def tuned():
    for name, call in gemms.items():
        call(getattr(rule, name))


steps = {
    "keep both": step,
    "keep z": lambda: step("z"),
    "keep none": lambda: step("none"),
    "noise": lambda: step(noise_std=1.0),
    "mean": lambda: step(pool="mean", noise_std=1.0),
    "no bias": lambda: step(bias=False),
    "half x": lambda: step(dtype=torch.bfloat16),
    "inference": inference,
}
entries = [entry for entry in matrix.entries() if " sm_90 bf16 768x3072" in entry or "group_ema sm_90 fp32" in entry]
training = matrix.GEMMS + matrix.BY_WIDTH + matrix.ROUTING + matrix.OTHERS + matrix.COUNTERS
print(json.dumps({
    "steps": {name: launched(call) for name, call in steps.items()},
    "entries": {entry: launched(lambda: call_launcher(entry)) for entry in entries},
    "tuned": launched(tuned),
    "training": [call for call in training if call not in matrix.ON_PARAMETERS],
}))
"""


@pytest.fixture(scope="module")
def launches():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run([sys.executable, "-c", CODE, str(ROOT)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_all_that_a_layers_steps_launch_is_in_the_matrix(launches):
    compiled = {launch for found in launches["entries"].values() for launch in found}
    missing = {name: sorted({*found} - compiled) for name, found in launches["steps"].items()}
    assert not any(missing.values()), missing


def test_an_entry_of_the_training_step_compiles_nothing_else(launches):
    step = set(launches["steps"]["keep both"])
    for call in launches["training"]:
        launcher, *options = call.split()
        found = launches["entries"][" ".join([launcher, "sm_90", "bf16", "768x3072", *options])]
        assert found
        assert set(found) <= step, call


def test_tuning_compiles_what_a_training_step_launches_and_nothing_else(launches):
    assert launches["tuned"]
    assert set(launches["tuned"]) <= set(launches["steps"]["keep both"])
