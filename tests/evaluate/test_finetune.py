"""Fine-tuning: what is trained in which mode, what it leaves in the folder, what is refused."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from made_finetunings import SIZE, begun, losses, sides, small_model, spots, tiny
from made_tasks import save
from PIL import Image
from timm.models.vision_transformer import ParallelThingsBlock, VisionTransformer

from dexcore.cli import main
from dexcore.engine.config import ConfigError
from dexcore.engine.folder import RunFolderError
from dexcore.engine.ranks import Ranks
from dexcore.engine.stop import StopRequest
from dexcore.evaluate import FinetuneConfig, Predictions, finetune, score
from dexcore.evaluate.finetuning import FinetuneError
from dexcore.evaluate.finetuning.build import build_model, open_encoder
from dexcore.evaluate.finetuning.config import Length
from dexcore.evaluate.finetuning.data import TaskImages, TestView, sorted_rows, sound
from dexcore.evaluate.finetuning.predictions import Predictor
from dexcore.evaluate.finetuning.run import RunResult
from dexcore.evaluate.finetuning.training import Finetuning
from dexcore.evaluate.prediction.images import input_of
from dexcore.evaluate.scores.across import load_scores, table
from dexcore.evaluate.tasks import Task, TaskError
from dexcore.models import DEXVisionTransformer, TaskModel
from dexcore.nn import RoutingRule, rule_of, set_mode, set_rule
from dexcore.nn.mlp import dex_layers
from dexcore.nn.rules import oracle_experts


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, a task of masks and one of labels."""
    folder = tmp_path_factory.mktemp("finetune")
    small_model(folder / "mine")
    spots(folder / "spots")
    sides(folder / "sides")
    return folder


@pytest.fixture(scope="module")
def ended(place):
    """A fine-tuning of masks and one of labels, by the kind of their task."""
    tasks = {"spots": place / "spots" / "spots.yaml", "sides": place / "sides" / "sides.yaml"}
    return {name: finetune(tiny(task, place / "mine", place / "out")) for name, task in tasks.items()}


def config_of(place, task="spots", **changes):
    return replace(tiny(place / task / f"{task}.yaml", place / "mine", place / "other"), **changes)


def step(training):
    training.model.train()
    return training.step(next(sound(training.batches(workers=0))))


def parts(model):
    """A copy of the tensors of experts and routers, of directors, and of all else."""
    found = {"experts": {}, "director": {}, "rest": {}}
    for name, parameter in model.named_parameters():
        part = (
            "experts" if ".experts." in name or ".router." in name else "director" if ".director." in name else "rest"
        )
        found[part][name] = parameter.detach().clone()
    return found


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


def test_scratch_has_the_same_architecture_and_none_of_the_weights(place, tmp_path):
    mine, scratch = (begun(config_of(place, mode=mode), tmp_path).model.encoder for mode in ("experts", "scratch"))
    own, drawn = mine.state_dict(), scratch.state_dict()
    assert {name: tensor.shape for name, tensor in own.items()} == {name: t.shape for name, t in drawn.items()}
    weights = [name for name in own if name.endswith("weight") and "norm" not in name]
    assert not any(torch.equal(own[name], drawn[name]) for name in weights)
    again = begun(config_of(place, mode="scratch", seed=1), tmp_path).model.encoder.state_dict()
    assert not torch.equal(again["patch_embed.proj.weight"], drawn["patch_embed.proj.weight"])


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
def test_the_folder_holds_model_predictions_and_scores(ended, place, name):
    result, task = ended[name], Task.open(place / name / f"{name}.yaml")
    assert result.finished
    assert result.exit_code == 0
    (folder,) = result.folders
    assert folder == place / "out" / "mine" / "finetune-experts" / name / "seed-0"
    predictions = Predictions.load(folder / "predictions.parquet")
    assert sorted(predictions.image) == sorted(row.image for row in task.split("test"))
    assert predictions.kind == ("mask" if name == "spots" else "logits")
    if name == "spots":
        for number, image in enumerate(predictions.image):
            row = next(row for row in task.rows if row.image == image)
            assert predictions.mask(number).shape == task.image(row).shape  # the image's own
    else:
        assert predictions.values.dtype == np.float16
    again = score(predictions, task)
    assert again.as_json() == json.loads((folder / "scores.json").read_text()) == result.scores[0].as_json()
    assert len(Predictions.load(folder / "val" / "predictions.parquet")) == len(task.split("val"))
    assert not (folder / "checkpoints").exists()
    lines = losses(folder)
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert (
        lines[-1][f"val_{task.spec.metric}"] == json.loads((folder / "choice.json").read_text())["best_on_val"]["value"]
    )
    for state in ("model", "best"):
        model = TaskModel.from_pretrained(folder / state)
        assert (model.task.kind, model.task.classes) == (task.kind, task.classes)


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
    assert main(["eval", "predict", str(other), str(folder), "--out", str(tmp_path / "there"), "--device", "cpu"]) == 0
    predictions, task = Predictions.load(tmp_path / "there" / "predictions.parquet"), Task.open(other)
    assert sorted(predictions.image) == sorted(row.image for row in task.split("test"))
    (scores,) = load_scores(tmp_path / "there")
    assert (scores.task, scores.fingerprint, scores.model) == (name, task.fingerprint, f"fine-tuned on {name}")
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


