"""The loop: what a step does, what a skipped one leaves alone, what a run leaves behind."""

import json
import math
import runpy
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import EXAMPLE, STEPS, flags, metrics, start, state, tiny, write_images

from dexcore.data.store import Store
from dexcore.data.store.manifest import StoreError
from dexcore.engine.config import ConfigError
from dexcore.extras import MissingExtraError
from dexcore.models import DEXVisionTransformer, MaskedAutoencoder
from dexcore.report import Evaluation
from dexcore.report.history import SECONDS
from dexcore.train.finish import finish
from dexcore.train.loop import Pretraining, TrainingError
from dexcore.train.pretraining import pretrain
from dexcore.train.run.folder import RunFolderError


def _batch(run):
    return next(iter(run.batches(workers=0)))


@pytest.fixture
def run(store, tmp_path):
    run = Pretraining(tiny(store, tmp_path), tmp_path)
    run.model.train()
    return run


def test_a_step_moves_experts_by_gradient_and_directors_by_their_average(run):
    values = run.schedule.at(3)
    layer = run.layers[0]
    director = layer.director.fc1.weight.clone()
    run.step(_batch(run), values)
    gates, indices = layer.routing.gates.detach(), layer.routing.indices
    omega = torch.zeros(4).index_add_(0, indices.flatten(), gates.flatten()) / gates.sum()
    experts = (omega[:, None, None] * layer.experts.fc1.weight.detach()).sum(0)
    expected = values.momentum * director + (1 - values.momentum) * experts
    assert not torch.equal(layer.director.fc1.weight, director)
    torch.testing.assert_close(layer.director.fc1.weight, expected)


def test_a_step_s_time_is_told_by_its_parts(whole_run):
    lines = (Path(whole_run.out) / "metrics.jsonl").read_text().splitlines()
    for line in map(json.loads, lines):
        parts = [line[name] for name in SECONDS]
        assert min(parts) > 0
        assert sum(parts) <= 1.01 * whole_run.data.batch_size / line["images_per_second"]


def test_the_learning_rate_of_the_step_is_the_schedule_s(run):
    first = state(run.model)
    values = replace(run.schedule.at(0), lr=0.0)
    run.step(_batch(run), values)
    for name, value in state(run.model).items():
        if "director" not in name and "frequency" not in name and "_sigma" not in name:
            assert np.array_equal(value, first[name]), name


def test_the_optimizer_has_the_configuration_s_betas_and_weight_decay(store, tmp_path):
    config = tiny(store, tmp_path)
    optimizer = replace(config.optimizer, beta1=0.8, beta2=0.95, weight_decay=0.03)
    run = Pretraining(replace(config, optimizer=optimizer), tmp_path)
    decay = {id(p): group["weight_decay"] for group in run.optimizer.param_groups for p in group["params"]}
    assert all(group["betas"] == (0.8, 0.95) for group in run.optimizer.param_groups)
    trained = {name: decay[id(p)] for name, p in run.model.named_parameters() if p.requires_grad}
    assert len(trained) == len(decay)
    assert set(trained.values()) == {0.0, 0.03}
    assert not any(value for name, value in trained.items() if name.endswith("bias") or "norm" in name)
    assert trained["encoder.cls_token"] == 0.0
    assert trained["encoder.blocks.0.mlp.experts.fc1.weight"] == trained["decoder_pred.weight"] == 0.03


def test_with_layer_decay_the_encoder_s_layers_learn_by_timm_s_factors_and_the_decoder_as_before(store, tmp_path):
    config = tiny(store, tmp_path / "run")
    run = Pretraining(replace(config, optimizer=replace(config.optimizer, layer_decay=0.5)), tmp_path)
    scale = {}
    for group in run.optimizer.param_groups:
        scale |= {id(parameter): group.get("lr_scale", 1.0) for parameter in group["params"]}
    found = {name: scale.pop(id(p)) for name, p in run.model.named_parameters() if p.requires_grad}
    assert not scale
    depth = config.model.depth
    for name, factor in found.items():
        if name.startswith("encoder.blocks."):
            assert factor == 0.5 ** (depth - 1 - int(name.split(".")[2])), name
        elif name.startswith("encoder.patch_embed") or name == "encoder.cls_token":
            assert factor == 0.5**depth
        elif not name.startswith("encoder."):
            assert factor == 1, name
    (batch,) = [batch for batch, _ in zip(run.batches(0), range(1), strict=False)]
    run.model.train()
    run.step(batch, run.schedule.at(run.schedule.warmup_steps))
    for group in run.optimizer.param_groups:
        assert group["lr"] / group.get("lr_scale", 1.0) == pytest.approx(config.peak_lr)


