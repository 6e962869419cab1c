"""Spaces of a model on SyntheticMVU's images, whose classes are known."""

import numpy as np
import pytest
import torch
from planted import planted, write_stripes

from dexcore.data.feed.dataset import open_mvu
from dexcore.data.modality import Modality
from dexcore.data.store import write_store
from dexcore.data.synthetic import SyntheticMVU
from dexcore.evaluate.modules import collect, measure_shared_space, setting_of, take_samples
from dexcore.nn import set_mode

_CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    synthetic = SyntheticMVU((Modality.PET, Modality.OCT), size=32)
    records = [synthetic.record(index, "heldout" if index % 4 > 1 else "train") for index in range(120)]
    folder = tmp_path_factory.mktemp("synthetic") / "store"
    write_store(records, folder, name="test")
    return open_mvu(folder)


def test_four_spaces_are_asked_raw_and_centered_with_the_same_queries(images):
    model = planted(images)
    samples = take_samples(images, 30)
    assert set(samples.train.classes()) <= set(range(len(SyntheticMVU.labels)))
    train, heldout = (collect(model, sample, setting_of(model), _CPU) for sample in samples)
    found = measure_shared_space(train, heldout, samples)
    assert list(found) == ["experts", "director", "director on the experts' stream", "experts' output"]
    asked = {(space.raw.queries, space.raw.classes, space.centered.gallery) for space in found.values()}
    assert len(asked) == 1
    for space in found.values():
        for one in (space.raw, space.centered):
            assert 0 < one.value.value < 1
            assert 0 < one.chance < 1


def test_what_is_collected_is_what_the_layers_computed(images):
    model = planted(images)
    sample = take_samples(images, 4).heldout
    found = collect(model, sample, setting_of(model), _CPU)
    ((_, batch),) = sample.batches(model, setting_of(model))
    with torch.no_grad():
        tokens = model.encoder.forward_features(batch.images)
        np.testing.assert_allclose(found.features, tokens.mean(1), atol=1e-5)
        first = model.encoder.blocks[0]
        x = first.norm2(model.encoder.patch_embed(batch.images))
        np.testing.assert_allclose(found.routed[0], x.mean(1), atol=1e-5)
        np.testing.assert_allclose(found.on_stream[0], first.mlp.director(x).mean(1), atol=1e-5)
        np.testing.assert_allclose(found.outputs[0], first.mlp(x).mean(1), atol=1e-5)
        assert (found.gates[0].argmax(1) == first.mlp.routing.indices[:, 0].numpy()).all()
        set_mode(model, "director")
        np.testing.assert_allclose(found.director, model.encoder.forward_features(batch.images).mean(1), atol=1e-5)


def test_images_without_classes_are_told(tmp_path):
    stripes = write_stripes(tmp_path / "store", cases=12)
    model, samples = planted(stripes), take_samples(stripes, 2)
    train, heldout = (collect(model, sample, setting_of(model), _CPU) for sample in samples)
    with pytest.raises(ValueError, match="in 0 modalities"):
        measure_shared_space(train, heldout, samples)
