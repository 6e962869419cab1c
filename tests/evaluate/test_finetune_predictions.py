"""What a fine-tuned model predicts: of its own task and of others, at native size, with its routes."""

import json

import numpy as np
import pytest
import torch
from made_finetunings import SIZE, begun, config_of, ended_in, place_of_tasks, sides, spots, step, tiny
from made_tasks import save

from dexcore.cli import main
from dexcore.evaluate import Predictions, score
from dexcore.evaluate.finetuning.data import TaskImages, TestView, sorted_rows
from dexcore.evaluate.finetuning.predictions import Predictor
from dexcore.evaluate.prediction.images import input_of
from dexcore.evaluate.scores.across import load_scores
from dexcore.evaluate.tasks import Task
from dexcore.models import TaskModel
from dexcore.nn import set_mode
from dexcore.nn.mlp import dex_layers


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return place_of_tasks(tmp_path_factory.mktemp("finetune"))


@pytest.fixture(scope="module")
def ended(place):
    return ended_in(place)


def test_director_mode_gives_the_scores_of_the_collapsed_model(place, tmp_path):
    from dexcore.nn import collapse

    training = begun(config_of(place, "sides", mode="director"), tmp_path)
    step(training)
    task = Task.open(training.config.task)
    found = training.predictor.predict("test", tmp_path, "whole", 0)
    training.model.encoder = collapse(training.model.encoder)
    assert not any(hasattr(part, "router") for part in training.model.modules())
    plain = Predictor(training.model, task, "fp32", 4).predict("test", tmp_path, "collapsed", 0)
    np.testing.assert_allclose(found.values.astype(float), plain.values.astype(float), atol=2e-3)


@pytest.mark.parametrize("name", ["spots", "sides"])
def test_where_experts_compute_the_folder_tells_what_each_received_of_the_test_images(ended, place, name):
    (folder,) = ended[name].folders
    task = Task.open(place / name / f"{name}.yaml")
    routes = json.loads((folder / "routes.json").read_text())
    assert routes["images"] == len(task.split("test"))
    model = TaskModel.from_pretrained(folder / "model").eval()
    view = TestView(TaskImages(task, sorted_rows(task, "test")), input_of(model.encoder, model.task))
    with torch.inference_mode():
        model(torch.stack([view[number].image for number in range(len(view))]))
    layers = dex_layers(model)
    assert np.shape(routes["gates"]) == (len(layers), 3)
    for layer, gates in zip(layers, routes["gates"], strict=True):
        expected = torch.zeros(3).index_add(0, layer.routing.indices.flatten(), layer.routing.gates.flatten())
        np.testing.assert_allclose(gates, expected.numpy() / routes["images"], atol=1e-4)
    assert not (folder / "val" / "routes.json").exists()


def test_a_model_whose_directors_compute_has_no_routes(place, tmp_path):
    training = begun(config_of(place, "sides", mode="director"), tmp_path)
    training.predictor.predict("test", tmp_path, "director", 0)
    assert training.predictor.gates is None


def test_a_loaded_model_predicts_what_was_saved(ended, place, tmp_path):
    (folder,) = ended["sides"].folders
    task = Task.open(place / "sides" / "sides.yaml")
    model = TaskModel.from_pretrained(folder / "model")
    found = Predictor(model, task, "fp32", 5).predict("test", tmp_path, "again", 0)
    saved = Predictions.load(folder / "predictions.parquet")
    assert found.image == saved.image
    np.testing.assert_allclose(found.values.astype(float), saved.values.astype(float), atol=2e-3)


@pytest.mark.parametrize("name", ["spots", "sides"])
def test_a_trained_model_predicts_another_task_of_the_same_classes(ended, tmp_path, capsys, name):
    (folder,) = ended[name].folders
    make = {"spots": spots, "sides": sides}[name]
    other = make(tmp_path / "other", images=9)
    command = ["eval", "predict", str(other), str(folder), "--out", str(tmp_path / "there"), "--device", "cpu"]
    assert main([*command, "--seed=3"]) == 0
    predictions, task = Predictions.load(tmp_path / "there" / "predictions.parquet"), Task.open(other)
    assert sorted(predictions.image) == sorted(row.image for row in task.split("test"))
    (scores,) = load_scores(tmp_path / "there")
    assert (scores.task, scores.fingerprint, scores.model) == (name, task.fingerprint, f"fine-tuned on {name}")
    assert scores.seed == 3
    assert score(predictions, task).as_json() == scores.as_json()
    told = capsys.readouterr().out
    assert str(scores.primary) in told