def test_tables_and_comparisons_read_it(ended, place):
    found = load_scores(place / "out")
    assert {(one.model, one.split) for one in found} == {("mine finetune-experts", "test")}
    assert [row.task for row in table(found).rows] == ["sides", "spots"]
    told = "\n".join(ended["spots"].lines())
    assert "dexcore predict IMAGE" in told
    assert "dexcore eval table" in told
    assert "dice" in told


def test_a_finished_seed_is_not_run_again_and_another_one_is_another_training(ended, place):
    (folder,) = ended["sides"].folders
    written = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    task = place / "sides" / "sides.yaml"
    both = finetune(tiny(task, place / "mine", place / "out", seeds=2))
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == written
    assert [path.name for path in both.folders] == ["seed-0", "seed-1"]
    of_seeds = [Predictions.load(one / "predictions.parquet") for one in both.folders]
    assert [one.seed for one in of_seeds] == [0, 1]
    assert (of_seeds[0].values != of_seeds[1].values).any()
    assert "2 seeds" in "\n".join(both.lines())
    shutil.rmtree(both.folders[1])


@pytest.mark.parametrize(("changed", "named"), [("0.png", "images"), ("3_mask.png", "task")])
def test_images_and_masks_that_changed_in_their_place_are_another_training(ended, place, tmp_path, changed, named):
    shutil.copytree(place / "spots", tmp_path / "spots")
    shutil.copytree(place / "out", tmp_path / "out")
    config = tiny(tmp_path / "spots" / "spots.yaml", place / "mine", tmp_path / "out")
    finetune(config)  # is done
    save(tmp_path / "spots" / changed, 1 - np.asarray(Image.open(tmp_path / "spots" / changed)))
    with pytest.raises(RunFolderError, match=rf"holds another fine-tuning(?s:.*)\n  {named}: ") as told:
        finetune(config)
    assert len(str(told.value).splitlines()) == 2


def test_seeds_that_cannot_be_summed_up_end_no_training_in_an_error(ended):
    (one,) = ended["sides"].scores
    found = RunResult((ended["sides"].folders[0],) * 2, (one, replace(one, seed=1)), finished=True)
    assert "  note: task sides: seeds 0 and 1 made the same predictions to the bit" in "\n".join(found.lines())
    (masks,) = ended["spots"].scores
    both = RunResult((ended["spots"].folders[0],) * 2, (masks, replace(masks, seed=1)), finished=True)
    told = "\n".join(both.lines())
    assert "2 seeds: dice" in told
    assert "note: seeds 0 and 1 predict alike" in told


def test_the_same_seed_gives_the_same_bytes(ended, place):
    for name, result in ended.items():
        (again,) = finetune(config_of(place, name, out=str(place / "again"))).folders
        for file in ("model/model.safetensors", "best/model.safetensors", "predictions.parquet", "choice.json"):
            assert (again / file).read_bytes() == (result.folders[0] / file).read_bytes(), file


