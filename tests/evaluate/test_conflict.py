"""Gradients of shared weights: the same in one model as in its twin, and against what is computed plainly."""

import copy

import numpy as np
import pytest
import torch
from planted import planted, write_stripes
from timm.models.vision_transformer import VisionTransformer

from dexcore.evaluate.modules import fold_gradients, setting_of, shared_weights, take_samples
from dexcore.evaluate.reconstruct import batches
from dexcore.measures.conflict import conflict, conflict_minus, shortfall
from dexcore.models import MaskedAutoencoder

_CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_stripes(tmp_path_factory.mktemp("stripes") / "store")


@pytest.fixture(scope="module")
def model(images):
    return planted(images)


def dense():
    torch.manual_seed(0)
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 0}
    encoder = VisionTransformer(**size, class_token=False, global_pool="avg")
    return MaskedAutoencoder(encoder, 16, 1, 2, mask_ratio=0.5, norm_pix_loss=False)


def test_shared_weights_are_those_that_both_have_and_every_image_uses(model):
    alone, both = shared_weights({"dex": model}), shared_weights({"dex": model, "dense": dense()})
    assert alone == both
    assert "blocks.1.attn.qkv.weight" in both
    assert "patch_embed.proj.weight" in both
    assert not [name for name in both if "mlp" in name or "pos_embed" in name]
    assert "blocks.1.mlp.fc1.weight" in shared_weights({"one": dense(), "other": dense()})


def test_products_are_those_of_the_folds_gradients(images, model):
    sample, setting = take_samples(images).train, setting_of(model)
    found = fold_gradients({"dex": model, "dense": dense()}, sample, setting, _CPU, most=4)["dex"]
    assert (found.modalities, found.cases) == (sample.modalities, 24)
    assert found.label_f.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert found.half_f.tolist() == [0, 1] * 6
    own = dict(model.encoder.named_parameters())
    vectors = []
    for modality in (0, 1):  # the first fold of each: its cases 0 and 4
        cases = np.unique(sample.case_n[sample.label_n == modality])[::4]
        (batch,) = batches(images, sample.rows[np.isin(sample.case_n, cases)], model, setting, draw=1)
        model.zero_grad()
        (len(batch.sample_id) * model(batch.images, noise=batch.noise).loss).backward()
        vectors.append(torch.cat([own[name].grad.flatten() for name in shared_weights({"dex": model})]))
    model.zero_grad(set_to_none=True)
    one, other = vectors
    scale = float(one.norm() * other.norm())
    assert found.weights == len(one)
    assert found.product_ff[0, 4] == pytest.approx(float(one @ other), abs=0.02 * scale)
    assert found.product_ff[0, 0] == pytest.approx(float(one @ one), rel=0.02)


def test_a_model_and_its_copy_do_not_differ_and_are_left_as_they_were(images, model):
    models = {"dex": model.train(), "copy": copy.deepcopy(model)}
    found = fold_gradients(models, take_samples(images, 8).train, setting_of(model), _CPU, most=4)
    assert model.training
    model.eval()
    assert all(parameter.grad is None for parameter in model.parameters())
    told = conflict_minus(found["dex"], found["copy"], draws=50)
    assert (told.shortfall.value, told.shortfall.low, told.shortfall.high) == (0, 0, 0)
    one = conflict(found["dex"], draws=50)
    ones = np.ones((1, len(found["dex"].label_f)))
    assert one.shortfall.value == shortfall(found["dex"].cosines(ones))[0]
    assert one.between.groups == found["dex"].cases


def test_models_of_other_widths_have_nothing_in_common(images, model):
    sample, setting = take_samples(images, 2).train, setting_of(model)
    encoder = VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=2, num_classes=0)
    wide = MaskedAutoencoder(encoder, 16, 1, 2)
    with pytest.raises(ValueError, match="the models dex, wide have no weight in common"):
        fold_gradients({"dex": model, "wide": wide}, sample, setting, _CPU)
