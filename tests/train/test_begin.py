"""A run that begins with a model of dexcore's: another run's, of another size, of another objective."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import state, tiny
from several_ranks import alone

from dexcore.data import open_mvu
from dexcore.engine.config import ConfigError
from dexcore.models import DEXVisionTransformer, MaskedAutoencoder, TeacherShape
from dexcore.train import pretrain
from dexcore.train.build import build_model, model_of_run


def _beginning_with(config, init, **model):
    return replace(config, model=replace(config.model, init=str(init), **model))


@pytest.mark.parametrize("of", ["run", "model"])
def test_it_begins_with_experts_routers_directors_and_decoder_of_the_other(store, whole_run, tmp_path, of):
    folder = Path(whole_run.out) if of == "run" else Path(whole_run.out) / "model"
    config = _beginning_with(tiny(store, tmp_path, seed=7), folder)
    begun = state(model_of_run(config, open_mvu(store), str(folder)))
    saved = state(MaskedAutoencoder.from_pretrained(Path(whole_run.out) / "model"))
    assert begun.keys() == saved.keys()
    assert all(np.array_equal(value, saved[name]) for name, value in begun.items())


def test_the_run_knows_it_by_its_content_and_goes_on_without_it(store, own_run, tmp_path):
    config = _beginning_with(tiny(store, tmp_path / "begun", epochs=4.0), own_run.out)
    content = hashlib.sha256((Path(own_run.out) / "model" / "model.safetensors").read_bytes()).hexdigest()
    alone(config, until=5)
    (Path(own_run.out) / "model" / "model.safetensors").unlink()
    alone(replace(config, resume=True))
    starts = [json.loads(line) for line in (tmp_path / "begun" / "starts.jsonl").read_text().splitlines()]
    assert [start.get("init_sha256") for start in starts] == [content, None]


def test_at_another_image_size_all_but_positions_is_the_other_s(store, whole_run, tmp_path):
    config = _beginning_with(tiny(store, tmp_path), whole_run.out, image_size=48)
    begun = state(build_model(config.model))
    saved = state(MaskedAutoencoder.from_pretrained(Path(whole_run.out) / "model"))
    others = {name for name, value in begun.items() if not np.array_equal(value, saved[name])}
    assert others == {"encoder.pos_embed", "decoder_pos_embed"}


def test_another_objective_takes_the_encoder_alone(store, whole_run, tmp_path):
    config = _beginning_with(tiny(store, tmp_path), whole_run.out)
    torch.manual_seed(3)
    student = build_model(config.model, teacher=TeacherShape(24, True))
    saved = state(DEXVisionTransformer.from_pretrained(Path(whole_run.out) / "model"))
    begun = state(student.encoder)
    assert all(np.array_equal(value, saved[name]) for name, value in begun.items())
    assert begun.keys() == saved.keys()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"dim": 32}, "does not fit the MaskedAutoencoder: of another shape"),
        ({"num_experts": 5}, "does not fit the MaskedAutoencoder: of another shape"),
        ({"depth": 1, "num_experts": 4, "top_k": 2}, "unexpected: encoder.blocks.1"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_before_anything_is_written(store, whole_run, tmp_path, model, message):
    config = _beginning_with(tiny(store, tmp_path / "run"), whole_run.out, **model)
    with pytest.raises(ConfigError, match=f"model.init: .*{message}"):
        pretrain(config)
    assert not (tmp_path / "run").exists()


def test_a_folder_without_a_model_is_refused(store, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"model\.init: .*no such file"):
        build_model(_beginning_with(tiny(store, tmp_path), tmp_path / "empty").model)
