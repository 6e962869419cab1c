import math

import numpy as np
import pytest

from dexcore.report.geometry import _majority, linear_cka, neighbor_accuracy, principal_components

RANDOM = np.random.default_rng(0)


def test_principal_components_are_those_of_the_singular_value_decomposition():
    features = RANDOM.normal(size=(50, 7)) * np.arange(1, 8)
    projected, shares = principal_components(features, 3)
    left, values, _ = np.linalg.svd(features - features.mean(0), full_matrices=False)
    np.testing.assert_allclose(np.abs(projected), np.abs(left[:, :3] * values[:3]), rtol=1e-6)
    np.testing.assert_allclose(shares, values[:3] ** 2 / (values**2).sum())


def test_the_sign_of_a_component_is_fixed():
    features = RANDOM.normal(size=(50, 4)) * [5, 1, 1, 1]
    projected, _ = principal_components(features, 1)
    assert np.corrcoef(projected[:, 0], features[:, 0])[0, 1] > 0.9
    flipped, _ = principal_components(-features, 1)
    assert np.corrcoef(flipped[:, 0], -features[:, 0])[0, 1] > 0.9


def test_rows_that_are_not_finite_take_no_part():
    features = RANDOM.normal(size=(20, 4))
    broken = np.concatenate([features, [[np.nan] * 4, [np.inf, 0, 0, 0]]])
    projected, shares = principal_components(broken, 2)
    expected, expected_shares = principal_components(features, 2)
    np.testing.assert_allclose(projected[:20], expected)
    assert np.isnan(projected[20:]).all()
    np.testing.assert_allclose(shares, expected_shares)


@pytest.mark.parametrize("features", [np.ones((5, 2)), np.zeros((0, 2)), np.full((4, 2), np.nan)])
def test_without_variance_there_is_no_share(features):
    projected, shares = principal_components(features, 3)
    assert projected.shape == (len(features), 3)
    assert shares.tolist() == [0, 0, 0]


def test_classes_that_lie_apart_are_told_by_their_neighbors():
    label = np.repeat([0, 1, 2], 20)
    features = np.eye(3)[label] + RANDOM.normal(0, 0.05, (60, 3))
    found = neighbor_accuracy(features, label, np.arange(60))
    assert (found.accuracy, found.classes, found.images) == (1.0, 3, 60)
    assert found.chance == pytest.approx(1 / 3)


def test_features_without_meaning_are_at_chance():
    accuracies = []
    for seed in range(20):
        random = np.random.default_rng(seed)
        label = random.integers(0, 4, 200)
        accuracies.append(neighbor_accuracy(random.normal(size=(200, 8)), label, np.arange(200)).accuracy)
    assert np.mean(accuracies) == pytest.approx(0.25, abs=0.03)


def test_slices_of_the_same_volume_are_no_evidence():
    # Every volume is a point of its own; its label says nothing of where it lies.
    volume = np.repeat(np.arange(20), 10)
    features = RANDOM.normal(size=(20, 8))[volume] + RANDOM.normal(0, 0.01, (200, 8))
    label = volume % 2
    assert neighbor_accuracy(features, label, np.arange(200)).accuracy == 1.0
    assert neighbor_accuracy(features, label, volume).accuracy < 0.8


def test_classes_weigh_the_same_and_unknown_ones_take_no_part():
    # Class 1 lies in the middle of class 0 and is outvoted: half of the classes are right, not 90 % of the images.
    label = np.array([0] * 90 + [1] * 2 + [-1] * 5 + [2])
    features = RANDOM.normal(size=(98, 3)) + 10 * np.eye(3)[0] * (np.arange(98) >= 92)[:, None]
    found = neighbor_accuracy(features, label, np.arange(98))
    assert (found.classes, found.images) == (2, 92)  # class 2 has a single image
    assert 0.4 < found.accuracy <= 0.55


def test_a_tie_goes_to_the_nearest():
    label = np.array([[1, 0, 0, 1, 2], [0, 1, 1, 0, 2], [2, 1, 1, 0, 2], [1, 2, 2, 2, 1], [2, -1, -1, -1, -1]])
    assert _majority(label, 3).tolist() == [1, 0, 2, 2, 2]


def test_one_class_cannot_be_asked():
    assert math.isnan(neighbor_accuracy(RANDOM.normal(size=(5, 2)), np.zeros(5, int), np.arange(5)).accuracy)
    assert math.isnan(neighbor_accuracy(np.zeros((0, 2)), np.zeros(0, int), np.zeros(0, int)).accuracy)


def test_maps_alike_up_to_rotation_and_scale_have_cka_one_and_unrelated_ones_zero():
    # As many dimensions as inputs, where the biased estimate of unrelated maps is near 0.5.
    first, third = RANDOM.normal(size=(2, 100, 100))
    rotation = np.linalg.qr(RANDOM.normal(size=(100, 100)))[0]
    cka = linear_cka(np.stack([first, 3 * first @ rotation + 1, third]))
    np.testing.assert_allclose(cka, cka.T)
    np.testing.assert_allclose(np.diag(cka), 1)
    assert cka[0, 1] == pytest.approx(1)
    assert abs(cka[0, 2]) < 0.03


def test_cka_is_that_of_the_definition_with_matrices_of_all_pairs():
    maps = RANDOM.normal(size=(2, 30, 5))
    maps[1] += maps[0]

    def hsic(a, b):
        n, one = len(a), np.ones(len(a))
        k, l = a @ a.T, b @ b.T  # noqa: E741
        np.fill_diagonal(k, 0)
        np.fill_diagonal(l, 0)
        return (
            np.trace(k @ l) + (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * one @ k @ l @ one
        )

    expected = hsic(*maps) / math.sqrt(hsic(maps[0], maps[0]) * hsic(maps[1], maps[1]))
    assert linear_cka(maps)[0, 1] == pytest.approx(expected)


def test_too_few_inputs_tell_no_likeness():
    assert np.isnan(linear_cka(RANDOM.normal(size=(2, 3, 5)))).all()
    assert np.isfinite(linear_cka(RANDOM.normal(size=(2, 4, 5)))).any()


def test_a_map_without_variance_has_no_likeness():
    cka = linear_cka(np.stack([np.ones((10, 3)), RANDOM.normal(size=(10, 3)), np.full((10, 3), np.nan)]))
    assert np.isnan(cka[0]).all()
    assert np.isnan(cka[2]).all()
    assert cka[1, 1] == pytest.approx(1)
