"""Routing and extraction of a planted model, and of one that routes by what nobody asks for."""

import copy

import numpy as np
import pytest
import torch
from planted import planted, write_stripes

from dexcore.data.store.manifest import StoreError
from dexcore.evaluate.modules import extract, measure_routing, setting_of, take_samples
from dexcore.measures.extraction import curve, twin_minus_own
from dexcore.nn import set_mode

_CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_stripes(tmp_path_factory.mktemp("stripes") / "store")


@pytest.fixture(scope="module")
def models(images):
    return {reads: planted(images, reads) for reads in ("modality", "tag")}


def test_routing_by_modality_passes_with_the_right_numbers(images, models):
    sample = take_samples(images).heldout
    found = measure_routing(models["modality"], sample, setting_of(models["modality"]), _CPU)
    assert (found.modalities, found.images, found.cases) == (("PET", "OCT", "Photo"), 24, 12)
    for shares, block in zip(found.shares, found.trained.blocks, strict=True):
        assert np.allclose(shares, np.eye(3, 4), atol=1e-6)
        assert block.nmi == pytest.approx(1)
        assert block.p_value < 0.01
        assert block.value.low > 0.3
    assert found.trained.slope.value == pytest.approx(0, abs=0.05)
    assert found.by_gates.value == 1
    assert found.untrained.mean.value < found.trained.mean.value
    for one in (*found.random, *found.histogram):
        assert one.minus.value > 0


def test_routing_by_a_tag_is_no_specialization(images, models):
    sample = take_samples(images).heldout
    found = measure_routing(models["tag"], sample, setting_of(models["tag"]), _CPU)
    for block in found.trained.blocks:
        assert block.p_value > 0.05
        assert block.value.low < 0 < block.value.high
    assert found.by_gates.value < found.by_histogram.value
    assert found.gates_minus_histogram.high < 0


def test_measuring_leaves_the_model_as_it_was(images, models):
    model = copy.deepcopy(models["modality"])
    set_mode(model, "director")
    model.train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    drawn = torch.get_rng_state()
    measure_routing(model, take_samples(images, 3).heldout, setting_of(model), _CPU)
    extract(model, take_samples(images, 3), setting_of(model), _CPU, random=1)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)
    assert model.training
    assert {block.mlp.mode for block in model.encoder.blocks} == {"director"}


def test_a_modality_lives_on_the_one_expert_that_is_its_own(images, models):
    model = models["modality"]
    found = extract(model, take_samples(images), setting_of(model), _CPU, random=4)
    assert found.sizes == (1, 2, 3)
    assert found.random_qgs.shape == (4, 12, 3)
    points = curve(found, draws=200)
    assert [point.size for point in points] == [1, 2, 3]
    assert all(point.own.value == pytest.approx(0, abs=1e-6) for point in points)
    assert points[0].random.value > 1
    assert points[0].random_minus_own.low > 0
    assert points[0].common_minus_own.low > 0
    assert points[2].random.value < points[0].random.value  # nested: what is kept grows


def test_without_modules_the_most_used_experts_are_as_good_as_any(images, models):
    samples = take_samples(images)
    found, twin = (extract(models[reads], samples, setting_of(models[reads]), _CPU) for reads in ("modality", "tag"))
    (first, *_) = curve(twin, draws=200)
    assert first.own.value > 0.5
    assert first.common_minus_own.low < 0 < first.common_minus_own.high
    assert first.random_minus_own.low > 0  # one expert is used by nobody: of modules that tells nothing
    lost = twin_minus_own(found, twin, draws=200)
    assert list(lost) == [1, 2, 3]
    assert lost[1].low > 0
    with pytest.raises(ValueError, match="expected the cases that the model was measured on"):
        twin_minus_own(found, extract(models["tag"], take_samples(images, 3), setting_of(models["tag"]), _CPU))


def test_extraction_is_the_same_again_and_its_seed_acts(images, models):
    model, samples = models["modality"], take_samples(images, 4)
    first, again, other = (
        extract(model, samples, setting_of(model), _CPU, random=2, seed=seed).random_qgs for seed in (0, 0, 3)
    )
    assert first.tobytes() == again.tobytes()
    assert not np.array_equal(first, other)


def test_one_modality_is_refused(images):
    class One(type(images)):
        modality_names = ("PET", "OCT")

    few = One(images._store.folder)
    few.modality = np.where(few.split == "train", few.modality % 2, 0)
    with pytest.raises(StoreError, match="expected two modalities at least"):
        take_samples(few)


def test_a_model_of_other_preprocessing_is_refused(models):
    model = copy.deepcopy(models["modality"])
    model.set_preprocessing((0.5,) * 3, (0.5,) * 3)
    with pytest.raises(ValueError, match=r"the model expects area with mean \(0.5, 0.5, 0.5\)"):
        setting_of(model)
