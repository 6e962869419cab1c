"""Retrieval across modalities: what is found of a planted class, what of a planted modality, and what by chance."""

import numpy as np
import pytest

from dexcore.measures.shared_space import Points, across_minus, across_modalities

WIDTH = 12


def points(seed, of_class=0.0, of_modality=0.0, each=6, classes=3, modalities=3):
    """Noise, a direction of the class and a far larger one of the modality."""
    random = np.random.default_rng(seed)
    label, kind = (values.ravel() for values in np.mgrid[:modalities, :classes].repeat(each, axis=2))
    directions = np.eye(WIDTH)
    features = random.normal(size=(len(label), WIDTH)) * 0.3
    features += of_class * directions[kind] + of_modality * directions[WIDTH - 1 - label]
    return Points(features, label, kind, np.arange(len(label)) + 1000 * seed)


def test_a_shared_class_is_found_and_noise_is_chance():
    found = across_modalities(points(1, 3), points(2, 3), draws=100, permutations=100)
    assert found.value.value == pytest.approx(1)
    assert found.p_value == pytest.approx(1 / 101)
    assert (found.classes, found.queries, found.gallery) == (3, 54, 54)
    noise = across_modalities(points(1), points(2), draws=200, permutations=200)
    assert noise.p_value > 0.05
    assert noise.value.low < noise.chance < noise.value.high
    assert 0.3 < noise.chance < 0.45


def test_what_tells_the_modality_is_gone_when_each_is_centered():
    queries, gallery = points(1, 1, 8), points(2, 1, 8)
    means = np.stack([gallery.features_nd[gallery.label_n == m].mean(axis=0) for m in range(3)])
    raw, centered = (across_modalities(queries, gallery, center, 50, 50) for center in (None, means))
    assert centered.value.value > raw.value.value
    gained = across_minus(centered, raw, 100)
    assert gained.value == pytest.approx(centered.value.value - raw.value.value)
    assert gained.low > 0


def test_a_modality_that_alone_tells_its_class_is_never_asked_about_itself():
    queries, gallery = points(1, 0), points(2, 0)
    for one in (queries, gallery):  # a class is the same in one modality, and another direction in each
        one.features_nd[:] += 5 * np.eye(WIDTH)[3 * one.label_n + one.class_n]
    assert across_modalities(queries, gallery, None, 20, 100).value.value < 0.45


def test_classes_are_balanced_and_what_is_lacking_is_left_out():
    queries, gallery = points(1, 3), points(2, 3)
    lacks = ~((queries.label_n == 1) & (queries.class_n == 2))
    few = np.ones(54, bool)
    few[np.flatnonzero((gallery.label_n == 0) & (gallery.class_n == 0))[2:]] = False
    unknown = gallery.of(few)._replace(class_n=np.where(np.arange(few.sum()) == 5, -1, gallery.class_n[few]))
    found = across_modalities(queries.of(lacks), unknown, draws=20, permutations=20)
    assert (found.classes, found.queries, found.gallery) == (2, 36, 12)


def test_without_two_classes_nothing_can_be_asked():
    with pytest.raises(ValueError, match="shared space: 1 classes in 3 modalities"):
        across_modalities(points(1, classes=1), points(2, classes=1))
    with pytest.raises(ValueError, match="in 0 modalities"):
        across_modalities(points(1)._replace(class_n=np.full(54, -1)), points(2))
    one, other = (across_modalities(points(seed, 1), points(2, 1), draws=2, permutations=2) for seed in (1, 3))
    with pytest.raises(ValueError, match="expected the queries that the other space was asked"):
        across_minus(one, other)
