"""The model card beside the weights."""

import re

import numpy as np
import yaml
from timm.models.vision_transformer import VisionTransformer

from dexcore.models import DEXVisionTransformer, MaskedAutoencoder
from dexcore.nn import RoutingRule

TINY = {"img_size": 16, "patch_size": 8, "embed_dim": 8, "depth": 2, "num_heads": 2}


def card_of(model, folder):
    model.save_pretrained(folder)
    return (folder / "README.md").read_text(encoding="utf-8")


def code_of(card, folder):
    (block,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(block.splitlines()) <= 4
    return block.replace("path/to/this/folder", str(folder))


def test_a_model_saved_alone_gets_a_card_that_claims_nothing_and_loads_it(tmp_path):
    model = DEXVisionTransformer(**TINY, num_experts=[3, 2], num_classes=0)
    model.set_preprocessing([0.45] * 3, [0.225] * 3)
    card = card_of(model, tmp_path)
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["library_name"] == "dexcore"
    assert front["license"] == "unknown"
    assert {"timm", "dexcore"} <= set(front["tags"])
    assert "experts in each block 3, 2, of which an image is given 2" in card
    assert "Nothing is recorded here of the images and the training" in card
    names = {"image": np.zeros((20, 30), np.uint8)}
    exec(code_of(card, tmp_path), names)
    assert names["features"].shape == (1, 5, 8)


def test_a_dense_autoencoder_gets_a_card_that_loads_its_encoder(tmp_path):
    model = MaskedAutoencoder(VisionTransformer(**TINY, num_classes=0), 8, 1, 2, mask_ratio=0.5)
    names = {}
    exec(code_of(card_of(model, tmp_path), tmp_path), names)
    assert type(names["encoder"]) is VisionTransformer


def test_a_card_that_is_there_is_left_as_it_is(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    assert card_of(DEXVisionTransformer(**TINY, num_experts=2), tmp_path) == "mine"


def test_the_card_of_a_model_that_is_routed_by_rule_tells_it_the_image(tmp_path):
    rule = RoutingRule("oracle", modalities=("CT", "MR"))
    model = DEXVisionTransformer(**TINY, num_experts=3, num_classes=0, rule=rule)
    model.set_preprocessing([0.45] * 3, [0.225] * 3)
    card = card_of(model, tmp_path)
    assert "one of CT, MR" in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    names = {"image": np.zeros((20, 20), np.uint8), "name": "a", "modality": "MR"}
    exec(code.replace("path/to/this/folder", str(tmp_path)), names)
    assert names["features"].shape == (1, 5, 8)
