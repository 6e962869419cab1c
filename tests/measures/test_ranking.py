"""AUROC and average precision against scikit-learn, with ties and weights."""

import math

import numpy as np
import pytest

from dexcore.measures.ranking import Ranking

metrics = pytest.importorskip("sklearn.metrics")
RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("digits", [0, 1, 12])
def test_they_are_scikit_learns_under_every_weighting(digits):
    positive = RANDOM.random(80) < 0.3
    score = (positive + 2 * RANDOM.normal(size=80)).round(digits)
    weight = RANDOM.integers(0, 4, (30, 80)).astype(float)
    ranking = Ranking(positive, score)
    auroc, precision = ranking.auroc(weight), ranking.average_precision(weight)
    for draw, one in enumerate(weight):
        assert auroc[draw] == pytest.approx(metrics.roc_auc_score(positive, score, sample_weight=one))
        assert precision[draw] == pytest.approx(metrics.average_precision_score(positive, score, sample_weight=one))


@pytest.mark.parametrize("positive", [np.zeros(5, bool), np.ones(5, bool), np.zeros(0, bool)])
def test_a_class_without_items_or_without_others_is_not_half_right_but_undefined(positive):
    assert math.isnan(Ranking(positive, np.arange(len(positive))).auroc(np.ones((1, len(positive))))[0])


def test_a_draw_without_the_class_is_undefined_and_its_neighbors_are_not():
    ranking = Ranking(np.array([True, False, False]), np.array([0.5, 0.2, 0.9]))
    auroc = ranking.auroc(np.array([[0.0, 1, 1], [1, 1, 1], [1, 0, 0], [2, 0, 1]]))
    np.testing.assert_equal(auroc, [math.nan, 0.5, math.nan, 0.0])
    precision = ranking.average_precision(np.array([[0.0, 1, 1], [1, 1, 1]]))
    np.testing.assert_equal(precision, [math.nan, 0.5])


def test_weights_are_copies():
    positive, score = RANDOM.random(30) < 0.5, RANDOM.normal(size=30).round(1)
    weight = RANDOM.integers(0, 3, 30)
    copies = Ranking(np.repeat(positive, weight), np.repeat(score, weight))
    whole = np.ones((1, weight.sum()))
    ranking = Ranking(positive, score)
    assert ranking.auroc(weight[None].astype(float)) == pytest.approx(copies.auroc(whole))
    assert ranking.average_precision(weight[None].astype(float)) == pytest.approx(copies.average_precision(whole))
