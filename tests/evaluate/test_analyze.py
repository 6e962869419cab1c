"""What a model alone can tell, against the plainest way to compute it."""

import numpy as np
import pytest
import torch
from runs import tiny

from dexcore.data.feed.dataset import MODALITIES, open_mvu
from dexcore.data.modality import Modality
from dexcore.data.record import ImageRecord
from dexcore.data.store import write_store
from dexcore.data.synthetic import SyntheticMVU
from dexcore.evaluate.analyze import analyze
from dexcore.evaluate.reconstruct import batches, evaluate
from dexcore.nn import collapse
from dexcore.nn.mlp import dex_layers
from dexcore.train.build import build_model

_CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def setup(store, tmp_path_factory):
    config = tiny(store, tmp_path_factory.mktemp("analyze"), precision="fp32")
    torch.manual_seed(0)
    model = build_model(config.model)
    with torch.no_grad():  # experts that differ, a router that tells images apart
        for layer in dex_layers(model):
            layer.router.weight.mul_(100)
            for parameter in layer.experts.parameters():
                parameter.add_(0.5 * torch.randn_like(parameter) * parameter.std())
            layer.router.activation_frequency.fill_(0.25)  # as if the directors had followed
    images = open_mvu(store)
    evaluation = evaluate(model, images, config.setting, _CPU)
    return model, images, config, evaluation, analyze(model, images, evaluation, config.setting, _CPU)


def test_it_leaves_the_model_as_it_was(setup):
    model, images, config, evaluation, analysis = setup
    assert not model.training
    assert all(layer.mode == "experts" for layer in dex_layers(model))
    assert all(parameter.grad is None for parameter in model.parameters())
    again = analyze(model, images, evaluation, config.setting, _CPU)
    np.testing.assert_array_equal(again.features, analysis.features)
    np.testing.assert_array_equal(again.gradient_cosines, analysis.gradient_cosines)


def test_features_are_the_encoders_and_the_directors_are_those_of_the_plain_transformer(setup):
    model, images, config, evaluation, analysis = setup
    (batch,) = batches(images, evaluation.sample_id, model, config.setting)
    with torch.no_grad():
        plain = collapse(model.encoder, to="director").eval()
        for encoder, features in zip((model.encoder, plain), analysis.features, strict=True):
            expected = encoder.forward_head(encoder.forward_features(batch.images), pre_logits=True)
            np.testing.assert_allclose(features, expected.numpy(), rtol=1e-4, atol=1e-5)
    assert not np.allclose(analysis.features[0], analysis.features[1], atol=0.01)


def test_patches_are_those_of_the_examples_where_they_lie_in_the_image(setup):
    model, images, config, evaluation, analysis = setup
    assert analysis.patches.shape == (2, len(evaluation.examples), 4, 4, 3)
    rows = [
        row
        for row in evaluation.sample_id
        if any(np.array_equal(example, _pixels(images, row, model, config)) for example in evaluation.examples.input)
    ]
    (batch,) = batches(images, np.array(rows), model, config.setting)
    with torch.no_grad():
        tokens = model.encoder.forward_features(batch.images)[:, 1:].numpy()
    # Distances in the components are distances of the tokens, but for what three components leave out.
    first, found = tokens[0], analysis.patches[0, 0].reshape(16, 3)
    true = np.linalg.norm(first[:, None] - first[None], axis=-1)
    seen = np.linalg.norm(found[:, None] - found[None], axis=-1)
    assert (seen <= true + 1e-4).all()
    assert np.corrcoef(true.ravel(), seen.ravel())[0, 1] > 0.7


def _pixels(images, row, model, config):
    (batch,) = batches(images, np.array([row]), model, config.setting)
    mean = torch.tensor([0.485, 0.456, 0.406])
    std = torch.tensor([0.229, 0.224, 0.225])
    return (batch.images[0].permute(1, 2, 0) * std + mean).clamp(0, 1).numpy()


def test_labels_of_generated_images_are_those_they_were_made_with(tmp_path):
    source = SyntheticMVU([Modality.OCT, Modality.PHOTO], size=64, seed=3)
    write_store([source.record(index) for index in range(12)], tmp_path / "store", name="test")
    images = open_mvu(tmp_path / "store")
    config = tiny(tmp_path / "store", tmp_path, evaluate_images=20)
    model = build_model(config.model)
    analysis = analyze(model, images, evaluate(model, images, config.setting, _CPU), config.setting, _CPU)
    expected = {f"SyntheticMVU/seed=3/{sample.modality}/{i}": sample.label for i, sample in
                ((i, source.sample(i)) for i in range(12))}  # fmt: skip
    rows = evaluate(model, images, config.setting, _CPU).sample_id
    assert analysis.label.tolist() == [expected[images.group[row]] for row in rows]
    assert analysis.label_names == SyntheticMVU.labels


def test_labels_of_other_images_are_not_known(tmp_path):
    image = SyntheticMVU(size=64).sample(0).image
    named = {"modality": Modality.PET, "anatomy": "", "normalization": "div255"}
    records = [
        ImageRecord(image, source="a clinic", group="SyntheticMVU/seed=0/PET/0", path="a", **named),
        ImageRecord(image.T.copy(), source="SyntheticMVU", group="another name", path="b", **named),
    ]
    write_store(records, tmp_path / "store", name="test")
    images = open_mvu(tmp_path / "store")
    config = tiny(tmp_path / "store", tmp_path)
    model = build_model(config.model)
    analysis = analyze(model, images, evaluate(model, images, config.setting, _CPU), config.setting, _CPU)
    assert analysis.label.tolist() == [-1, -1]


def test_experts_that_are_copies_are_alike_and_others_are_not(setup):
    _, images, config, _, analysis = setup
    assert [len(block) for block in analysis.expert_similarity] == [5, 4]
    for block in analysis.expert_similarity:
        np.testing.assert_allclose(np.diag(block), 1)
        assert (block[np.triu_indices(len(block), 1)] < 0.99).all()
    fresh = build_model(config.model)
    copies = analyze(fresh, images, evaluate(fresh, images, config.setting, _CPU), config.setting, _CPU)
    for block in copies.expert_similarity:
        np.testing.assert_allclose(block, 1, atol=1e-5)


def test_the_modalities_with_two_training_images_are_compared(setup):
    *_, evaluation, analysis = setup
    training = evaluation.modality[~evaluation.heldout]
    expected = [MODALITIES[index].value for index in np.unique(training) if (training == index).sum() > 1]
    assert list(analysis.gradient_modalities) == expected
    assert len(expected) > 1
