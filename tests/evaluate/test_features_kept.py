"""Features are kept by content and computed once: what is a hit, and what is a miss."""

import logging
from functools import partial

import numpy as np
import pytest
import timm
import torch
from made_models import HALF, Counted, StopsError, dex, pictures
from made_tasks import labelled, picture, save, write
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.weight_norm import WeightNorm

import dexcore
from dexcore.evaluate import Task
from dexcore.evaluate.embedding import (
    FeaturesError,
    Preprocessing,
    features,
)
from dexcore.evaluate.embedding import cache as kept
from dexcore.evaluate.embedding import extract as extraction
from dexcore.evaluate.embedding.cache import features_key
from dexcore.evaluate.embedding.identity import model_hash
from dexcore.models import DEXVisionTransformer
from dexcore.nn import set_expert_mask


def test_a_hit_runs_no_model_and_gives_the_same_bytes(tmp_path):
    model, images = dex(), pictures()
    first = features(model, images, cache=tmp_path)
    counted = Counted(model)
    again = features(model, images[::-1], cache=tmp_path, batch_size=2)
    assert counted.calls == 0
    assert again.mean[::-1].tobytes() == first.mean.tobytes()
    assert again.gates[::-1].tobytes() == first.gates.tobytes()
    more = features(model, [*images, picture(77, (40, 36))], cache=tmp_path)
    assert counted.calls == 1
    assert more.mean[:-1].tobytes() == first.mean.tobytes()


def changed(model: DEXVisionTransformer, name: str) -> None:
    with torch.no_grad():
        model.state_dict()[name].flatten()[-1] += 1e-3


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("change", "options"),
    [
        (lambda model: changed(model, "blocks.1.mlp.router.weight"), {}),
        (lambda model: changed(model, "blocks.0.mlp.experts.fc2.bias"), {}),
        (lambda model: setattr(model.blocks[1].mlp, "top_k", 3), {}),
        (lambda model: setattr(model.blocks[0].norm1, "eps", 1e-3), {}),
        (lambda model: model.set_preprocessing(HALF, (0.4, 0.5, 0.5)), {}),
        (lambda model: setattr(model.blocks[0].norm1, "mode", "other"), {}),
        (lambda model: setattr(model.blocks[0].mlp.director, "keep", 2), {}),
        (lambda model: setattr(model.blocks[0].attn, "told", {"scale": 2}), {}),
        (lambda model: setattr(model.blocks[0].attn, "beside", [torch.ones(2)]), {}),
        (lambda model: WeightNorm.apply(model.blocks[0].norm1, "weight", 0), {}),
        (lambda model: set_expert_mask(model, [[i != 1 for i in range(8)]] * 2), {}),
        (lambda model: set_expert_mask(model, [[i != 1 for i in range(8)]] * 2, "zero"), {}),
        (lambda model: None, {"mode": "director"}),
        (lambda model: None, {"precision": "bf16"}),
        (lambda model: None, {"crop": "whole"}),
        (lambda model: None, {"preprocessing": Preprocessing((32, 32), HALF, HALF, "bicubic")}),
        (lambda model: None, {"preprocessing": Preprocessing((32, 32), HALF, HALF, "bilinear", crop_pct=0.9)}),
    ],
    ids=[
        "weight",
        "bias",
        "top_k",
        "eps",
        "std",
        "attribute",
        "keep",
        "dict",
        "tensor",
        "hook",
        "mask",
        "mask of zeros",
        "mode",
        "precision",
        "crop",
        "filter",
        "crop_pct",
    ],
)
def test_whatever_changes_a_feature_is_a_miss(tmp_path, change, options):
    model, images = dex(), pictures(2)
    before = features(model, images, cache=tmp_path)
    change(model)
    counted = Counted(model)
    after = features(model, images, cache=tmp_path, **options)
    assert counted.calls == 1
    assert after.key != before.key


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_functions_of_a_model_are_in_its_hash():
    def made(*activations):
        torch.manual_seed(0)
        return nn.Sequential(*(nn.TransformerEncoderLayer(4, 1, 4, activation=each) for each in activations))

    hashes = [
        model_hash(made(*pair))
        for pair in ((F.silu, F.elu), (F.elu, F.silu), (F.silu, F.silu), (partial(F.elu, alpha=2), F.silu))
    ]
    assert len(set(hashes)) == 4
    assert model_hash(made(F.silu, F.elu)) == hashes[0]


def test_a_dex_layers_mode_and_what_acts_in_training_alone_are_not_in_the_hash():
    model = dex()
    before = model_hash(model)
    for layer in (block.mlp for block in model.blocks):
        layer.set_mode("director")
        layer.aux, layer.keep, layer.align, layer.backend = "always", "none", "cosine", "eager"
    model.preprocess(pictures(1))
    model(torch.zeros(1, 3, 32, 32))
    assert model_hash(model) == before


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_convnext2", "test_mambaout"])
def test_a_model_of_timms_needs_no_key_and_keeps_its_hash(name):
    model = timm.create_model(name, num_classes=0).eval()
    before = model_hash(model)
    with torch.no_grad():
        model.forward_features(torch.zeros(1, *model.pretrained_cfg["input_size"]))
    assert model_hash(model) == before


