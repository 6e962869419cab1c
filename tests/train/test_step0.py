"""What is measured before the first step: when, of which model, and that training does not notice."""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import metrics, state, tiny

from dexcore.data.feed.dataset import open_mvu
from dexcore.engine.ranks import ALONE
from dexcore.engine.stop import StopRequest
from dexcore.evaluate.analyze import analyze
from dexcore.evaluate.reconstruct import evaluate
from dexcore.report import Analysis, Evaluation, build_report
from dexcore.train import pretrain
from dexcore.train.loop import Pretraining
from dexcore.train.run.folder import RunFolderError, open_run_folder
from dexcore.train.step0 import measure_step0

LOOKS_AT_PAGES = True
_CPU = torch.device("cpu")
FILES = ("evaluation_step0.npz", "analysis_step0.npz")


def _summary(out):
    return json.loads((Path(out) / "summary.json").read_text())


def test_a_one_step_run_claims_nothing(store, tmp_path):
    config = tiny(store, tmp_path / "run", evaluate_images=20)
    optimizer = replace(config.optimizer, base_lr=1e-12, warmup_epochs=0)
    config = replace(config, optimizer=optimizer, run=replace(config.run, epochs=8 / 20))
    assert pretrain(config).step == 1
    found = _summary(config.out)
    change = found["change_since_step_0"]
    told = [
        *change["variance_explained_mean"].values(),
        *change["nmi_minus_null"],
        *(one for mode in change["nearest_neighbors"] for one in mode.values()),
    ]
    assert len(told) == 2 + 2 + 6
    assert {one["verdict"] for one in told} == {"none"}
    assert max(abs(one["difference"]) for one in told[:4]) < 1e-3
    page = (Path(config.out) / "report.html").read_text()
    assert "no difference is shown: nothing is claimed" in page
    assert "beyond chance" not in page


def test_it_is_the_model_as_initialized_measured_by_the_same_code(store, whole_run):
    folder = Path(whole_run.out)
    model = Pretraining(whole_run, folder).model
    images = open_mvu(store)
    expected = evaluate(model, images, whole_run.setting, _CPU)
    found = Evaluation.load(folder / FILES[0])
    np.testing.assert_array_equal(found.squared_error, expected.squared_error)
    for one, other in zip(found.gates, expected.gates, strict=True):
        np.testing.assert_array_equal(one, other)
    cosines = analyze(model, images, expected, whole_run.setting, _CPU).gradient_cosines
    np.testing.assert_array_equal(Analysis.load(folder / FILES[1]).gradient_cosines, cosines)
    trained = Evaluation.load(folder / "evaluation.npz")
    np.testing.assert_array_equal(found.sample_id, trained.sample_id)
    np.testing.assert_array_equal(found.total, trained.total)
    assert not np.array_equal(found.squared_error, trained.squared_error)


def test_training_is_the_same_to_the_bit_where_it_is_not_measured(store, whole_run, tmp_path, monkeypatch):
    monkeypatch.setattr("dexcore.train.loop.measure_step0", lambda *_: None)
    config = tiny(store, tmp_path / "run")
    with open_run_folder(config) as folder, StopRequest() as stop:
        Pretraining(config, folder).train(stop)
    assert not (folder / FILES[0]).exists()
    assert metrics(config.out) == metrics(whole_run.out)


def test_it_leaves_weights_modes_and_random_states_alone(store, tmp_path):
    run = Pretraining(tiny(store, tmp_path), tmp_path)
    run.model.train()
    weights = state(run.model)
    drawn = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    measure_step0(tmp_path, run.model, run.images, run.config, run.device, ALONE)
    assert torch.equal(torch.get_rng_state(), drawn[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == drawn[1:]  # noqa: NPY002
    assert all(module.training for module in run.model.modules())
    assert all(parameter.grad is None for parameter in run.model.parameters())
    for name, value in state(run.model).items():
        np.testing.assert_array_equal(value, weights[name])


def test_a_resumption_finds_it_again_and_does_not_measure_the_trained_model(store, tmp_path):
    config = tiny(store, tmp_path / "run")
    with open_run_folder(config) as folder, StopRequest() as stop:
        stop.signal_name = "SIGTERM"  # after the first step
        Pretraining(config, folder).train(stop)
    before = [(folder / name).read_bytes() for name in FILES]
    assert pretrain(replace(config, resume=True)).finished
    assert [(folder / name).read_bytes() for name in FILES] == before
    assert _summary(folder)["step_0"] is not None


def test_a_run_that_an_older_version_began_says_not_measured_and_stays_without(store, tmp_path):
    config = tiny(store, tmp_path / "run")
    with open_run_folder(config) as folder, StopRequest() as stop:
        stop.signal_name = "SIGTERM"
        Pretraining(config, folder).train(stop)
    for name in FILES:
        (folder / name).unlink()
    assert pretrain(replace(config, resume=True)).finished
    assert not any((folder / name).exists() for name in FILES)
    found = _summary(folder)
    assert (found["step_0"], found["change_since_step_0"]) == (None, None)
    assert "not measured" in found["step_0_missing"]


def test_other_evaluated_images_than_at_step_0_are_not_compared(store, whole_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole_run.out, folder)
    again = replace(whole_run, out=str(folder), resume=True, run=replace(whole_run.run, evaluate_images=2))
    assert pretrain(again).finished
    assert "not measured on these images" in _summary(folder)["step_0_missing"]
    assert build_report(folder).compared is None


def test_a_run_that_fails_before_its_first_step_leaves_nothing_of_it(store, tmp_path, monkeypatch):
    config = tiny(store, tmp_path / "run")

    def fail(*_):
        raise RuntimeError("in the first step")

    monkeypatch.setattr(Pretraining, "step", fail)
    with pytest.raises(RuntimeError, match="in the first step"):
        pretrain(config)
    assert not Path(config.out).exists()


def test_a_folder_that_cannot_be_written_is_named(store, tmp_path):
    run = Pretraining(tiny(store, tmp_path), tmp_path)
    (tmp_path / FILES[0]).mkdir()
    with pytest.raises(RunFolderError, match="what is measured before the first step cannot be written"):
        measure_step0(tmp_path, run.model, run.images, run.config, run.device, ALONE)
