"""Scores of classes against scikit-learn and torchmetrics."""

import math

import numpy as np
import pytest
import torch

from dexcore.measures.classification import (
    accuracy,
    balanced_accuracy,
    brier_n,
    calibration_error,
    confusion,
    macro_f1,
    pairs_n,
    quadratic_kappa,
    recalls,
    reliability,
)

metrics = pytest.importorskip("sklearn.metrics")
RANDOM = np.random.default_rng(0)


def made(classes, items=60):
    label = RANDOM.integers(0, classes, items)
    probability = RANDOM.dirichlet(np.ones(classes), items)
    probability[np.arange(items), label] += 0.3
    return label, probability / probability.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("classes", [2, 5])
def test_they_are_scikit_learns_under_every_weighting(classes):
    label, probability = made(classes)
    predicted = probability.argmax(axis=1)
    weight = RANDOM.integers(1, 4, (8, len(label))).astype(float)
    found = confusion(weight, pairs_n(label, predicted, classes))
    present = np.ones(classes, bool)
    for draw, one in enumerate(weight):
        given = {"sample_weight": one}
        of_draw = found[draw : draw + 1]
        assert accuracy(of_draw)[0] == pytest.approx(metrics.accuracy_score(label, predicted, **given))
        expected = metrics.balanced_accuracy_score(label, predicted, **given)
        assert balanced_accuracy(of_draw, present)[0] == pytest.approx(expected)
        assert macro_f1(of_draw)[0] == pytest.approx(metrics.f1_score(label, predicted, average="macro", **given))
        expected = metrics.cohen_kappa_score(label, predicted, weights="quadratic", **given)
        assert quadratic_kappa(of_draw)[0] == pytest.approx(expected)
        expected = metrics.recall_score(label, predicted, average=None, **given)
        np.testing.assert_allclose(recalls(of_draw)[0], expected)


@pytest.mark.parametrize("classes", [2, 4])
def test_the_brier_score_is_scikit_learns(classes):
    label, probability = made(classes)
    found = brier_n(probability, np.eye(classes)[label]).mean()
    one_class = probability[:, 1] if classes == 2 else probability
    assert found == pytest.approx(metrics.brier_score_loss(label, one_class))


def test_the_calibration_error_is_torchmetrics():
    functional = pytest.importorskip("torchmetrics.functional.classification")
    label, probability = made(4, 500)
    confidence, predicted = probability.max(axis=1), probability.argmax(axis=1)
    found = calibration_error(np.ones((1, 500)), confidence, predicted == label)[0]
    expected = functional.multiclass_calibration_error(torch.tensor(probability), torch.tensor(label), 4, n_bins=15)
    assert found == pytest.approx(expected.item(), rel=1e-5)
    count, mean, right = reliability(confidence, predicted == label).T
    assert count.sum() == 500
    assert np.nansum(count * np.abs(mean - right)) / 500 == pytest.approx(found)
    assert (np.isnan(mean) == (count == 0)).all()


def test_a_class_that_a_draw_lacks_leaves_the_mean_undefined():
    label, predicted = np.array([0, 0, 1, 2]), np.array([0, 1, 1, 2])
    found = confusion(np.array([[1.0, 1, 1, 1], [1, 1, 1, 0]]), pairs_n(label, predicted, 4))
    present = np.array([True, True, True, False])
    np.testing.assert_equal(balanced_accuracy(found, present), [(0.5 + 1 + 1) / 3, math.nan])
    np.testing.assert_equal(recalls(found)[0], [0.5, 1, 1, math.nan])


def test_one_class_alone_has_no_kappa_and_items_without_weight_nothing():
    pairs = pairs_n(np.zeros(3, int), np.zeros(3, int), 3)
    assert math.isnan(quadratic_kappa(confusion(np.ones((1, 3)), pairs))[0])
    empty = confusion(np.zeros((1, 3)), pairs)
    assert [math.isnan(f(empty)[0]) for f in (accuracy, macro_f1, quadratic_kappa)] == [True] * 3