class Twice(nn.Module):
    def forward(self, x):
        return 2 * x


def test_code_of_others_needs_a_key_and_the_weights_still_count(tmp_path):
    def with_hook(model):
        model.blocks[0].register_forward_hook(lambda *given: given[-1] * 2)

    def with_module(model):
        model.norm = nn.Sequential(model.norm, Twice())

    def with_forward(model):
        model.norm.forward = lambda x: x

    for change in (with_hook, with_module, with_forward):
        model = dex()
        change(model)
        with pytest.raises(FeaturesError, match=r"test_features_kept\..* expected key="):
            features(model, pictures(1), cache=tmp_path)
    model = dex()
    with_module(model)
    first = features(model, pictures(1), cache=tmp_path, key="twice")
    assert features(model, pictures(1), cache=tmp_path, key="other").key != first.key
    changed(model, "blocks.0.mlp.router.weight")
    assert features(model, pictures(1), cache=tmp_path, key="twice").key != first.key


def test_versions_and_how_torch_rounds_products_are_in_the_key(monkeypatch):
    view, cpu = Preprocessing((32, 32), HALF, HALF), torch.device("cpu")

    def key():
        return features_key("model", "", view, "fp32", cpu)

    keys = [key()]
    products = torch.backends.mkldnn.matmul
    before = products.fp32_precision
    try:
        products.fp32_precision = "bf16"
        keys.append(key())
    finally:
        products.fp32_precision = before
    assert key() == keys[0]
    for name in ("torch", "timm", "Pillow", "pydicom"):
        with monkeypatch.context() as patch:
            patch.setattr(kept, "package_version", lambda asked, name=name: "0" if asked == name else "1")
            keys.append(key())
    with monkeypatch.context() as patch:
        patch.setattr(dexcore, "__version__", "0")
        keys.append(key())
    assert len(set(keys)) == len(keys)


def test_masked_features_are_kept_apart_from_others(tmp_path):
    model, images = dex(), pictures(2)
    free = features(model, images, cache=tmp_path)
    keys = {free.key}
    for out in range(2):
        for instead in ("reroute", "zero", "director"):
            with set_expert_mask(model, [[i != out for i in range(8)]] * 2, instead):
                keys.add(features(model, images, cache=tmp_path).key)
    assert len(keys) == 7
    calls = Counted(model)
    assert np.array_equal(features(model, images, cache=tmp_path).mean, free.mean)
    assert calls.calls == 0


def test_one_pixel_is_a_miss_of_one_image(tmp_path):
    model = dex()
    task = Task.open(write(tmp_path, labelled(tmp_path, copies=1)))
    before = features(model, task, cache=tmp_path / "cache")
    changed_image = task.rows[4].image
    pixels = picture(4)
    pixels[0, 0] ^= 1
    save(tmp_path / changed_image, pixels)
    counted = Counted(model)
    after = features(model, task, cache=tmp_path / "cache", batch_size=1)
    assert counted.calls == 1
    differ = [name for row, name in enumerate(after.image) if after.row_key[row] != before.row_key[row]]
    assert differ == [changed_image]


def test_equal_images_are_computed_once(tmp_path):
    model = dex()
    counted = Counted(model)
    table = features(model, [picture(0), picture(1), picture(0)], cache=tmp_path, batch_size=1)
    assert counted.calls == 2
    assert np.array_equal(table.mean[0], table.mean[2])


def test_what_was_computed_before_an_error_is_kept_and_the_end_is_the_same(tmp_path, monkeypatch):
    model, images = dex(), pictures(9)
    whole = features(model, images, cache=tmp_path / "whole", batch_size=2)
    monkeypatch.setattr(extraction, "_STREAM_ROWS", 2)
    counted = Counted(model)
    counted.stops = 3
    with pytest.raises(StopsError):
        features(model, images, cache=tmp_path / "cut", batch_size=2)
    counted.stops = -1
    resumed = features(model, images, cache=tmp_path / "cut", batch_size=2)
    assert counted.calls == 3 + 2  # of 5 batches three were kept
    assert resumed.mean.tobytes() == whole.mean.tobytes()
    assert resumed.gates.tobytes() == whole.gates.tobytes()


def test_a_damaged_stream_is_a_miss(tmp_path, caplog):
    model, images = dex(), pictures(3)
    first = features(model, images, cache=tmp_path)
    (stream,) = tmp_path.rglob("*.arrow")
    stream.write_bytes(stream.read_bytes()[:-200])
    with caplog.at_level(logging.WARNING):
        again = features(model, images, cache=tmp_path)
    assert "is not used" in caplog.text
    assert again.mean.tobytes() == first.mean.tobytes()