def test_a_model_of_other_classes_is_refused_with_both_named(ended, tmp_path, capsys):
    (folder,) = ended["sides"].folders
    other = sides(tmp_path / "other", classes=["right", "left"])
    assert main(["eval", "predict", str(other), str(folder), "--out", str(tmp_path / "there")]) == 2
    told = capsys.readouterr().err
    assert "classes right, left, but the model was fine-tuned on sides with left, right: expected the same" in told
    assert not (tmp_path / "there").exists()


def test_a_batch_size_does_not_change_what_is_predicted(ended, place, tmp_path):
    """But for roundings: float16 keeps eleven bits."""
    task = Task.open(place / "sides" / "sides.yaml")
    model = TaskModel.from_pretrained(ended["sides"].folders[0] / "model")
    found = [Predictor(model, task, "fp32", size).predict("test", tmp_path, "m", 0).values for size in (1, 3, 64)]
    for values in found[1:]:
        np.testing.assert_allclose(values.astype(float), found[0].astype(float), atol=2e-3)


def brightness(images):
    """Logits that say how bright each pixel is: what predicts the reference of an image that shows it."""
    return torch.cat([1 - images[:, :1], images[:, :1]], 1)


@pytest.mark.parametrize("shape", [(16, 16), (48, 16), (16, 32)])
def test_who_predicts_the_reference_scores_exactly_1_at_native_size(place, tmp_path, shape):
    task_file = spots(tmp_path / "task", images=6)
    for number in range(6):
        small = np.random.default_rng(number).integers(0, 2, (SIZE, SIZE)).astype(np.uint8)
        mask = np.kron(small, np.ones((shape[0] // SIZE, shape[1] // SIZE), np.uint8))
        save(tmp_path / "task" / f"{number}.png", mask * 255)
        save(tmp_path / "task" / f"{number}_mask.png", mask.astype(np.uint16))
    task = Task.open(task_file)
    training = begun(tiny(task_file, place / "mine", tmp_path), tmp_path / "seed")
    model = training.model
    model.set_preprocessing((0.0,) * 3, (1.0,) * 3)
    set_mode(model, "director")  # no expert computes
    model.forward = brightness
    found = Predictor(model, task, "fp32", 2).predict("test", tmp_path / "masks", "reads", 0)
    assert score(found, task, draws=10).primary.value == 1.0
    counted = Predictor(model, task, "fp32", 2).count("val", "reads", 0)
    assert score(counted, task, "val", draws=10).primary.value == 1.0


def test_validations_read_each_image_and_mask_once(place, tmp_path, monkeypatch):
    training = begun(config_of(place), tmp_path)
    read = []
    for name in ("image", "mask"):
        true = getattr(Task, name)
        monkeypatch.setattr(Task, name, lambda self, row, name=name, true=true: read.append(name) or true(self, row))
    found = [training.predictor.count("val", "m", 0).values for _ in range(3)]
    assert sorted(read) == ["image", "image", "mask", "mask"]
    assert len(training.task.split("val")) == 2
    assert (found[0] == found[2]).all()
    read.clear()
    training.predictor.predict("test", tmp_path / "masks", "m", 0)
    assert read == ["image"] * len(training.task.split("test"))


def test_predicting_leaves_weights_buffers_and_mode_as_they_were(place, tmp_path):
    training = begun(config_of(place), tmp_path)
    training.model.train()
    before = {name: tensor.clone() for name, tensor in training.model.state_dict().items()}
    training.predictor.count("val", "m", 0)
    assert training.model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in training.model.state_dict().items())
