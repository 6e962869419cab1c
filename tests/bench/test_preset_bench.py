"""bench.preset: the parts of a step add up, and what follows the steps is timed."""

import time
from dataclasses import replace

import pytest
import torch

from bench import preset
from bench.command import Options
from bench.preset import PARTS, PartsOfStep, measure_parts, measure_store, seconds_after_steps, turns_of_epochs
from bench.step import QUICK, make_config, make_training
from bench.timing import CPU
from dexcore.data.store import write_store
from dexcore.data.synthetic import SyntheticMVU
from dexcore.train import loop

OPTIONS = Options(CPU, quick=True, seconds=0)


def test_the_parts_of_a_step_add_up_and_time_goes_to_the_right_one(monkeypatch):
    training, batch = make_training("dexcore", QUICK, torch.float32, CPU)
    right = loop.update_directors

    def slow(*arguments):
        time.sleep(0.3)
        right(*arguments)

    monkeypatch.setattr(loop, "update_directors", slow)
    began = time.perf_counter()
    taken = PartsOfStep(training).take([batch] * 4)
    whole = time.perf_counter() - began
    assert sum(sum(parts.values()) for parts in taken) == pytest.approx(whole, rel=0.05)
    least = {part: min(parts[part] for parts in taken) for part in PARTS}
    assert least["GEMA"] >= 0.3  # and, since they add up, in no other part
    assert min(least.values()) > 0


def test_the_parts_table_has_a_line_a_part(capsys):
    training, _ = make_training("dexcore", QUICK, torch.float32, CPU)
    lines = measure_parts(training, OPTIONS)
    assert [line["contender"] for line in lines] == [*PARTS, "whole step"]
    assert lines[-1]["share"] == 1
    assert all(0 < line["share"] for line in lines)
    assert "a run has 200 steps" in capsys.readouterr().out


def test_what_follows_the_steps_is_timed_by_a_run_that_writes_its_report(monkeypatch, tmp_path, capsys):
    with_store = SyntheticMVU(size=32)
    write_store(map(with_store.record, range(20)), tmp_path / "store", name="bench")
    config = make_config(QUICK, torch.float32, CPU, str(tmp_path / "store"))
    config = replace(config, out=str(tmp_path / "run"), data=replace(config.data, epoch_size=8))
    right = preset.finish

    def slow(*arguments):
        right(*arguments)
        time.sleep(0.2)

    monkeypatch.setattr(preset, "finish", slow)
    began = time.perf_counter()
    after = seconds_after_steps(config)
    assert 0.2 < after < time.perf_counter() - began
    assert (tmp_path / "run/report.html").is_file()
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 2
    assert "variance" not in capsys.readouterr().out  # the summary of two steps would mislead


@pytest.mark.slow  # builds the sample images
def test_a_store_has_a_line_for_its_first_epoch_and_one_for_the_later():
    first, later = measure_store(OPTIONS)
    assert (first["contender"], later["contender"]) == ("first epoch", "later epochs")
    assert first["images"] == later["images"] == 40
    assert "goals" not in first


def test_the_first_epoch_is_cold_and_the_later_are_the_last_two(monkeypatch, tmp_path):
    write_store(map(SyntheticMVU(size=32).record, range(20)), tmp_path / "store", name="bench")
    config = make_config(QUICK, torch.float32, CPU, str(tmp_path / "store"))
    samples, store = loop.Pretraining(config, tmp_path), loop.Pretraining(config, tmp_path)
    asked = []
    seconds = iter([99.0, *([1.0, 10.0] * 2), *([50.0, 50.0] * 2), *([2.0, 20.0] * 2), *([4.0, 40.0] * 2)])
    monkeypatch.setattr(preset, "_step", lambda training, batches: asked.append(training) or next(seconds))
    assert turns_of_epochs(samples, store, OPTIONS) == {"first epoch": (1.0, 10.0), "later epochs": (3.0, 30.0)}
    assert asked == [samples, *([samples, store] * 8)]  # the store has no step before its first epoch
