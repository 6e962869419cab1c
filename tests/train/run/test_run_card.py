"""What a run leaves beside its model's weights: the view of its images, and a card with its numbers."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from timm.data import resolve_model_data_config

from dexcore.data.feed.augment import CHANNEL_STATISTICS
from dexcore.data.feed.dataset import open_mvu
from dexcore.data.modality import Modality
from dexcore.evaluate.reconstruct import batches
from dexcore.models import DEXVisionTransformer, MaskedAutoencoder


def test_a_runs_model_makes_the_images_of_its_evaluation_to_the_bit(whole_run, store):
    images = open_mvu(store)
    model = MaskedAutoencoder.from_pretrained(Path(whole_run.out) / "model")
    (batch,) = batches(images, np.arange(8), model, whole_run.setting)
    assert torch.equal(model.preprocess([images.read(row) for row in range(8)]), batch.images)
    told = resolve_model_data_config(model.encoder)
    assert (told["mean"], told["std"]) == CHANNEL_STATISTICS[whole_run.data.statistics]
    assert told["input_size"] == (3, 32, 32)
    assert model.normalization == {name: ["div255"] for name in ("PET", "OCT", "Endoscopy", "Photo")}


def test_a_runs_card_says_what_it_saw_and_what_was_measured(whole_run, store):
    folder = Path(whole_run.out)
    card = (folder / "model" / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(card.split("---\n")[1])
    assert "masked-autoencoder" in front["tags"]
    images = open_mvu(store)
    for modality in ("PET", "OCT", "Endoscopy", "Photo"):
        rows = images.modality == [each.value for each in Modality].index(modality)
        held = int((rows & (images.split == "heldout")).sum())
        assert f"| {modality} (synthetic) | {rows.sum() - held} | {held} | div255 |" in card
    assert "40 of 8 images" in card
    value = json.loads((folder / "summary.json").read_text())["variance_explained"]["training"]["mean"]["value"]
    assert f"{value:.3f}" in card
    assert str(folder) not in card  # it is handed on
    for heading in ("Intended use", "Limits", "Licence"):
        assert f"## {heading}\n" in card
    (block,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    names = {"image": images.read(0)}
    exec(block.replace("path/to/this/folder", str(folder / "model")), names)
    assert names["features"].shape == (1, 17, 16)


def test_given_a_runs_folder_it_says_which_folder_to_pass(whole_run):
    folder = Path(whole_run.out)
    with pytest.raises(FileNotFoundError) as told:
        DEXVisionTransformer.from_pretrained(folder)
    assert str(told.value) == f"{folder} is not a model's folder but holds one: pass {folder / 'model'}"
