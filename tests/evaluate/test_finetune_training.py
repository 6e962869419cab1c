"""Fine-tuning's training: what a step moves in which mode, what is dropped, skipped, told, and never read."""

import shutil

import pytest
import torch
from made_finetunings import begun, config_of, losses, parts, place_of_tasks, sides, spots, step, tiny

from dexcore.engine.stop import StopRequest
from dexcore.evaluate import finetune, score
from dexcore.evaluate.finetuning import FinetuneError
from dexcore.nn.mlp import dex_layers


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return place_of_tasks(tmp_path_factory.mktemp("finetune"))


@pytest.mark.parametrize(
    ("mode", "moves", "stays"), [("director", "director", "experts"), ("experts", "experts", "director")]
)
@pytest.mark.parametrize("task", ["spots", "sides"])
def test_one_step_changes_every_tensor_of_the_mode_and_none_of_the_other(place, tmp_path, task, mode, moves, stays):
    training = begun(config_of(place, task, mode=mode), tmp_path)
    before = parts(training.model)
    line = step(training)
    after = parts(training.model)
    assert before[moves]
    assert not line["skipped"]
    assert [name for name, tensor in before[moves].items() if torch.equal(tensor, after[moves][name])] == []
    assert [name for name, tensor in before["rest"].items() if torch.equal(tensor, after["rest"][name])] == []
    assert all(torch.equal(tensor, after[stays][name]) for name, tensor in before[stays].items())


def test_layer_decay_slows_what_lies_deep_and_not_the_head(place, tmp_path):
    training = begun(config_of(place, layer_decay=0.5), tmp_path)
    step(training)
    scale = {
        id(parameter): group["lr"] / training.length.lr(0)
        for group in training.optimizer.param_groups
        for parameter in group["params"]
    }
    model = training.model
    assert scale[id(model.encoder.blocks[1].attn.qkv.weight)] == 2 * scale[id(model.encoder.blocks[0].attn.qkv.weight)]
    assert {scale[id(parameter)] for parameter in model.head.parameters()} == {1.0}


def test_drop_path_and_dropout_repeat_by_seed_and_step(place, tmp_path):
    config = config_of(place, "sides", drop_path=0.5, dropout=0.5)
    lines = []
    for number in range(2):
        torch.manual_seed(number)
        lines.append(step(begun(config, tmp_path)))
    assert lines[0] == lines[1]
    plain = begun(config_of(place, "sides"), tmp_path)
    assert step(plain)["loss"] != lines[0]["loss"]


def test_auxiliary_losses_are_off_unless_asked_for(place, tmp_path):
    assert {layer.aux for layer in dex_layers(begun(config_of(place), tmp_path).model)} == {"never"}
    training = begun(config_of(place, lambda_align=0.5, lambda_balance=0.01), tmp_path)
    line = step(training)
    assert line["loss"] > line["loss_entropy"] + line["loss_dice"]


def test_numbers_that_are_not_finite_are_skipped_and_end_it_with_the_images_named(place, tmp_path):
    training = begun(config_of(place, steps=9, max_skipped=2), tmp_path)
    with torch.no_grad():
        training.model.head.logits.bias[0] = torch.nan
    with pytest.raises(FinetuneError, match=r"task spots, .*spots\.csv: \d+\.png \(line \d+\).* not finite in 2 steps"):
        training.train(StopRequest())
    assert [line["skipped"] for line in losses(tmp_path)] == [True]


@pytest.mark.slow
def test_a_tiny_task_is_learned_by_heart(place, tmp_path):
    task = spots(tmp_path / "task", images=12)
    for number in range(12):  # test shows what train showed
        of_train = 6 * (number // 6) + number % 2
        for end in (".png", "_mask.png"):
            if number != of_train:
                shutil.copy(tmp_path / "task" / f"{of_train}{end}", tmp_path / "task" / f"{number}{end}")
    config = tiny(
        task, place / "mine", tmp_path, steps=200, lr=3e-3, min_area=1.0, flip=0.0, rotation=0.0, validations=0
    )
    (scores,) = finetune(config).scores
    assert scores.primary.value > 0.9
    labels = sides(tmp_path / "labels", images=4)  # two of train, one of val
    assert labels.is_file()


@pytest.mark.parametrize("kind", ["classification", "multilabel"])
def test_a_class_that_train_has_no_image_of_is_told(place, tmp_path, capsys, kind):
    task = sides(tmp_path / "task", kind=kind)
    begun(tiny(task, place / "mine", tmp_path / "out"), tmp_path / "seed")
    assert "note" not in capsys.readouterr().err
    task = sides(tmp_path / "task", kind=kind, classes=["left", "middle", "right"])
    begun(tiny(task, place / "mine", tmp_path / "out"), tmp_path / "seed")
    told = capsys.readouterr().err
    assert told.count("note: ") == 1
    assert "task sides: train has no image of class middle: it cannot be learned" in told


def test_nothing_of_test_is_read_before_it_is_scored(place, tmp_path, monkeypatch):
    """Of masks the fingerprint takes bytes alone: a training and its predictions, while references cannot be read."""
    from dexcore.evaluate.tasks.task import Reference

    def asked(self, row):
        raise AssertionError(f"the reference of {row.image} was read")

    monkeypatch.setattr(Reference, "mask", asked)
    training = begun(config_of(place), tmp_path / "seed")
    training.train(StopRequest())
    found = training.predictor.predict("test", tmp_path / "masks", "m", 0)
    with pytest.raises(AssertionError, match="was read"):
        score(found, training.task)
