"""Knock-outs: what is measured of planted routing, what of routing by nothing, and that nothing is left of them."""

import numpy as np
import pytest
import torch
from planted import planted, write_stripes

from dexcore.evaluate.modules import extract, knock_out, masked_losses, setting_of, take_samples
from dexcore.evaluate.reconstruct import image_losses
from dexcore.measures.knockout import MEAN, own_damage, specificity
from dexcore.nn import rule_of, set_mode, set_rule
from dexcore.nn.mlp import dex_layers

_CPU = torch.device("cpu")


@torch.no_grad()
def shake(model, amount):
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=amount)
    return model


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_stripes(tmp_path_factory.mktemp("stripes") / "store")


@pytest.fixture(scope="module")
def by_modality(images):
    model = planted(images)
    return model, knock_out(model, take_samples(images), setting_of(model), _CPU)


def test_samples_hold_whole_cases_of_both_splits(images):
    train, heldout = take_samples(images, 5)
    assert train.modalities == heldout.modalities == ("PET", "OCT", "Photo")
    assert [len(train), len(heldout)] == [15, 15]
    assert not set(images.group[train.rows]) & set(images.group[heldout.rows])
    assert (train.label_g[train.case_n] == train.label_n).all()
    assert train.sums(np.ones(15)).sum() == 15


def test_damage_is_on_the_expert_that_the_modality_is_routed_to(by_modality):
    _, found = by_modality
    for shares, damage in zip(found.shares, found.damage, strict=True):
        assert np.allclose(shares, np.eye(3, 4), atol=1e-6)
        assert damage.shape == (3, 4)
        assert (np.diag(damage) > 1).all()  # the loss is more than doubled
        assert np.abs(damage[~np.eye(3, 4, dtype=bool)]).max() == 0  # who does not use an expert loses nothing
    told = specificity(found, draws=200, permutations=200)
    assert told.value.value > 0.8
    assert told.value.low > 0.7
    assert told.value.groups == 12
    assert abs(told.null_mean) < 0.2
    assert told.p_value == pytest.approx(1 / 201)
    own = own_damage(found, draws=200)
    assert list(own) == ["PET", "OCT", "Photo", MEAN]
    assert own[MEAN].own.value == pytest.approx(np.mean([np.diag(one).mean() for one in found.damage]))
    assert own[MEAN].own_minus_matched.low > 0
    assert own[MEAN].random.value == 0


def test_routing_by_what_is_not_the_modality_damages_all_alike(tmp_path):
    images = write_stripes(tmp_path / "store", cases=108, slices=1, seed=1)
    model = planted(images, reads="tag")
    found = knock_out(model, take_samples(images), setting_of(model), _CPU)
    assert max(np.abs(damage).max() for damage in found.damage) > 0.5  # experts matter
    told = specificity(found, draws=200, permutations=200)
    assert told.p_value > 0.05
    assert told.value.low < 0 < told.value.high
    assert abs(told.value.value) < 0.1 * max(damage.max() for damage in found.damage)
    own = own_damage(found, draws=200)[MEAN]
    assert own.own_minus_matched.low < 0 < own.own_minus_matched.high


def test_copies_of_one_expert_are_no_loss_and_no_specificity(images):
    model = planted(images, same=True)
    found = knock_out(model, take_samples(images), setting_of(model), _CPU)
    assert all(np.allclose(damage, 0, atol=1e-6) for damage in found.damage)
    told = specificity(found, draws=100, permutations=100)
    assert abs(told.value.value) < 1e-6
    assert np.isnan(told.correlation)


@pytest.mark.parametrize("instead", ["zero", "director"])
def test_other_stand_ins_are_damage_too(images, instead):
    model = planted(images)
    found = knock_out(model, take_samples(images, 4), setting_of(model), _CPU, instead=instead)
    assert found.instead == instead
    assert all((np.diag(damage) > 0.1).all() for damage in found.damage)


def test_the_model_is_left_as_it_was_and_numbers_do_not_change(images, by_modality):
    model, before = by_modality
    set_mode(model, "director")
    model.train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    again = knock_out(model, take_samples(images), setting_of(model), _CPU)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert model.training
    assert {(layer.mode, layer.kept_experts) for layer in dex_layers(model)} == {("director", None)}
    assert not any(p.requires_grad for layer in dex_layers(model) for p in layer.experts.parameters())
    set_mode(model, "experts")
    model.eval()
    assert again.loss_g.tobytes() == before.loss_g.tobytes()
    assert all(a.tobytes() == b.tobytes() for a, b in zip(again.gained, before.gained, strict=True))


def test_losses_are_those_of_the_same_masks_of_patches_and_only_of_what_is_asked(images, by_modality):
    model, _ = by_modality
    sample, setting = take_samples(images, 4).heldout, setting_of(model)
    asked = np.array([[True, False], [True, True], [True, False]])
    mask = [np.array([True, True, False, True])] * 2
    asked = asked[sample.label_n]
    found = masked_losses(model, sample, setting, _CPU, [None, mask], asked=asked)
    assert (np.isfinite(found) == asked).all()
    ((places, batch),) = sample.batches(model, setting)
    assert np.array_equal(places, np.arange(len(sample)))
    np.testing.assert_allclose(found[:, 0], image_losses(model, batch, setting, _CPU), rtol=1e-6)
    whole = model(batch.images, noise=batch.noise).loss.item()
    assert found[:, 0].mean() == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("instead", ["reroute", "zero", "director"])
def test_images_that_do_not_use_an_expert_need_no_forward_without_it(images, instead):
    model = shake(planted(images, reads="tag"), 0.1)
    samples, setting = take_samples(images, 5), setting_of(model)
    found = knock_out(model, samples, setting, _CPU, instead=instead)
    sizes = [layer.num_experts for layer in dex_layers(model)]
    masks = [
        [np.arange(size) != expert if number == block else np.ones(size, bool) for number, size in enumerate(sizes)]
        for block in range(2)
        for expert in range(4)
    ]
    losses = masked_losses(model, samples.heldout, setting, _CPU, [None, *masks], instead=instead)
    gained = samples.heldout.sums(losses[:, 1:] - losses[:, :1])
    np.testing.assert_allclose(np.concatenate(found.gained, axis=1), gained, atol=1e-5)
    assert np.abs(gained).max() > 0.01


@pytest.mark.parametrize("kind", ["fixed", "oracle"])
def test_routing_by_rule_is_knocked_out_and_extracted_like_any(images, kind):
    model = planted(images)
    modalities = {"modalities": ["PET", "OCT", "Photo"]} if kind == "oracle" else {}
    set_rule(model, {"kind": kind} | modalities)
    samples, setting = take_samples(images), setting_of(model)
    found = knock_out(model, samples, setting, _CPU)
    told = specificity(found, draws=50, permutations=50)
    parts = extract(model, samples, setting, _CPU, random=1)
    assert np.isfinite(parts.random_qgs).all()
    use = np.concatenate(found.shares, axis=1)
    if kind == "oracle":
        assert set(np.unique(use.round(6))) == {0.0, 1.0}
        assert own_damage(found, 50)[MEAN].own_minus_random.low > 0
    else:
        assert 0.0 < use.min()
        assert use.max() < 0.6
        assert told.value.groups == 12
    assert rule_of(model).kind == kind
