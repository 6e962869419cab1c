"""The benches' command: what it refuses, in which order it works, and that every bench runs."""

import types

import pytest
import torch

from bench import align, command, ema, layer
from bench.command import Goal, Options, parse, run
from bench.contenders import WrongResultError
from bench.timing import CPU

QUICK = ["--device", "cpu", "--quick"]


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.setattr(command, "keep_freed_memory", lambda: False)  # it would hold for the whole process
    yield
    torch.set_num_threads(threads)


def test_quick_times_are_not_saved(capsys):
    with pytest.raises(SystemExit):
        parse("doc", ["--quick", "--save"])
    assert "leave out --save" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_said(capsys):
    with pytest.raises(SystemExit):
        parse("doc", ["--device", "cuda"])
    assert "finds no CUDA or ROCm device" in capsys.readouterr().err


def test_all_results_are_checked_before_anything_is_timed(monkeypatch):
    done = []

    def bench(name):
        def check(options):
            done.append(f"check {name}")
            return {}

        def measure(options, ceilings, refused):
            done.append(f"measure {name}")
            return []

        return types.SimpleNamespace(check=check, measure=measure)

    monkeypatch.setattr(command, "measured_ceilings", lambda options: done.append("ceilings"))
    run("doc", {"a": bench("a"), "b": bench("b")}, QUICK)
    assert done == ["check a", "check b", "ceilings", "measure a", "measure b"]


def test_a_wrong_result_stops_before_any_time():
    def check(options):
        raise WrongResultError("wrong")

    def measure(*arguments):
        raise AssertionError("timed")

    with pytest.raises(WrongResultError):
        run("doc", {"a": types.SimpleNamespace(check=check, measure=measure)}, QUICK)


def test_lines_are_written_where_asked(monkeypatch):
    written = []
    monkeypatch.setattr(command, "write_line", lambda name, line: written.append((name, line["value"])))
    monkeypatch.setattr(command, "measured_ceilings", lambda options: {})
    monkeypatch.setattr(command.plot, "draw", lambda: [])
    bench = types.SimpleNamespace(check=lambda options: None, measure=lambda *arguments: [{"bench": "it", "value": 1}])
    run("doc", {"a": bench}, ["--device", "cpu"])
    assert written == []
    run("doc", {"a": bench}, ["--device", "cpu", "--save"])
    assert written == [("it", 1)]


def test_the_ema_bench_runs_and_its_lines_say_what_they_measured(capsys):
    options = Options(CPU, quick=True, seconds=0)
    ceilings = {dtype: {"gemm_gflops": 1.0, "copy_gbs": 1.0} for dtype in options.dtypes}
    lines = ema.measure(options, ceilings, ema.check(options))
    assert {line["contender"] for line in lines} == {"dexcore", "foreach", "published"}
    for line in lines:
        assert line["p20"] <= line["median"] <= line["p80"]
        assert {"device", "torch", "bytes", "flops", "routing", "copy_gbs"} <= line.keys()
        assert "goals" not in line  # those are a GPU's
    by_routing = {line["routing"]: line["bytes"] for line in lines}
    assert by_routing["two"] / by_routing["uniform"] == pytest.approx(4 / 10)


def test_a_wrong_ema_is_named(monkeypatch):
    monkeypatch.setattr(ema, "group_ema_", lambda directors, experts, weights, momentum: None)
    with pytest.raises(WrongResultError, match="dexcore"):
        ema.check(Options(CPU, quick=True))


def test_a_wrong_loss_is_named(monkeypatch):
    right = align.mix_align
    monkeypatch.setattr(align, "mix_align", lambda student, teacher, kind: 1.5 * right(student, teacher, kind))
    with pytest.raises(WrongResultError, match="dexcore"):
        align.check(Options(CPU, quick=True))


def test_a_compiler_that_fails_is_reported_and_the_rest_is_timed(monkeypatch):
    def failing(*arguments, **settings):
        def loss(student, teacher):
            raise RuntimeError("no compiler\nin sight")

        return loss

    monkeypatch.setattr(align.torch, "compile", failing)
    options = Options(CPU, quick=True, seconds=0)
    ceilings = {dtype: {"gemm_gflops": 1.0, "copy_gbs": 1.0} for dtype in options.dtypes}
    refused = align.check(options)
    assert refused["kd, float32"] == {"compiled": "no compiler"}
    lines = align.measure(options, ceilings, refused)
    assert {line["contender"] for line in lines} == {"dexcore", "eager"}


def test_the_contenders_table_runs(capsys):
    options = Options(CPU, quick=True, seconds=0)
    ceiling = {"gemm_gflops": 1.0, "copy_gbs": 1.0}
    lines = layer.measure_contest(options, torch.float32, "zipf", ceiling, {"grouped": "not here"})
    less_kept = ["dexcore, keep z", "dexcore, keep none"]  # memory alone
    assert [line["contender"] for line in lines] == ["dexcore", "published", "loop", "dense", *less_kept]
    assert all(line["held_mb"] > 0 for line in lines)
    assert next(line["speedup"] for line in lines if line["contender"] == "published") == 1


def test_a_goal_says_whether_it_is_met():
    assert str(Goal("speed", 2.0, 2.5)) == "speed: 2.00 (goal 2.50, missed)"
    assert Goal("speed", 2.5, 2.5).met