def test_other_test_labels_change_no_byte_of_the_model_the_choice_or_the_logits(ended, place, tmp_path):
    shutil.copytree(place / "sides", tmp_path / "sides")
    table_file = tmp_path / "sides" / "sides.csv"
    lines = table_file.read_text().splitlines()
    other = {"left": "right", "right": "left"}
    for number, line in enumerate(lines):
        if ",test," in line:
            label = line.split(",")[2]
            lines[number] = line.replace(f",{label},", f",{other[label]},")
    table_file.write_text("\n".join(lines) + "\n")
    (found,) = finetune(tiny(tmp_path / "sides" / "sides.yaml", place / "mine", tmp_path / "out")).folders
    (known,) = ended["sides"].folders
    for file in ("choice.json", "model/model.safetensors", "best/model.safetensors", "val/scores.json"):
        if file == "val/scores.json":
            told = [json.loads((one / file).read_text()) for one in (found, known)]
            assert told[0]["numbers"] == told[1]["numbers"]
        else:
            assert (found / file).read_bytes() == (known / file).read_bytes(), file
    values = [Predictions.load(one / "predictions.parquet").values for one in (found, known)]
    assert (values[0] == values[1]).all()
    assert (found / "scores.json").read_bytes() != (known / "scores.json").read_bytes()


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


def test_a_dense_model_of_timms_is_trained_whole_and_has_no_director(place, tmp_path):
    config = config_of(place, "sides", model="test_vit", weights="random", img_size=32, steps=1, out=str(tmp_path))
    (folder,) = finetune(config).folders
    assert folder.parts[-3:] == ("finetune", "sides", "seed-0")
    with pytest.raises(ConfigError, match=r"mode: .* test_vit has no directors"):
        finetune(replace(config, mode="director"))


RULES = {"fixed": RoutingRule("fixed"), "oracle": RoutingRule("oracle", modalities=("CT", "X-ray"))}


def ruled_model(folder, rule):
    ruled = DEXVisionTransformer(16, 4, num_classes=0, embed_dim=16, depth=2, num_heads=2, num_experts=3)
    ruled.set_preprocessing((0.5,) * 3, (0.25,) * 3)
    set_rule(ruled, rule)
    ruled.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("kind", ["fixed", "oracle"])
@pytest.mark.parametrize("mode", ["experts", "director", "scratch"])
def test_a_model_whose_experts_a_rule_chooses_is_told_the_images_of_the_task(place, tmp_path, kind, mode):
    model = ruled_model(tmp_path / "model", RULES[kind])
    config = config_of(place, "sides", model=model, mode=mode, steps=2, out=str(tmp_path / "out"))
    (folder,) = finetune(config).folders
    task = Task.open(config.task)
    trained = TaskModel.from_pretrained(folder / "model")
    assert rule_of(trained) == RULES[kind]
    found = [Predictor(trained, task, "fp32", size).predict("test", tmp_path, "m", 0).values for size in (1, 3)]
    for values in (*found, Predictions.load(folder / "predictions.parquet").values):
        np.testing.assert_allclose(values.astype(float), found[0].astype(float), atol=2e-3)


def test_a_rule_chooses_the_experts_that_learn(place, tmp_path):
    model = ruled_model(tmp_path / "model", RULES["oracle"])
    training = begun(config_of(place, "sides", model=model), tmp_path / "seed")
    before = parts(training.model)["experts"]
    step(training)
    after = parts(training.model)["experts"]
    layer = dex_layers(training.model)[0]
    chosen = oracle_experts(2, layer.num_experts, layer.top_k)[1].tolist()  # of X-ray
    weights = [name for name in before if ".experts." in name]
    assert weights
    for name in weights:
        changed = (before[name] - after[name]).flatten(1).abs().max(dim=1).values
        assert (changed > 5e-5).nonzero().flatten().tolist() == chosen, name  # the others decay a little


def test_a_modality_without_experts_is_refused_by_name(place, tmp_path):
    model = ruled_model(tmp_path / "model", RoutingRule("oracle", modalities=("CT", "MR")))
    config = config_of(place, "sides", model=model, out=str(tmp_path / "out"))
    with pytest.raises(
        ConfigError, match=r"mode: expected director, .* has none for X-ray of task sides, but for CT, MR"
    ):
        finetune(config)
    assert finetune(replace(config, mode="director", steps=1)).folders


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


