"""A run with a teacher: trained, resumed, reported, on one process and on two."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from runs import metrics, tiny
from several_ranks import alone, assert_bit_identical, assert_same_run, on_ranks, shared_run

from dexcore.data import open_mvu
from dexcore.engine.config import ConfigError
from dexcore.evaluate.embedding import open_model
from dexcore.evaluate.reconstruct import batches
from dexcore.models import DEXVisionTransformer, DistilledEncoder
from dexcore.report import Evaluation
from dexcore.train import pretrain
from dexcore.train.config import ObjectiveConfig, ParallelConfig
from dexcore.train.loop import Pretraining
from dexcore.train.run.export import export_model
from dexcore.train.run.folder import RunFolderError

LOOKS_AT_PAGES = True


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A vision transformer of timm's, drawn by a seed, as a file."""
    torch.manual_seed(5)
    file = tmp_path_factory.mktemp("teacher") / "teacher.pth"
    torch.save(timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict(), file)
    return file


def _taught(config, weights: Path):
    return replace(config, objective=ObjectiveConfig("distill", "vit_tiny_patch16_224", str(weights)))


@pytest.fixture(scope="module")
def taught_run(store, weights, tmp_path_factory):
    config = tiny(store, tmp_path_factory.mktemp("taught") / "run", epochs=20.0, evaluate_every=20.0, precision="fp32")
    config = _taught(config, weights)
    assert pretrain(config).finished
    return config


def test_a_student_comes_nearer_to_its_teacher(taught_run):
    steps = metrics(taught_run.out)
    first, last = (np.mean([line["loss_self"] for line in part]) for part in (steps[:5], steps[-5:]))
    assert last < 0.75 * first
    evaluation, before = (
        Evaluation.load(Path(taught_run.out, name)) for name in ("evaluation.npz", "evaluation_step0.npz")
    )
    assert evaluation.squared_error.sum() < 0.8 * before.squared_error.sum()
    assert not evaluation.examples.hidden.any()
    assert np.array_equal(evaluation.examples.patch_mean, before.examples.patch_mean)  # the teacher has not changed
    assert len(evaluation.gates) == 2


def test_the_held_out_loss_is_that_of_training_on_held_out_images(taught_run, weights):
    run = Pretraining(replace(taught_run, resume=True), Path(taught_run.out))
    run.resume()
    run.model.eval()
    images = open_mvu(taught_run.data.store)
    (batch,) = batches(images, np.flatnonzero(images.split == "heldout"), run.model, taught_run.setting)
    with torch.no_grad():
        loss = run.model(batch.images).loss.item()
    lines = (Path(taught_run.out) / "heldout.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["loss"] == pytest.approx(loss, rel=1e-5)


def test_a_checkpoint_is_exported_where_the_teacher_is_gone(store, tmp_path):
    weights = tmp_path / "teacher.pth"
    torch.save(timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict(), weights)
    config = _taught(tiny(store, tmp_path / "run", epochs=2.0), weights)
    run = alone(config)
    weights.unlink()
    assert export_model(tmp_path / "run", tmp_path / "model") == 5
    exported = DistilledEncoder.from_pretrained(tmp_path / "model").state_dict()
    assert all(torch.equal(value, exported[name]) for name, value in run.model.state_dict().items())


def test_summary_page_and_card_speak_of_the_teacher(taught_run):
    folder = Path(taught_run.out)
    page = (folder / "report.html").read_text()
    assert "Variance of the teacher&#x27;s tokens explained" in page
    assert (folder / "report" / "tokens_taught.png").is_file()
    told = page.lower()
    assert "reconstruct" not in told
    assert "masked" not in told
    card = (folder / "model" / "README.md").read_text()
    assert "autoencoder" not in card
    assert "distillation of a frozen teacher's tokens: vit_tiny_patch16_224 (teacher.pth)" in card
    assert json.loads((folder / "comparison.json").read_text())["objective"] == "distill"


def test_what_was_trained_opens_as_any_encoder(taught_run):
    folder = Path(taught_run.out, "model")
    assert isinstance(DistilledEncoder.from_pretrained(folder).encoder, DEXVisionTransformer)
    assert isinstance(open_model(folder), DEXVisionTransformer)


def test_a_resumed_run_is_the_undisturbed_one_and_another_teacher_is_refused(store, weights, tmp_path):
    whole = _taught(tiny(store, tmp_path / "whole", epochs=4.0), weights)
    undisturbed = alone(whole)
    cut = replace(whole, out=str(tmp_path / "cut"))
    alone(cut, until=6)
    other = tmp_path / "other.pth"
    torch.manual_seed(6)
    torch.save(timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict(), other)
    with pytest.raises(RunFolderError, match=r"objective\.teacher: its weights are not those"):
        alone(replace(_taught(cut, other), resume=True))
    resumed = alone(replace(cut, resume=True))
    assert metrics(cut.out) == metrics(whole.out)
    for one, two in zip(undisturbed.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_ranks_are_the_run_of_one(store, weights, tmp_path, kind):
    one = alone(_taught(shared_run(store, tmp_path / "one"), weights))
    config = replace(_taught(shared_run(store, tmp_path / kind), weights), parallel=ParallelConfig(kind))
    assert_bit_identical(on_ranks(2, config))
    assert_same_run(config.out, one.folder)


@pytest.mark.parametrize("mlp", ["dense", "dense-wide", "fixed-routing"])
def test_twins_are_taught_as_well(store, weights, tmp_path, mlp):
    config = _taught(tiny(store, tmp_path), weights)
    run = Pretraining(replace(config, model=replace(config.model, mlp=mlp)), tmp_path)
    run.model.train()
    line = run.step(next(iter(run.batches(workers=0))), run.schedule.at(0))
    assert not line["skipped"]


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ({"kind": "distill"}, "objective.teacher: expected a folder of dexcore's or the name of a model of timm's"),
        ({"teacher": "vit_tiny_patch16_224"}, "objective.teacher: expected none with objective.kind mae"),
        ({"weights": "file.pth"}, "objective.weights: expected none with objective.kind mae"),
    ],
)
def test_contradicting_flags_are_refused(objective, message):
    with pytest.raises(ConfigError, match=message):
        ObjectiveConfig(**objective)


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (("no_such_model", ""), "expected a folder of dexcore's, or the name of a model of timm's"),
        (("vit_tiny_patch16_224", ""), "expected weights beside it"),
        (("vit_tiny_patch16_224", "missing.pth"), "missing.pth: no such file"),
        (("resnet10t", "random"), "ResNet cannot teach"),
    ],
)
def test_a_teacher_that_cannot_be_had_is_refused_before_anything_is_written(store, tmp_path, teacher, message):
    config = replace(tiny(store, tmp_path / "run"), objective=ObjectiveConfig("distill", *teacher))
    with pytest.raises(ConfigError, match=f"objective.teacher: .*{message}"):
        pretrain(config)
    assert not (tmp_path / "run").exists()
