"""bench/gpu.sh, rehearsed on the CPU: its page, its order, and what a kill leaves."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import gpu, gpu_stages
from bench.command import Options
from bench.contenders import Shape
from bench.timing import CPU

ROOT = Path(__file__).parents[2]


def start(out, *arguments):
    environment = os.environ | {"PYTHON": sys.executable}
    command = ["bash", str(ROOT / "bench" / "gpu.sh"), "--device", "cpu", "--out", str(out), *arguments]
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored where the tests run under nohup, and inherited
    try:
        return subprocess.Popen(command, cwd=out.parent, env=environment, stdout=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.fixture
def run(tmp_path):
    return gpu.Run(tmp_path, "cpu", minutes=5, quick=True)


@pytest.mark.slow
def test_a_rehearsal_ends_with_its_page(tmp_path):
    out = tmp_path / "results"
    process = start(out, "--minutes", "15")
    printed, _ = process.communicate()
    page = (out / "page.txt").read_text()
    assert process.returncode == 0, (out / "log.txt").read_text()[-4000:]
    assert page in printed
    assert "A REHEARSAL" in page
    assert all(goal.name in page for goal in gpu.GOALS)
    outcomes = {stage.name: line for stage in gpu.STAGES for line in page.splitlines() if f"  {stage.name:12} " in line}
    for stage in gpu.STAGES:
        assert ("done in" if stage.on_cpu else "left out: needs a GPU") in outcomes[stage.name], page
    assert page.count("right") == 3  # three dtypes
    files = list(out.iterdir())
    assert len(files) <= 8
    assert sum(file.stat().st_size for file in files) < 2**20


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_in_the_middle_leaves_a_page_of_what_was_done(tmp_path, name):
    out = tmp_path / "results"
    process = start(out)
    first = process.stdout.readline()
    process.send_signal(getattr(signal, name))
    process.communicate()
    assert process.returncode == 75
    assert first.startswith("environment: done")
    page = (out / "page.txt").read_text()
    assert "environment  done" in page
    assert "Python" in page.splitlines()[0]
    assert page.count("not reached") >= len(gpu.GOALS) + 3


def test_what_a_stage_lacks_is_named_and_the_next_goes_on(run, monkeypatch):
    monkeypatch.setattr(gpu, "find_spec", lambda name: None if name == "cv2" else name)
    monkeypatch.setattr(gpu.Run, "process", lambda self, stage, limit: 0)
    run.all_stages()
    assert run.outcomes["step"] == "left out: needs cv2, which is not installed"
    assert run.outcomes["compile"] == "left out: needs a GPU"
    assert run.outcomes["tests"] == "done in 0 s"


def test_a_stage_that_takes_too_long_ends_and_is_said(run):
    assert run.process(gpu.STAGES[0], 0.2) is None
    assert run.child is None
    run.minutes = 0
    assert run.outcome(gpu.STAGES[0]) == "not reached"


def test_a_stage_that_fails_is_said_with_its_reason(run):
    run.device = "nowhere"
    outcome = run.outcome(gpu.STAGES[0])
    assert outcome.startswith("FAILED after")
    assert "invalid choice: 'nowhere'" in outcome


def test_the_page_reads_the_goals_from_what_is_on_disk(run):
    lines = [
        {"stage": "layer", "goal": "speedup", "value": 2.6},
        {"stage": "layer", "goal": "gemm_share", "value": 0.8},
        {"stage": "graph", "goal": "gemm_share", "value": 0.7},  # the later one counts
        {"stage": "tuned layer", "goal": "tuned_gemm_share", "value": 0.9},
        {"stage": "tuned layer", "goal": "tuned_speedup", "value": 0.9},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run.out / "results.jsonl").write_text(text + '{"stage": "ema", "goal": "ema_sh')  # killed while it wrote
    run.quick = False
    page = run.page()
    for goal, word in zip(gpu.GOALS, ("missed", "met", "not reached", "not reached", "not reached"), strict=True):
        (line,) = [line for line in page.splitlines() if line.startswith(goal.name)]
        assert line.endswith(word)
    assert "0.70  missed" in page


def test_what_is_compiled_before_the_kernels_is_a_layer_of_each_dtype(run, monkeypatch):
    kernels = pytest.importorskip("dexcore.kernels")
    seen = []

    def step(model, shape):
        y = model(torch.zeros(shape))
        seen.append(y.dtype)
        y.sum().backward()
        return 0.0

    monkeypatch.setattr(gpu_stages, "REFERENCE", Shape(2, 5, 16))
    monkeypatch.setattr(kernels, "warm_up", step)
    gpu_stages.compile_kernels(Options(CPU, quick=True), gpu_stages.Results("compile", run.out))
    assert seen == list(gpu_stages._DTYPES)
    assert len(list(run.lines())) == len(seen)


def test_the_tuned_layer_leaves_the_goals_that_were_measured_before_it(run, monkeypatch):
    configs = pytest.importorskip("dexcore.kernels.configs")
    monkeypatch.setattr(configs, "TABLE_FILE", configs.TABLE_FILE)  # the stage sets another
    options = replace(Options(CPU, quick=True), seconds=0.0, compiled=False)
    gpu_stages.tuned_layer(options, gpu_stages.Results("tuned layer", run.out))
    keys = {line["goal"] for line in run.lines() if "goal" in line}
    assert keys == {"tuned_gemm_share", "tuned_speedup"}
    assert not keys & {goal.key for goal in gpu.GOALS}


def test_a_folder_with_something_in_it_is_refused(tmp_path, capsys):
    (tmp_path / "page.txt").write_text("of before")
    with pytest.raises(SystemExit):
        gpu.parse(["--out", str(tmp_path)])
    assert "is there already and not an empty folder" in capsys.readouterr().err