def test_what_is_dropped_is_the_same_on_any_number_of_processes(place, tmp_path):
    config = config_of(place, "sides", drop_path=0.5, dropout=0.5)
    images, found = torch.randn(4, 3, SIZE, SIZE), []
    for count in (1, 2, 4):
        for rank, own in enumerate(images.chunk(count)):
            encoder, _ = open_encoder(config, 0)
            model = build_model(config, Task.open(config.task), encoder, 0, Ranks(rank, count)).train()
            torch.manual_seed(7)
            found.append(model(own).detach())
    whole, *parts = found
    torch.testing.assert_close(torch.cat(parts[:2]), whole)
    torch.testing.assert_close(torch.cat(parts[2:]), whole)
    assert not torch.allclose(model.eval()(images), whole)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(TaskModel.from_pretrained(tmp_path)(images), model(images))


def test_a_model_that_could_not_be_saved_is_refused_before_it_is_trained(place):
    encoder = VisionTransformer(SIZE, 4, embed_dim=16, depth=2, num_heads=2, block_fn=ParallelThingsBlock)
    encoder.pretrained_cfg = {"input_size": (3, SIZE, SIZE), "mean": (0.5,) * 3, "std": (0.25,) * 3}
    config = config_of(place, "sides", drop_path=0.2)
    with pytest.raises(ValueError, match=r"block_fn: .* got ParallelThingsBlock"):
        build_model(config, Task.open(config.task), encoder, 0)


def test_auxiliary_losses_are_off_unless_asked_for(place, tmp_path):
    assert {layer.aux for layer in dex_layers(begun(config_of(place), tmp_path).model)} == {"never"}
    training = begun(config_of(place, lambda_align=0.5, lambda_balance=0.01), tmp_path)
    line = step(training)
    assert line["loss"] > line["loss_entropy"] + line["loss_dice"]


def test_a_length_is_100_epochs_or_2000_steps_up_to_20000():
    lengths = [Length(FinetuneConfig(), images).total_steps for images in (20, 1600, 10**6)]
    assert lengths == [2000, 10_000, 20_000]
    assert Length(FinetuneConfig(epochs=3), 160).total_steps == 30
    length = Length(FinetuneConfig(), 1600)
    assert length.warmup_steps == 1000
    assert length.lr(1000) == 1e-4
    assert length.lr(0) < length.lr(500) < 1e-4
    assert length.lr(9999) < 1e-8
    assert sum(length.validates(step + 1) for step in range(10_000)) == 20
    assert length.validates(10_000)


def test_a_mask_that_cannot_be_read_ends_it_with_task_file_and_line(place, tmp_path):
    task = spots(tmp_path / "task")
    save(tmp_path / "task" / "1_mask.png", np.full((21, 24), 7, np.uint8))
    with pytest.raises(TaskError, match=r"task spots: .*spots\.csv, line 3: .*1_mask\.png: holds the value 7"):
        finetune(tiny(task, place / "mine", tmp_path / "out"))


def test_numbers_that_are_not_finite_are_skipped_and_end_it_with_the_images_named(place, tmp_path):
    training = begun(config_of(place, steps=9, max_skipped=2), tmp_path)
    with torch.no_grad():
        training.model.head.logits.bias[0] = torch.nan
    with pytest.raises(FinetuneError, match=r"task spots, .*spots\.csv: \d+\.png \(line \d+\).* not finite in 2 steps"):
        training.train(StopRequest())
    assert [line["skipped"] for line in losses(tmp_path)] == [True]


def test_a_folder_of_another_fine_tuning_is_refused_with_what_differs(ended, place):
    task = place / "spots" / "spots.yaml"
    with pytest.raises(RunFolderError, match=r"another fine-tuning.*(?s:.*)lr: 0.0001 -> 0.01"):
        finetune(tiny(task, place / "mine", place / "out", lr=1e-2))


