"""Cosines between gradients: the sketch against the whole gradient, halves, and what they say of known cases."""

import numpy as np
import pytest
import torch
from runs import tiny

from dexcore.data.feed.dataset import open_mvu
from dexcore.evaluate.gradients import _IMAGES, _cosines, _gradients, _halves, _parts, gradient_cosines, sketch
from dexcore.evaluate.reconstruct import batches, evaluate
from dexcore.nn.mlp import dex_layers
from dexcore.train.build import build_model

_CPU = torch.device("cpu")


@pytest.fixture
def setup(store, tmp_path):
    config = tiny(store, tmp_path, precision="fp32")
    torch.manual_seed(0)
    return build_model(config.model).eval(), open_mvu(store), config


def test_a_sketch_keeps_cosines():
    random = torch.Generator().manual_seed(0)
    common, first, second = torch.randn(3, 1_000_000, generator=random)
    one, other = common + first, common + second
    sketches = torch.stack([sketch([v[:300_001], v[300_001:].view(-1, 1)]) for v in (one, other)])
    assert len(sketches[0]) == 65536
    true = torch.cosine_similarity(one, other, dim=0).item()
    assert torch.cosine_similarity(sketches[0], sketches[1], dim=0).item() == pytest.approx(true, abs=0.02)
    # Entries that meet in the sketch have independent signs: without them a constant would not be told from noise.
    assert sketches[0].norm().item() == pytest.approx(one.norm().item(), rel=0.02)
    assert sketch([torch.ones(1_000_000)]).norm().item() == pytest.approx(1000, rel=0.02)


def test_cosines_are_means_over_pairs_of_halves_and_the_diagonal_is_between_halves():
    random = torch.Generator().manual_seed(0)
    vectors = torch.randn(1, 4, 50, generator=random, dtype=torch.float64)  # halves of a, of b
    (found,) = _cosines(vectors)
    unit = (vectors[0] / vectors[0].norm(dim=1, keepdim=True)).numpy()
    assert found[0, 0] == pytest.approx(unit[0] @ unit[1])
    assert found[1, 1] == pytest.approx(unit[2] @ unit[3])
    expected = np.mean([unit[i] @ unit[j] for i in (0, 1) for j in (2, 3)])
    assert (found[0, 1], found[1, 0]) == pytest.approx((expected, expected))


def test_a_gradient_of_zeros_has_no_direction():
    vectors = torch.ones(1, 4, 8, dtype=torch.float64)
    vectors[0, 1] = 0
    (found,) = _cosines(vectors)
    assert np.isnan(found[0, 0])
    assert np.isnan(found[0, 1])
    assert found[1, 1] == pytest.approx(1)


def test_halves_hold_different_groups_of_like_size():
    group = np.array(["a"] * 6 + ["b"] * 3 + ["c"] * 2 + ["d"])
    first, second = _halves(np.arange(12), group)
    assert not set(group[first]) & set(group[second])
    assert sorted((len(first), len(second))) == [6, 6]
    assert sorted([*first, *second]) == list(range(12))


def test_a_single_group_is_cut_and_a_single_image_is_not():
    first, second = _halves(np.arange(10, 17), np.array(["a"] * 20))
    assert sorted([*first, *second]) == list(range(10, 17))
    assert _halves(np.arange(1), np.array(["a"])) == []
    assert _halves(np.arange(0), np.array([])) == []
    assert [len(half) for half in _halves(np.arange(200), np.arange(200).astype(str))] == [_IMAGES, _IMAGES]


def test_the_gradient_is_that_of_the_loss_over_different_masks(setup):
    model, images, config = setup
    rows = images.indices(split="train")[:3]
    shared, experts = _parts(model)
    found = _gradients(model, images, rows, [*shared, *experts], config.setting, _CPU)
    again = np.arange(_IMAGES)
    (batch,) = batches(images, rows[again % 3], model, config.setting, draw=1 + again // 3)
    assert len({tuple(noise) for noise in batch.noise[::3].tolist()}) == len(batch.noise[::3])  # one image, many masks
    model(batch.images, noise=batch.noise).loss.backward()
    for gradient, parameter in zip(found, [*shared, *experts], strict=True):
        torch.testing.assert_close(gradient, parameter.grad)


def test_the_parts_are_all_of_the_encoder_that_learns_by_gradient(setup):
    model, _, _ = setup
    shared, experts = _parts(model)
    trained = {id(p) for p in model.encoder.parameters() if p.requires_grad}
    assert {id(p) for p in shared} | {id(p) for p in experts} == trained
    assert len(shared) + len(experts) == len(trained)
    assert sum(p.numel() for p in experts) == sum(p.numel() for x in dex_layers(model) for p in x.experts.parameters())


def test_halves_of_one_modality_agree(setup):
    model, images, config = setup
    evaluation = evaluate(model, images, config.setting, _CPU)
    names, counts, cosines = gradient_cosines(model, images, evaluation, config.setting, _CPU)
    assert cosines.shape == (2, len(names), len(names))
    assert (counts >= 1).all()
    np.testing.assert_allclose(cosines, cosines.transpose(0, 2, 1), atol=1e-12)
    assert (np.abs(cosines) <= 1 + 1e-9).all()
    # Before any training a modality's halves pull the shared weights alike.
    assert np.diag(cosines[0]).mean() > 0.5


def test_a_store_without_pairs_has_nothing_to_compare(setup):
    model, images, config = setup
    evaluation = evaluate(model, images, tiny(config.data.store, "unused", evaluate_images=1).setting, _CPU)
    names, counts, cosines = gradient_cosines(model, images, evaluation, config.setting, _CPU)
    assert (names, len(counts), cosines.shape) == ([], 0, (2, 0, 0))
