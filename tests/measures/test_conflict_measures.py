"""Cosines of gradients by their inner products: known directions, and intervals that hold."""

import numpy as np
import pytest

from dexcore.measures.conflict import Folds, conflict, conflict_minus, half_cosines, shortfall


def folds(direction_md, noise, seed=0, folds=8):
    """Folds whose gradient is the modality's direction and noise."""
    random = np.random.default_rng(seed)
    label, half = np.repeat(np.arange(len(direction_md)), folds), np.tile([0, 1], len(direction_md) * folds // 2)
    vectors = direction_md[label] + random.normal(0, noise, (len(label), direction_md.shape[1]))
    names = tuple("abcdef"[: len(direction_md)])
    return Folds(names, label, half, vectors @ vectors.T, len(label), direction_md.shape[1])


def test_cosines_of_known_directions():
    directions = np.array([[1.0, 0, 0], [1, 1, 0], [-1, 0, 0]])
    cosines = folds(directions, 0).cosines(np.ones((1, 24)))[0]
    root = 0.5**0.5
    assert np.allclose(cosines, [[1, root, -1], [root, 1, -root], [-1, -root, 1]])
    told = conflict(folds(directions, 0), draws=20)
    assert told.between.value == pytest.approx(-1 / 3)
    assert told.ceiling.value == pytest.approx(1)
    assert told.shortfall.low == pytest.approx(4 / 3)


def test_a_gradient_of_zeros_has_no_direction():
    assert np.isnan(half_cosines(np.diag([1.0, 1.0, 0.0, 1.0]))[0, 1])
    assert np.isnan(half_cosines(np.diag([1.0, 0.0]))[0, 0])


def test_one_direction_with_noise_is_no_conflict_and_two_are_one():
    alike = np.tile([1.0, 0, 0, 0, 0, 0, 0, 0], (3, 1))
    held = [conflict(folds(alike, 0.8, seed), draws=200).shortfall for seed in range(30)]
    assert np.mean([one.low < 0 < one.high for one in held]) > 0.75
    apart = conflict(folds(np.eye(3, 8), 0.3), draws=200)
    assert apart.shortfall.low > 0.5
    assert apart.ceiling.value > 0.7


def test_a_twin_is_compared_on_the_same_folds():
    own, twin = folds(np.tile(np.eye(1, 8), (3, 1)), 0.3), folds(np.eye(3, 8), 0.3)
    told = conflict_minus(own, twin, draws=200)
    assert told.shortfall.low > 0.3
    assert told.between.high < -0.3
    with pytest.raises(ValueError, match="expected the images and the weights of the model"):
        conflict_minus(own, folds(np.eye(3, 8), 0.3, folds=6))


def test_noise_alone_is_no_conflict_and_relieves_nobody():
    # The same true conflict in two models, the gradients of one being four times as noisy.
    random, width, each = np.random.default_rng(0), 1000, 16
    label, half = np.repeat(np.arange(4), each), np.tile([0, 1], 2 * each)
    mean = random.normal(size=width) + random.normal(size=(4, width))
    told, found = [], []
    for noise in (1.0, 4.0):
        vectors = mean[label] + noise * random.normal(size=(len(label), width))
        found.append(Folds(tuple("abcd"), label, half, vectors @ vectors.T, len(label), width))
        told.append(conflict(found[-1], draws=200))
    little, much = told
    assert little.ceiling.value - little.between.value > much.ceiling.value - much.between.value + 0.1
    assert little.shortfall.value == pytest.approx(0.5, abs=0.05)
    assert much.shortfall.value == pytest.approx(0.5, abs=0.08)
    relief = conflict_minus(*found, draws=200).shortfall
    assert relief.low < 0 < relief.high
    assert relief.deviation < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("noise", [2.0, 8.0])
def test_draws_of_folds_spread_as_far_as_other_cases_move_conflict(noise):
    random, width, each = np.random.default_rng(1), 1000, 16
    label, half = np.repeat(np.arange(4), each), np.tile([0, 1], 2 * each)
    mean = random.normal(size=width) + random.normal(size=(4, width))
    values, deviations = [], []
    for _ in range(150):
        vectors = mean[label] + noise * random.normal(size=(len(label), width))
        one = conflict(Folds(tuple("abcd"), label, half, vectors @ vectors.T, len(label), width), draws=100).shortfall
        values.append(one.value)
        deviations.append(one.deviation)
    assert 0.8 < np.mean(deviations) / np.std(values) < 1.6
    assert np.mean(values) == pytest.approx(0.5, abs=0.05)


def test_gradients_of_noise_alone_have_no_conflict_to_tell():
    # Halves that point away from each other: no direction is known.
    cosines = half_cosines(np.array([[[2.0, -1, 0, 0], [-1, 2, 0, 0], [0, 0, 2, -1], [0, 0, -1, 2]]]))
    assert np.isnan(shortfall(cosines)).all()