@pytest.mark.parametrize("lost", ["scores.npz", "scores.json"])
def test_a_done_training_whose_scores_are_lost_predicts_again_and_is_not_trained_again(place, tmp_path, capsys, lost):
    config = config_of(place, "sides", out=str(tmp_path))
    (folder,) = finetune(config).folders
    kept = ("model/model.safetensors", "best/model.safetensors", "metrics.jsonl", "choice.json", "predictions.parquet")
    before = {name: (folder / name).read_bytes() for name in (*kept, "scores.json")}
    written = (folder / "model" / "model.safetensors").stat().st_mtime_ns
    (folder / lost).unlink()
    again = finetune(config)
    assert again.finished
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert (folder / "model" / "model.safetensors").stat().st_mtime_ns == written
    assert "scores.npz" in {path.name for path in folder.iterdir()}


def test_a_folder_says_from_its_beginning_what_is_made_there(place, tmp_path, monkeypatch):
    """One that was killed before its first checkpoint: another one is refused, its own command goes on."""
    config = config_of(place, "sides", out=str(tmp_path))

    def killed(self, stop):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Finetuning, "train", killed)
        with pytest.raises(KeyboardInterrupt):
            finetune(config)
    with pytest.raises(RunFolderError, match=r"another fine-tuning.*(?s:.*)lr: 0.0001 -> 0.01"):
        finetune(replace(config, lr=1e-2))
    (folder,) = tmp_path.rglob("seed-0")
    (folder / "best").mkdir()
    (folder / "best" / "config.json").write_text("of another")
    (folder / "finetune.json").unlink()
    finetune(replace(config, validations=0))
    assert not (folder / "best").exists()
    assert json.loads((folder / "finetune.json").read_text())["finished"] is True


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"lr": -1.0}, "lr: expected a number above 0"),
        ({"img_size": 18}, "img_size: expected a multiple of .*patches of 4, got 18"),
        ({"mode": "both"}, "mode: expected 'experts' or"),
        ({"pool": "mean"}, "pool: is not for task spots"),
        ({"steps": 3, "epochs": 1.0}, "steps: expected 0 beside epochs"),
        ({"mode": "director", "lambda_align": 1.0}, "lambda_align"),
    ],
)
def test_a_field_that_cannot_be_is_named(place, tmp_path, wrong, told):
    with pytest.raises(ConfigError, match=told):
        finetune(config_of(place, **({"out": str(tmp_path)} | wrong)))
    assert not (tmp_path / "mine").exists()


def test_a_full_disk_ends_it_with_the_file_and_what_was_done_stays(place, tmp_path, monkeypatch):
    config = config_of(place, "sides", out=str(tmp_path))

    def full(self, folder):
        raise OSError(28, "No space left on device", str(folder))

    with monkeypatch.context() as patched:
        patched.setattr(TaskModel, "save_pretrained", full)
        with pytest.raises(RunFolderError, match=r"best: the model cannot be written: .*No space left"):
            finetune(config)
    assert finetune(config).finished


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


@pytest.mark.parametrize("kind", ["multilabel", "ordinal", "multilabel_segmentation"])
def test_every_kind_of_task_is_trained_predicted_and_scored(place, tmp_path, kind):
    keys = {"kind": kind, "classes": ["left", "right"]}
    task = sides(tmp_path / "task", **keys)
    if kind == "multilabel_segmentation":
        text = (tmp_path / "task" / "sides.csv").read_text()
        head, *lines = text.splitlines()
        rows = [f"{line},{line.split(',')[1]}" for line in lines]
        table_text = [head.replace(",mask,", ",mask_left,") + ",mask_right", *rows]
        (tmp_path / "task" / "sides.csv").write_text("\n".join(table_text) + "\n")
    result = finetune(tiny(task, place / "mine", tmp_path / "out", steps=1))
    (scores,) = result.scores
    assert scores.kind == kind
    assert set(scores.per_class) == {"left", "right"}
    predictions = Predictions.load(result.folders[0] / "predictions.parquet")
    assert predictions.kind == ("mask" if "segmentation" in kind else "logits")


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


def test_a_task_without_val_has_no_best_state(place, tmp_path):
    task = sides(tmp_path / "task")
    table_file = tmp_path / "task" / "sides.csv"
    table_file.write_text(table_file.read_text().replace(",val,", ",train,"))
    (folder,) = finetune(tiny(task, place / "mine", tmp_path / "out", steps=1)).folders
    assert json.loads((folder / "choice.json").read_text())["best_on_val"] is None
    assert not (folder / "best").exists()
    assert not (folder / "val").exists()


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
