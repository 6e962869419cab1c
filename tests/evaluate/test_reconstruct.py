"""The evaluation's numbers against the model's own loss."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from runs import tiny

from dexcore.data.feed.dataset import MODALITIES, MVUDataset, open_mvu
from dexcore.data.modality import Modality
from dexcore.data.store.manifest import ImageDecodeError, StoreError
from dexcore.evaluate.reconstruct import batches, chosen_rows, evaluate
from dexcore.train.build import build_model

_CPU = torch.device("cpu")


@pytest.fixture
def setup(store, tmp_path):
    config = tiny(store, tmp_path, precision="fp32")
    return build_model(config.model).eval(), open_mvu(store), config


def test_squared_errors_add_up_to_the_loss(setup):
    model, images, config = setup
    evaluation = evaluate(model, images, config.setting, _CPU)
    (batch,) = batches(images, chosen_rows(images, 3), model, config.setting)
    hidden = model.num_patches - model.num_visible
    values = len(evaluation) * hidden * 3 * 8 * 8
    loss = model(batch.images, noise=batch.noise).loss.item()
    assert evaluation.squared_error.sum() / values == pytest.approx(loss, rel=1e-5)


def test_the_mean_colour_of_a_patch_is_not_counted_as_explained(setup):
    model, images, config = setup
    config = replace(config, data=replace(config.data, statistics="gray"))
    evaluation = evaluate(model, images, config.setting, _CPU)
    hidden = model.num_patches - model.num_visible
    oct_scans = evaluation.modality == MODALITIES.index(Modality.OCT)  # gray, with speckle in every patch
    photos = evaluation.modality == MODALITIES.index(Modality.PHOTO)
    # A normalized patch of n values has the unbiased variance 1, but for the epsilon: n - 1 in sum. In colour, what
    # lies between the channels' means is left out.
    whole = hidden * (3 * 8 * 8 - 1)
    assert evaluation.total[oct_scans] == pytest.approx(whole, rel=0.02)
    assert (evaluation.total[photos] < 0.9 * whole).all()


def test_every_modality_and_split_is_there_and_gates_sum_to_one(setup):
    model, images, config = setup
    evaluation = evaluate(model, images, config.setting, _CPU)
    counts = {
        (int(m), bool(h)): int(((evaluation.modality == m) & (evaluation.heldout == h)).sum())
        for m, h in zip(evaluation.modality, evaluation.heldout, strict=True)
    }
    assert max(counts.values()) <= 3
    assert {m for m, _ in counts} == set(images.modality.tolist())
    assert [gates.shape[1] for gates in evaluation.gates] == [4, 3]
    for gates, k in zip(evaluation.gates, (2, 1), strict=True):
        assert gates.sum(1) == pytest.approx(1, abs=1e-6)
        assert ((gates > 0).sum(1) == k).all()


def test_the_pictures_are_what_their_names_say(setup):
    model, images, config = setup
    examples = evaluate(model, images, config.setting, _CPU).examples
    hidden = examples.hidden
    assert hidden.mean() == pytest.approx(0.75, abs=0.05)
    patches = hidden.reshape(len(examples), 4, 8, 4, 8).transpose(0, 1, 3, 2, 4).reshape(-1, 64)
    assert (patches.all(axis=1) | ~patches.any(axis=1)).all()
    means = examples.patch_mean.reshape(len(examples), 4, 8, 4, 8, 3)
    assert np.ptp(means, axis=(2, 4)).max() < 1e-6  # one color a patch
    held_out = set(images.modality[images.split == "heldout"].tolist())
    assert examples.heldout.tolist() == [m in held_out for m in examples.modality]


def test_it_is_the_same_twice(setup):
    model, images, config = setup
    first, second = (evaluate(model, images, config.setting, _CPU) for _ in range(2))
    assert np.array_equal(first.squared_error, second.squared_error)


def test_the_patch_mean_alone_is_what_a_prediction_of_nothing_shows(setup):
    model, images, config = setup
    config = replace(config, data=replace(config.data, statistics="gray"))
    with torch.no_grad():
        model.decoder_pred.weight.zero_()
        model.decoder_pred.bias.zero_()
    examples = evaluate(model, images, config.setting, _CPU).examples
    np.testing.assert_allclose(examples.patch_mean, examples.reconstruction, atol=1e-6)
    # The mean over a patch's pixels and channels, of the images as they are.
    patch = examples.input.reshape(len(examples), 4, 8, 4, 8, 3)
    expected = np.broadcast_to(patch.mean(axis=(2, 4, 5), keepdims=True), patch.shape)
    np.testing.assert_allclose(examples.patch_mean.reshape(patch.shape), expected, atol=0.01)


class _Spoilt(MVUDataset):
    def read(self, index):
        raise ImageDecodeError(f"row {index}")


def test_a_store_without_an_image_that_can_be_read_is_a_clear_error(store, setup):
    model, _, config = setup
    with pytest.raises(StoreError, match=r"data\.store: no image of test that was to be evaluated can be decoded"):
        evaluate(model, _Spoilt(store), config.setting, _CPU)
