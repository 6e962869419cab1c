"""The GPU's tables, walked through on the CPU: graphs are the calls themselves, and times mean nothing."""

import types
from functools import partial

import pytest
import torch

from bench import align, contenders, ema, kernel_cases, kernels, layer, step, timing
from bench.contenders import Shape, WrongResultError
from bench.kernel_work import Problem
from bench.timing import CPU
from dexcore.kernels import mix_align

CEILINGS = {torch.bfloat16: {"gemm_gflops": 0.0, "copy_gbs": 0.0}}  # of another time than the table's


@pytest.fixture
def options(monkeypatch):
    for bench in (layer, ema, align):
        monkeypatch.setattr(bench, "captured", lambda call: call)
    monkeypatch.setattr(timing, "large_copy", lambda *arguments: (lambda: None, 1e12))  # no kernel is as fast
    return types.SimpleNamespace(
        on_gpu=True, device=CPU, quick=True, seconds=0, compiled=True, dtypes=(torch.bfloat16,)
    )


def goals_of(lines):
    return {goal["name"]: goal["met"] for line in lines for goal in line.get("goals", [])}


def test_the_layers_table_has_graphs_memory_and_goals(options, monkeypatch, capsys):
    megabytes = iter([10.0, 20.0, 30.0, 30.0, 30.0, 9.0, 8.0])
    monkeypatch.setattr(layer, "peak_gpu_memory", lambda step: next(megabytes))
    held = iter([10.0, 13.0, 30.0, 30.0, 30.0, 7.0, 5.0])
    monkeypatch.setattr(layer, "held_memory", lambda *arguments: next(held))
    monkeypatch.setattr(timing, "large_gemms", lambda *arguments: {"1": (lambda: None, 1e-9)})  # any step is faster
    lines = layer.measure_contest(options, torch.bfloat16, "uniform", CEILINGS[torch.bfloat16], {})
    names = [line["contender"] for line in lines]
    assert names[:5] == ["dexcore", "published", "loop", "grouped", "dense"]
    graphs = {"dexcore, graph", "dexcore, no GEMA, graph", "grouped, graph"}
    assert {"dexcore, no GEMA", "dexcore, keep z", "dexcore, keep none", "bare GEMMs"} | graphs == {*names[5:]}
    kept = {line["contender"]: (line["held_mb"], line["peak_mb"]) for line in lines if "held_mb" in line}
    assert (kept["dexcore"], kept["published"], kept["dexcore, keep z"]) == ((10, 10), (13, 20), (7, 9))
    met = goals_of(lines)
    assert met["forward and backward, share of the largest GEMM's rate"] is True
    assert met["memory held for the backward, the published loop's over dexcore's with z kept"] is False  # 13 over 7
    assert met["the whole step captured in a CUDA graph"] is True
    assert capsys.readouterr().out.count("goal") == 4


def test_a_step_that_cannot_be_captured_is_a_goal_missed(options, monkeypatch, capsys):
    def refuse(call):
        raise RuntimeError("it waits for the device")

    monkeypatch.setattr(layer, "captured", refuse)
    monkeypatch.setattr(layer, "peak_gpu_memory", lambda step: 1.0)
    lines = layer.measure_contest(options, torch.bfloat16, "two", CEILINGS[torch.bfloat16], {})
    assert not any("graph" in line["contender"] for line in lines)
    assert goals_of(lines)["the whole step captured in a CUDA graph"] is False
    assert "it waits for the device" in capsys.readouterr().out


def test_the_tables_of_ema_and_alignment_have_a_goal_each(options):
    refused = {
        "kd, bfloat16": {"compiled": ""},
        "cosine, bfloat16": {"compiled": ""},
        "mse, bfloat16": {"compiled": ""},
    }
    for lines, count in ((ema.measure(options, CEILINGS, {}), 3), (align.measure(options, CEILINGS, refused), 3)):
        goals = [goal for line in lines for goal in line.get("goals", [])]
        assert len(goals) == count
        assert not any(goal["met"] for goal in goals)


def test_the_alignments_kernels_alone_are_held_to_float64_too(options, monkeypatch):
    monkeypatch.setattr(align.torch, "compile", lambda loss, **_: loss)
    assert align.check(options) == {}
    right = mix_align.align_backward
    monkeypatch.setattr(mix_align, "align_backward", lambda *arguments: 1.2 * right(*arguments))
    with pytest.raises(WrongResultError, match="align, kernels, kd"):
        align.check(options)


def test_the_kernels_table_measures_every_kernel(options, monkeypatch):
    monkeypatch.setattr(kernels, "_QUICK", Shape(2, 3, 16))
    monkeypatch.setattr(kernels, "ROUTINGS", ("two",))
    lines = kernels.measure(options, CEILINGS, {})
    assert len(lines) == 17
    assert all(line["prediction"] is False and line["median"] > 0 for line in lines)
    assert sum("goals" in line for line in lines) == 2


def test_interpreted_kernels_are_not_timed_on_a_gpu(options):
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET"):
        kernels.check(options)


def test_ceilings_take_turns_with_what_is_read_against_them(monkeypatch):
    called = []
    gemms = {name: (partial(called.append, name), flops) for name, flops in (("slow", 1), ("fast", 1e12))}
    monkeypatch.setattr(timing, "large_gemms", lambda *arguments: gemms)
    monkeypatch.setattr(timing, "large_copy", lambda *arguments: (lambda: called.append("copy"), 20))
    contender = {"it": lambda: called.append("it")}
    times, ceiling = timing.beside_ceilings(contender, 0, torch.bfloat16, CPU, quick=True)
    assert called == ["it", "slow", "fast", "copy"] * 10
    assert list(times) == ["it"]
    assert ceiling.keys() == {"gemm_gflops", "copy_gbs"}
    assert ceiling["gemm_gflops"] > 1e6, "the faster one's"
    assert ceiling["copy_gbs"] > 0


def test_what_every_table_of_a_gpu_reads_is_the_ceiling_measured_beside_it(options, monkeypatch):
    monkeypatch.setattr(kernels, "_QUICK", Shape(2, 3, 16))
    monkeypatch.setattr(layer, "peak_gpu_memory", lambda step: 1.0)
    refused = {f"{kind}, bfloat16": {"compiled": ""} for kind in ("kd", "cosine", "mse")}
    tables = (
        kernels.measure(options, CEILINGS, {}),
        ema.measure(options, CEILINGS, {}),
        align.measure(options, CEILINGS, refused),
        layer.measure_contest(options, torch.bfloat16, "two", CEILINGS[torch.bfloat16], {}),
    )
    assert all(line["gemm_gflops"] > 0 and line["copy_gbs"] > 0 for lines in tables for line in lines)


def test_random_numbers_are_drawn_where_they_are_used(monkeypatch):
    devices, generator = [], torch.Generator

    def made(device):  # a call without one draws on the host
        devices.append(device)
        return generator(device)

    for module in (contenders, kernel_cases, align, ema, step):
        monkeypatch.setattr(module, "torch", types.SimpleNamespace(**{**vars(torch), "Generator": made}))
    shape, problem = Shape(2, 3, 16), Problem(Shape(2, 3, 16), torch.float32, "two", "interpreter")
    contenders.make_step("dense", shape, torch.float32, CPU)
    kernel_cases.calls(problem, CPU)
    align.make_step(lambda student, teacher: student.sum(), shape, torch.float32, CPU)
    ema.make_model(ema.Size(1, 16), "two", CPU)
    step.make_training("dexcore", step.QUICK, torch.float32, CPU)
    assert devices == [CPU] * 5
