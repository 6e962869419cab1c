"""bench.tune: its choice, its guards, and its calls of the launchers, which the interpreter runs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench import tune
from dexcore.kernels.configs import SHARED_MEMORY, Gemm, Key, LayerConfig, check, read_table, write_table

ROOT = Path(__file__).parents[2]
KEY = Key("sm_90", 24, 40, torch.float32)
SMALL = Gemm(32, 32, 32, 4, 1)
RULE = LayerConfig(*[SMALL] * 5)


def tile(block_m, block_n=64):
    return Gemm(block_m, block_n, 32, 4, 2)


def test_without_a_gpu_it_says_so_and_exits_with_2():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "bench.tune"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "PyTorch finds no CUDA or ROCm device here" in done.stdout
    assert done.stderr == ""


def test_it_does_not_time_the_interpreter(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert tune.main([]) == 2
    assert "unset TRITON_INTERPRET" in capsys.readouterr().out


def test_a_layer_is_given_as_two_numbers(capsys):
    with pytest.raises(SystemExit):
        tune.main(["--layers", "768"])
    assert "a layer is DxH, as 768x3072, got '768'" in capsys.readouterr().err


def test_kernels_over_the_experts_rows_get_the_block_m_with_the_least_time_of_all():
    a, b, c, d = tile(64), tile(128), tile(128, 128), tile(256)
    times = {
        "up": {a: 1.0, b: 5.0, c: 4.0, d: 0.1},
        "down": {a: 4.0, b: 2.0, c: 3.0},  # not d
        "dact": {a: 4.0, b: 2.0, c: 3.0, d: 0.1},
        "dx": {a: 4.0, b: 2.0, c: 3.0, d: 0.1},
        "wgrad": {a: 1.0, d: 0.5},
    }
    assert tune.fastest(times) == LayerConfig(up=c, down=b, dact=b, dx=b, wgrad=d)


def test_the_weight_gradients_step_divides_the_others_block_m():
    small, large, deep = Gemm(16, 64, 16, 4, 2), Gemm(64, 64, 16, 4, 2), Gemm(64, 64, 64, 4, 2)
    times = {name: {small: 1.0, large: 2.0} for name in tune.OVER_ROWS} | {"wgrad": {large: 9.0, deep: 1.0}}
    assert tune.fastest(times) == LayerConfig(*[large] * 4, wgrad=deep)  # 4 times 2 and 1; else 4 times 1 and 9
    times["wgrad"][large] = 4.0
    assert tune.fastest(times) == LayerConfig(*[small] * 4, wgrad=large)
    del times["wgrad"][large]
    del times["dx"][large]
    with pytest.raises(RuntimeError, match="no block_m is left"):
        tune.fastest(times)


def test_without_a_common_block_m_nothing_is_chosen():
    times = {name: {tile(64): 1.0} for name in LayerConfig._fields} | {"dx": {tile(128): 1.0}}
    with pytest.raises(RuntimeError, match="no block_m is left"):
        tune.fastest(times)


@pytest.mark.parametrize("architecture", SHARED_MEMORY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_candidate_could_stand_in_the_table(architecture, dtype):
    key = Key(architecture, 192, 768, dtype)
    found = tune.candidates(key)
    assert len(found) > 20
    for candidate in found:
        check(key, LayerConfig(*[candidate] * 5))


@pytest.mark.parametrize(
    ("architecture", "width", "described"),
    [("sm_90", 192, True), ("sm_100", 192, True), ("sm_90", 200, False), ("sm_90", 96, False), ("sm_80", 192, False)],
)
def test_operands_have_descriptors_where_the_layer_can_have_them(architecture, width, described):
    found = tune.candidates(Key(architecture, width, 768, torch.bfloat16))
    assert {candidate.described for candidate in found} == {described}


def test_the_likeliest_tiles_are_few_and_large():
    key = Key("sm_90", 768, 3072, torch.bfloat16)
    few = tune.candidates(key, few=True)
    assert 4 <= len(few) <= 20
    assert {*few} <= {*tune.candidates(key)}
    assert all(candidate.block_m >= 128 and candidate.block_k == 64 for candidate in few)


COMPILE = """
import sys

import torch
import triton

sys.path += sys.argv[1:]
from fake_gpu import pretend

pretend("sm_90")
from bench import tune
from dexcore.kernels.configs import Gemm, Key, LayerConfig
from dexcore.kernels.launch import compiling

count, compile = [], triton.compiler.compile


def counted(source, *arguments, **settings):
    count.append(source.name)
    return compile(source, *arguments, **settings)


triton.compiler.compile = counted  # what every kernel takes when it is compiled for the first time
key, rule, sound, unsound = Key("sm_90", 32, 64, torch.bfloat16), *(Gemm(n, 32, 32, 4, 1) for n in (32, 64, 48))
described = sound._replace(described=True)
tiles, cpu = [rule, sound, unsound, described, sound], torch.device("cpu")
with compiling(lambda kernel: None):
    calls = {name: call for name, call in tune.kernels(key, cpu, [32, 64], 2, 5).items() if "wgrad" in name}
