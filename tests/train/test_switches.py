"""Switches of a run's arithmetic act inside it, are written down, and act on nothing after it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import metrics, tiny
from torch.utils.data import Dataset

from dexcore.data import open_mvu
from dexcore.engine.numerics import numerics
from dexcore.nn.mlp import DEXMlp
from dexcore.train import pretrain
from dexcore.train.build import model_of_run


class Images(Dataset):
    def __len__(self):
        return 20

    def __getitem__(self, index):
        return torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(index))


def test_switches_act_inside_are_written_down_and_are_off_afterwards(store, tmp_path):
    seen = []

    def transform(image):
        seen.append(numerics())
        return image

    config = tiny(Path(""), tmp_path / "run", epochs=1.2, deterministic=True, tf32=True)
    config = replace(config, data=replace(config.data, store=""))
    assert pretrain(config, Images(), transform).finished
    assert seen
    assert all(inside == {"deterministic": True, "tf32": True} for inside in seen)
    (start,) = (json.loads(line) for line in (tmp_path / "run" / "starts.jsonl").read_text().splitlines())
    assert start["machine"]["deterministic"]
    assert start["machine"]["tf32"]
    assert numerics() == {"deterministic": False, "tf32": False}

    def undecided(image):
        return image.put_(torch.tensor([0]), torch.zeros(1))

    with pytest.raises(RuntimeError, match="put_ does not have a deterministic implementation"):
        pretrain(replace(config, out=str(tmp_path / "other")), Images(), undecided)
    assert numerics() == {"deterministic": False, "tf32": False}


def test_experts_take_tf32_where_the_run_does(store, tmp_path):
    for on, precision in ((False, "ieee"), (True, "tf32")):
        model = model_of_run(tiny(store, tmp_path, tf32=on), open_mvu(store))
        assert {layer.precision for layer in model.modules() if isinstance(layer, DEXMlp)} == {precision}


def test_a_deterministic_run_is_the_same_run(store, whole_run, tmp_path):
    config = tiny(store, tmp_path / "run", deterministic=True)
    assert pretrain(config).finished
    assert metrics(config.out) == metrics(whole_run.out)
