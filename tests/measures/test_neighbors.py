import math

import numpy as np
import pytest

from dexcore.measures.neighbors import _majority, neighbor_accuracy

RANDOM = np.random.default_rng(0)


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
