"""Models that are fine-tuned: from scratch, dense, routed by rule, with dropout, and what cannot be saved."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from made_finetunings import SIZE, begun, config_of, parts, place_of_tasks, step
from timm.models.vision_transformer import ParallelThingsBlock, VisionTransformer

from dexcore.engine.config import ConfigError
from dexcore.engine.ranks import Ranks
from dexcore.evaluate import Predictions, finetune
from dexcore.evaluate.finetuning.build import build_model, open_encoder
from dexcore.evaluate.finetuning.predictions import Predictor
from dexcore.evaluate.tasks import Task
from dexcore.models import DEXVisionTransformer, TaskModel
from dexcore.nn import RoutingRule, rule_of, set_rule
from dexcore.nn.mlp import dex_layers
from dexcore.nn.rules import oracle_experts


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return place_of_tasks(tmp_path_factory.mktemp("finetune"))


def test_scratch_has_the_same_architecture_and_none_of_the_weights(place, tmp_path):
    mine, scratch = (begun(config_of(place, mode=mode), tmp_path).model.encoder for mode in ("experts", "scratch"))
    own, drawn = mine.state_dict(), scratch.state_dict()
    assert {name: tensor.shape for name, tensor in own.items()} == {name: t.shape for name, t in drawn.items()}
    weights = [name for name in own if name.endswith("weight") and "norm" not in name]
    assert not any(torch.equal(own[name], drawn[name]) for name in weights)
    again = begun(config_of(place, mode="scratch", seed=1), tmp_path).model.encoder.state_dict()
    assert not torch.equal(again["patch_embed.proj.weight"], drawn["patch_embed.proj.weight"])


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


def test_a_model_of_neighbouring_slices_is_refused_and_one_of_single_images_made_of_it_is_not(place, tmp_path):
    sliced = DEXVisionTransformer(16, 4, num_classes=0, embed_dim=16, depth=2, num_heads=2, num_experts=3)
    sliced.set_preprocessing((0.5,) * 3, (0.25,) * 3, slices=3)
    sliced.save_pretrained(tmp_path / "slices")
    config = config_of(place, model=str(tmp_path / "slices"))
    with pytest.raises(ConfigError, match=r"model: expected one of single images, .* takes 3 neighbouring slices"):
        open_encoder(config, 0)
    DEXVisionTransformer.from_pretrained(tmp_path / "slices", in_chans=1).save_pretrained(tmp_path / "single")
    assert open_encoder(replace(config, model=str(tmp_path / "single")), 0)[0].in_chans == 1


def test_a_modality_without_experts_is_refused_by_name(place, tmp_path):
    model = ruled_model(tmp_path / "model", RoutingRule("oracle", modalities=("CT", "MR")))
    config = config_of(place, "sides", model=model, out=str(tmp_path / "out"))
    with pytest.raises(
        ConfigError, match=r"mode: expected director, .* has none for X-ray of task sides, but for CT, MR"
    ):
        finetune(config)
    assert finetune(replace(config, mode="director", steps=1)).folders


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