def test_a_step_goes_by_the_clipped_gradient_and_reports_the_whole_one(store, tmp_path):
    runs, norms = [], []
    for clip_norm in (1e-3, 1e30):
        config = tiny(store, tmp_path)
        config = replace(config, optimizer=replace(config.optimizer, clip_norm=clip_norm))
        runs.append(Pretraining(config, tmp_path))
        norms.append(runs[-1].step(_batch(runs[-1]), runs[-1].schedule.at(0))["grad_norm"])
    clipped, whole = runs
    assert norms[0] == norms[1] > 0.01
    for short, long in zip(clipped.parameters, whole.parameters, strict=True):
        by_hand = long.grad * (1e-3 / norms[1])
        expected = (1 - clipped.config.optimizer.beta1) * by_hand
        torch.testing.assert_close(clipped.optimizer.state[short]["exp_avg"], expected, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("share", [0.5, 0.995, 1.0, 1.005, 2.0])
def test_gradients_near_the_limit_are_what_pytorchs_clipping_makes_of_them(store, tmp_path, share):
    config = tiny(store, tmp_path)
    whole = Pretraining(replace(config, optimizer=replace(config.optimizer, clip_norm=1e30)), tmp_path)
    norm = whole.step(_batch(whole), whole.schedule.at(0))["grad_norm"]
    run = Pretraining(replace(config, optimizer=replace(config.optimizer, clip_norm=share * norm)), tmp_path)
    run.step(_batch(run), run.schedule.at(0))
    torch.nn.utils.clip_grads_with_norm_(whole.parameters, share * norm, torch.tensor(norm))
    for parameter, expected in zip(run.parameters, whole.parameters, strict=True):
        assert torch.equal(parameter.grad, expected.grad)


def test_the_loss_is_the_weighted_sum_of_its_parts(run):
    values = replace(run.schedule.at(0), lambda_balance=0.3)
    line = run.step(_batch(run), values)
    expected = line["loss_self"] + 0.01 * line["loss_align"] + 0.3 * line["loss_balance"]
    assert line["loss"] == pytest.approx(expected, rel=1e-6)
    assert [len(share) for share in line["load"]] == [4, 3]
    assert [sum(share) for share in line["load"]] == pytest.approx([1, 1], abs=1e-5)


def test_a_step_with_nan_changes_nothing(run):
    run.step(_batch(run), run.schedule.at(0))
    before, moments = state(run.model), str(run.optimizer.state_dict()["state"])
    batch = _batch(run)
    batch["image"][3, 0, 5, 5] = math.nan
    line = run.step(batch, run.schedule.at(1))
    assert line["skipped"]
    assert not math.isfinite(line["loss"])
    after = state(run.model)
    assert all(np.array_equal(after[name], value) for name, value in before.items())
    assert str(run.optimizer.state_dict()["state"]) == moments
    # The directors' load of the skipped step is forgotten, and the next step is an ordinary one.
    line = run.step(_batch(run), run.schedule.at(2))
    assert not line["skipped"]
    assert run.skipped_in_a_row == 0
    assert any(not np.array_equal(value, before[name]) for name, value in state(run.model).items())


def test_a_run_that_diverged_gives_up_and_says_where_to_look(store, tmp_path):
    config = tiny(store, tmp_path / "run", max_skipped=3)
    config = replace(config, optimizer=replace(config.optimizer, base_lr=1e38, clip_norm=1e30))
    with pytest.raises(TrainingError, match=r"in 3 steps on end; the ids .*skipped\.jsonl"):
        pretrain(config)
    lines = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    assert len(lines) == 3
    assert all(len(line["sample_ids"]) == 8 for line in lines)


def test_more_unreadable_images_than_allowed_end_the_run(tmp_path):
    folder = write_images(tmp_path / "store")
    image = bytes(Store(folder).encoded(1))
    (shard,) = folder.glob("*.arrow")
    content = shard.read_bytes()
    assert content.count(image) == 1
    shard.write_bytes(content.replace(image, image[:60] + bytes(len(image) - 60)))
    config = tiny(folder, tmp_path / "run", epochs=2)
    with pytest.raises(StoreError, match=r"1 of \d+ samples could not be decoded"):
        pretrain(replace(config, data=replace(config.data, max_replaced=0.0)))
    config = replace(config, out=str(tmp_path / "lenient"))
    assert pretrain(replace(config, data=replace(config.data, max_replaced=1.0))).finished


def test_a_backend_that_cannot_run_is_refused_before_the_first_step(store, tmp_path, monkeypatch):
    monkeypatch.setenv("DEXCORE_BACKEND", "abacus")
    with pytest.raises(ConfigError, match=r"model\.backend: .*DEXCORE_BACKEND .*'abacus'"):
        pretrain(tiny(store, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_missing_package_of_the_report_is_named_before_the_first_step(store, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"matplotlib .*dexcore\[train\]"):
        pretrain(tiny(store, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["model/model.safetensors", "evaluation.npz"])
def test_an_end_that_cannot_be_written_is_a_clear_error(run, name):
    (run.folder / name).mkdir(parents=True)  # in the way
    with pytest.raises(RunFolderError, match=rf"the training is done, .*cannot be written: .*{name}.*--resume"):
        finish(run, run.model)


def test_metrics_that_are_lost_at_the_end_are_a_clear_error(whole_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole_run.out, folder)
    (folder / "metrics.jsonl").write_text("")
    with pytest.raises(RunFolderError, match=r"its report cannot be made: .*metrics\.jsonl: no step in it"):
        pretrain(replace(whole_run, out=str(folder), resume=True))


def test_metrics_hold_a_line_a_step_with_the_scheduled_values(whole_run):
    lines = metrics(whole_run.out)
    assert [line["step"] for line in lines] == list(range(STEPS))
    assert [line["epoch"] for line in lines[:6]] == [0, 0, 0, 1, 1, 2]
    rates = [line["lr"] for line in lines]
    assert max(rates) == rates[2] == pytest.approx(whole_run.peak_lr)
    assert lines[0]["noise_std"] == 1.0
    assert lines[-1]["momentum"] > lines[0]["momentum"] == 0.99


def test_a_run_learns(whole_run):
    losses = [line["loss_self"] for line in metrics(whole_run.out)]
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])


def test_a_run_leaves_a_model_that_loads_and_a_report(whole_run):
    out = Path(whole_run.out)
    model = MaskedAutoencoder.from_pretrained(out / "model").eval()
    encoder = DEXVisionTransformer.from_pretrained(out / "model").eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.encoder.forward_features(images), encoder.forward_features(images))
    evaluation = Evaluation.load(out / "evaluation.npz")
    assert set(evaluation.heldout.tolist()) == {True, False}
    assert "data:image/png;base64" in (out / "report.html").read_text()
    assert json.loads((out / "summary.json").read_text())["variance_explained"]["training"]["mean"]["images"] > 0
    assert not (out / "skipped.jsonl").read_text()


def test_the_example_reports_its_end_and_its_errors_in_words(store, tmp_path, monkeypatch, capsys):
    config = tiny(store, tmp_path / "run")
    config = replace(config, run=replace(config.run, epochs=1.2))
    process = start(config, tmp_path)
    printed, said = process.communicate()
    assert process.returncode == 0, said
    assert "Share of masked-patch variance explained" in printed
    assert str(tmp_path / "run" / "report.html") in printed
    assert "step 3/3" in said
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *flags(config, tmp_path)])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: out: ")
    assert "Traceback" not in said


@pytest.mark.parametrize("config", [None, "run.yaml", {"out": "runs/pretrain"}])
def test_what_is_no_configuration_is_refused_by_name(config):
    with pytest.raises(TypeError, match="config must be a PretrainConfig, got"):
        pretrain(config)


def test_a_store_without_training_images_is_refused(tmp_path):
    store = write_images(tmp_path / "store", images=4, one_heldout_in=1)
    with pytest.raises(ConfigError, match=r"data\.store: .* holds no training image"):
        pretrain(tiny(store, tmp_path / "run"))


def test_the_averaged_model_is_saved_beside_the_last_one(store, tmp_path):
    config = tiny(store, tmp_path / "run", epochs=6 * 8 / 20, ema_decay=0.9)
    assert pretrain(config).finished
    last, averaged = (
        state(MaskedAutoencoder.from_pretrained(tmp_path / "run" / name)) for name in ("model", "model-ema")
    )
    same = {name for name, value in last.items() if np.array_equal(value, averaged[name])}
    assert all("director" in name or "frequency" in name or "pos_embed" in name or "_sigma" in name for name in same)
    assert {name for name in last if "director" in name} <= same