assert count == ["_plan_kernel"] * 2
count.clear()
seconds, broken = tune.compile_ahead(calls, LayerConfig(*[rule] * 5), tiles)
assert seconds > 0
assert list(broken) == [("wgrad", unsound)]
print(*count)

called = []
tune.fault = lambda call, tile, *_: call(tile) and ""
tune.milliseconds = lambda call, tile: called.append(tile) or call(tile) and 1.0
found = []
with compiling(found.append):
    tune.time_all(calls, LayerConfig(*[rule] * 5), tiles, 1.0, broken)
assert called == [rule, sound, described]
assert all((kernel.result() if hasattr(kernel, "result") else kernel).asm["cubin"] for kernel in found)
print(*count)
"""


def test_each_kernel_of_each_tile_is_compiled_once_before_the_first_is_timed_and_an_unsound_one_stops_nothing(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    folders = [str(ROOT), str(ROOT / "tests" / "kernels")]
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, *folders], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    ahead, *said, at_the_end = done.stdout.splitlines()
    assert at_the_end == ahead, "timing compiled again"
    # Rule, sound and unsound, by pointers a product at a time; and with descriptors both at once.
    assert ahead.split().count("_expert_wgrad_kernel") == 2 * 3 + 1
    assert sum("does not compile" in line for line in said) == 1


@pytest.fixture
def interpreted(monkeypatch):
    """No compiler and no clock: tiles of 16 columns spill, and a tile's time is its area."""
    seen = []
    monkeypatch.setattr(tune, "EXPERTS", 3)

    def milliseconds(call, candidate):
        seen.append(candidate)
        return float(candidate.block_m * candidate.block_n)

    monkeypatch.setattr(tune, "spills", lambda call, candidate: 7 if candidate.block_n == 16 else 0)
    monkeypatch.setattr(tune, "milliseconds", milliseconds)
    return seen


def test_every_launcher_is_timed_with_every_sound_tile(interpreted, capsys):
    spilling, good = Gemm(32, 16, 16, 4, 1), Gemm(16, 32, 16, 4, 1)
    calls = tune.kernels(KEY, torch.device("cpu"), [32, 16], images=3, tokens=5)
    assert set(calls) == set(LayerConfig._fields)
    times = tune.time_all(calls, RULE, [spilling, good], 1e-4, {})
    assert all(list(found) == [SMALL, good] for found in times.values())
    assert interpreted == [SMALL, good] * 5
    assert capsys.readouterr().out.count("(32, 16, 16, 4, 1, False) spills 7 registers") == 5
    assert tune.fastest(times) == LayerConfig(*[good] * 5)


@pytest.mark.usefixtures("interpreted")
def test_a_wrong_or_failing_tile_is_not_timed(capsys):
    def call(candidate):
        if candidate.block_k == 64:
            raise RuntimeError("out of resource: shared memory\nand more")
        return [torch.ones(4) * (1 if candidate.block_m == 32 else float("nan"))]

    times = tune.time_all({"up": tune.Call(call)}, RULE, [tile(64), Gemm(32, 32, 64, 4, 2)], 1e-4, {})
    assert list(times["up"]) == [SMALL]
    printed = capsys.readouterr().out
    assert "is wrong: differs from the rule's result by nan" in printed
    assert "does not run: out of resource: shared memory\n" in printed


@pytest.mark.usefixtures("interpreted")
def test_without_a_sound_tile_nothing_is_written():
    with pytest.raises(RuntimeError, match="up: no tile compiles, runs and agrees"):
        tune.time_all({"up": tune.Call(lambda candidate: [torch.full((1,), float("nan"))])}, RULE, [], 1e-4, {})


@pytest.mark.usefixtures("interpreted")
def test_the_table_keeps_its_other_layers(tmp_path, monkeypatch):
    path, other, lines = tmp_path / "configs.json", Key("gfx942", 192, 768, torch.float16), []
    write_table(path, {other: LayerConfig(*[tile(64)] * 5)})
    calls = dict.fromkeys(LayerConfig._fields, tune.Call(lambda candidate: [torch.ones(3)]))
    monkeypatch.setattr(tune, "kernels", lambda key, device, sizes: calls)
    monkeypatch.setattr(tune, "candidates", lambda key, few: [SMALL])
    monkeypatch.setattr(tune, "layer_config", lambda *key: LayerConfig(*[tile(64)] * 5))
    monkeypatch.setattr(tune, "machine", lambda device: {})
    tune.tune(KEY, torch.device("cpu"), None)
    assert read_table(path).keys() == {other}
    assert not lines
    tune.tune(KEY, torch.device("cpu"), path, write=lines.append)
    assert read_table(path) == {other: LayerConfig(*[tile(64)] * 5), KEY: RULE}
    (line,) = lines
    assert line["bench"] == "tune"
    assert (line["dx"]["ms"], line["dx"]["before_ms"]) == (32 * 32, 64 * 64)
