"""The loss on held-out images while a model trains: right, of nothing that training does, and the best model stays."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import ends, flags, metrics, start_ranks, tiny

from dexcore.data import open_mvu
from dexcore.engine.config import ConfigError
from dexcore.engine.folder import RunFolderError
from dexcore.engine.ranks import ALONE
from dexcore.evaluate.reconstruct import evaluate
from dexcore.models import MaskedAutoencoder
from dexcore.report.heldout_course import HeldOutCourse
from dexcore.train import PretrainConfig, pretrain
from dexcore.train.heldout import HeldOut
from dexcore.train.schedules import Schedule

LOOKS_AT_PAGES = True
CPU = torch.device("cpu")
RANK_RUN = str(Path(__file__).with_name("rank_run.py"))
MOMENTS = [0, 5, 10, 15]


@pytest.fixture(scope="module")
def config(store, tmp_path_factory) -> PretrainConfig:
    """Fifteen steps of eight images, measured every second epoch of twenty; done."""
    config = tiny(store, tmp_path_factory.mktemp("heldout") / "run", epochs=6, evaluate_every=2, precision="fp32")
    assert pretrain(config).finished
    return config


@pytest.fixture
def heldout(config, tmp_path):
    """What measures, in an empty folder."""
    images = open_mvu(config.data.store)
    return HeldOut(config, Schedule(config, 20), images, images.indices("train"), tmp_path, ALONE)


def lines(out: str | Path) -> list[dict]:
    return [json.loads(line) for line in (Path(out) / "heldout.jsonl").read_text().splitlines()]


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_the_last_moment_s_loss_is_that_of_the_saved_model_on_its_held_out_images(config):
    found = lines(config.out)
    assert [line["step"] for line in found] == MOMENTS
    images = open_mvu(config.data.store)
    model = MaskedAutoencoder.from_pretrained(Path(config.out) / "model")
    measured = evaluate(model, images, config.setting, CPU)
    values = measured.squared_error[measured.heldout]  # summed over the hidden patches, as many in every image
    hidden = round(model.num_patches * config.model.mask_ratio)
    loss_n = values / (hidden * 3 * config.model.patch_size**2)
    assert found[-1]["loss"] == pytest.approx(loss_n.mean(), rel=1e-5)
    assert found[-1]["loss"] < found[0]["loss"]
    modality = measured.modality[measured.heldout]
    for index, name in enumerate(images.modality_names):
        if (modality == index).any():
            loss, count = found[-1]["modalities"][name]
            assert (pytest.approx(loss, rel=1e-5), count) == (loss_n[modality == index].mean(), sum(modality == index))


@pytest.mark.slow
def test_it_changes_no_bit_of_the_training(config, tmp_path):
    plain = replace(config, out=str(tmp_path / "plain"), run=replace(config.run, evaluate_every=0.0))
    assert pretrain(plain).finished
    assert metrics(plain.out) == metrics(config.out)
    for name in ("model/model.safetensors", "similarity.jsonl"):
        assert (Path(plain.out) / name).read_bytes() == (Path(config.out) / name).read_bytes(), name
    assert not (Path(plain.out) / "heldout.jsonl").exists()
    assert not (Path(plain.out) / "model-best").exists()


def test_the_course_stands_in_the_summary_and_the_report(config):
    folder = Path(config.out)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["heldout_course"]["step"] == MOMENTS
    best = summary["heldout_course"]["best_step"]
    assert best == json.loads((folder / "model-best" / "moment.json").read_text())["step"]
    assert f"after step {best} (model-best)" in (folder / "report.html").read_text(encoding="utf-8")


def test_a_resumed_run_measures_what_one_measures_that_was_not_stopped(config, tmp_path):
    again = replace(config, out=str(tmp_path / "again"), resume=True)
    shutil.copytree(config.out, again.out)
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "step-00000015")  # it goes on after step 10
    assert pretrain(again).finished
    assert lines(again.out) == lines(config.out)
    for name in ("model", "model-best"):
        assert weights(Path(again.out) / name) == weights(Path(config.out) / name)


def measured(heldout, model, step):
    """As the journal does it."""
    line = heldout.measure(model, step, CPU)
    with open(heldout.folder / "heldout.jsonl", "a") as file:
        file.write(json.dumps(line | {"loss": line["loss"] if np.isfinite(line["loss"]) else None}) + "\n")
    return line["loss"]


def test_the_best_model_stays_where_a_later_one_is_worse_or_not_finite(config, heldout):
    best = heldout.folder / "model-best"
    model = MaskedAutoencoder.from_pretrained(Path(config.out) / "model").train()
    good = measured(heldout, model, 5)
    assert model.training
    kept = weights(best)
    assert kept == weights(Path(config.out) / "model")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    assert measured(heldout, model, 10) > good
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    assert not measured(heldout, model, 15) <= good
    assert weights(best) == kept
    assert json.loads((best / "moment.json").read_text())["step"] == 5
    assert HeldOutCourse.read(heldout.folder / "heldout.jsonl").best == (5, good)
    assert sorted(path.name for path in heldout.folder.iterdir()) == ["heldout.jsonl", "model-best"]
    MaskedAutoencoder.from_pretrained(best)


def test_a_best_model_that_cannot_be_written_leaves_the_one_before(config, heldout, monkeypatch):
    model = MaskedAutoencoder.from_pretrained(Path(config.out) / "model")
    heldout.measure(model, 0, CPU)
    assert not (heldout.folder / "model-best").exists()  # nothing is learned yet
    heldout.measure(model, 5, CPU)  # no line of it: the next is the best again
    before = weights(heldout.folder / "model-best")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dexcore.train.heldout.write_whole", full)
    with torch.no_grad():
        next(model.parameters()).add_(0.01)
    with pytest.raises(RunFolderError, match=r"model-best: the best model cannot be written: .*No space left"):
        heldout.measure(model, 10, CPU)
    assert weights(heldout.folder / "model-best") == before


def test_a_run_without_held_out_images_is_refused_before_anything_is_written(tmp_path, config):
    images = open_mvu(config.data.store)
    images.split[:] = "train"
    with pytest.raises(ConfigError, match=r"run.evaluate_every: .* holds no held-out image, expected 0"):
        HeldOut(config, Schedule(config, 20), images, images.indices("train"), tmp_path, ALONE)
    often = replace(config, run=replace(config.run, evaluate_every=0.1))
    with pytest.raises(ConfigError, match=r"run.evaluate_every: expected at least a step, 0.4 epochs of 20 images"):
        HeldOut(often, Schedule(often, 20), images, images.indices("train"), tmp_path, ALONE)
    with pytest.raises(ConfigError, match=r"run.evaluate_every: expected at least 0, got -1"):
        replace(config.run, evaluate_every=-1.0)


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "heldout.jsonl"
    path.write_text('{"step": 0, "loss": 1.0}\n{"step": 5, "loss": 1.0, "modalities": {}}\n{"st')
    assert HeldOutCourse.read(path).images == 0
    path.write_text('{"step": 0}\n')
    with pytest.raises(ValueError, match=r"heldout\.jsonl: damaged"):
        HeldOutCourse.read(path)
    assert HeldOutCourse.read(tmp_path / "none").best is None


@pytest.mark.slow
def test_two_ranks_measure_what_one_does(config, tmp_path):
    two = replace(config, out=str(tmp_path / "two"), run=replace(config.run, precision="fp32"))
    (tmp_path / "states").mkdir()
    flags(two, tmp_path)
    codes, _, errors = ends(start_ranks(2, [RANK_RUN, str(tmp_path / "two.yaml"), str(tmp_path / "states")]))
    assert codes == [0, 0], errors
    alone = [line["loss"] for line in lines(config.out)]
    assert [line["loss"] for line in lines(two.out)] == pytest.approx(alone, rel=1e-4)
