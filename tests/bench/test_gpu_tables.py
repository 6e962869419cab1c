"""The GPU's tables, walked through on the CPU: graphs are the calls themselves, and times mean nothing."""

import types

import pytest
import torch

from bench import align, ema, kernels, layer
from bench.contenders import Shape, WrongResultError
from bench.timing import CPU
from dexcore.kernels import mix_align

CEILINGS = {torch.bfloat16: {"gemm_gflops": 1e-9, "copy_gbs": 1e9}}  # any GEMM is faster, any copy slower


@pytest.fixture
def options(monkeypatch):
    for bench in (layer, ema, align):
        monkeypatch.setattr(bench, "captured", lambda call: call)
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
    monkeypatch.setattr(layer, "largest_gemm", lambda *arguments: (lambda: None, 1e-9))  # any step is faster
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
    assert len(lines) == 15
    assert all(line["prediction"] is False and line["median"] > 0 for line in lines)
    assert sum("goals" in line for line in lines) == 2


def test_interpreted_kernels_are_not_timed_on_a_gpu(options):
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET"):
        kernels.check(options)
