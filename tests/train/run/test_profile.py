"""A trace of some steps: written for these, and refused beyond the run."""

import json
from pathlib import Path

import pytest
from runs import metrics, tiny

from dexcore.engine.config import ConfigError
from dexcore.train import pretrain
from dexcore.train.config import RunConfig


def test_the_trace_holds_the_steps_of_its_window_and_changes_nothing(store, whole_run, tmp_path):
    config = tiny(store, tmp_path / "run", profile="2:5")
    assert pretrain(config).finished
    trace = json.loads((Path(config.out) / "profile" / "steps-2-5-rank-0.json").read_text())
    names = [event.get("name", "") for event in trace["traceEvents"]]
    assert sum(name.startswith("Optimizer.zero_grad") for name in names) == 3
    assert metrics(config.out) == metrics(whole_run.out)


def test_a_window_beyond_the_run_is_refused_before_anything_is_written(store, tmp_path):
    with pytest.raises(ConfigError, match=r"run.profile: expected steps of this run, 0:\d+ at most, got 2:5000"):
        pretrain(tiny(store, tmp_path / "run", profile="2:5000"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("window", ["5:2", "5:5", "5", "a:b", "-1:4", "1:2:3"])
def test_what_is_no_window_is_refused(window):
    with pytest.raises(ConfigError, match=r"run.profile: expected two numbers of steps, the first below the second"):
        RunConfig(profile=window)
