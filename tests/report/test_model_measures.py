import math

import numpy as np
import pytest
from made_runs import make_analysis, make_evaluation

from dexcore.report.model_measures import conflicts, likeness, plane, separation


def test_features_that_know_the_modality_and_those_that_know_the_label_are_told_apart():
    rng = np.random.default_rng(0)
    modality, label = np.repeat([0, 1, 2], 20), np.tile([0, 1], 30)
    experts = np.eye(3)[modality] + rng.normal(0, 0.05, (60, 3))
    director = np.eye(3)[label] + rng.normal(0, 0.05, (60, 3))
    evaluation = make_evaluation(modality)
    analysis = make_analysis(evaluation, label=label, features=np.stack([experts, director]))
    first, second = separation(evaluation, analysis)
    assert (first.mode, second.mode) == ("experts", "director")
    assert first.modality.accuracy == 1.0
    assert first.label.accuracy < 0.8
    assert second.label.accuracy == second.label_across.accuracy == 1.0
    assert second.modality.accuracy < 0.6


def test_what_sets_the_modes_apart_as_a_whole_takes_no_component():
    rng = np.random.default_rng(0)
    features = np.stack([rng.normal(size=(8, 6)) * [3, 2, 0, 0, 0, 0]] * 2)
    features[1] += [0, 0, 0, 50, 0, 0]
    features[0, 3] = np.nan
    places, shares = plane(make_analysis(make_evaluation(), features=features))
    assert shares.sum() == pytest.approx(1)
    assert np.isnan(places[0, 3]).all()
    steps = places[0, 1:3] - places[0, 0], places[1, 1:3] - places[1, 0]
    np.testing.assert_allclose(*steps, rtol=1e-5, atol=1e-6)


def test_a_groups_name_counts_within_its_modality():
    # Both modalities have one "patient": neither can be found in another patient of its own.
    evaluation = make_evaluation([0, 0, 1, 1], group=["patient"] * 4)
    assert math.isnan(separation(evaluation, make_analysis(evaluation))[0].modality.accuracy)


def test_conflicts_are_between_modalities_and_the_ceiling_is_on_the_diagonal():
    cosines = np.array([[0.8, 0.1, -0.5], [0.1, 0.6, 0.0], [-0.5, 0.0, 0.4]])
    analysis = make_analysis(make_evaluation(), gradient_cosines=[cosines, np.eye(3)])
    shared, experts = conflicts(analysis)
    assert (shared.part, experts.part) == ("shared weights", "experts")
    assert shared.between == pytest.approx(-0.4 / 3)
    assert shared.ceiling == pytest.approx(0.6)
    assert shared.opposed == ("CT", "Photo", -0.5)
    assert (experts.between, experts.ceiling) == (0, 1)


def test_gradients_without_direction_are_left_out():
    cosines = np.array([[0.8, np.nan, 0.5], [np.nan, np.nan, np.nan], [0.5, np.nan, 0.4]])
    analysis = make_analysis(make_evaluation(), gradient_cosines=[cosines, np.full((3, 3), np.nan)])
    (shared,) = conflicts(analysis)
    assert (shared.between, shared.ceiling) == (0.5, pytest.approx(0.6))
    alone = make_evaluation([0, 0])
    assert conflicts(make_analysis(alone)) == ()


def test_likeness_is_over_pairs_of_experts_and_the_director_is_last():
    block = np.array([[1, 0.2, 0.4, 0.9], [0.2, 1, 0.6, 0.8], [0.4, 0.6, 1, 0.7], [0.9, 0.8, 0.7, 1]])
    found, single = likeness([block, np.array([[1, 0.5], [0.5, 1]])])
    assert (found.mean, found.lowest, found.director) == pytest.approx((0.4, 0.2, 0.8))
    assert math.isnan(single.mean)
    assert single.director == 0.5
