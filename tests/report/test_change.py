"""What training changed: the differences, and how often they are claimed where there is nothing."""

import math

import numpy as np
import pytest
from made_runs import make_evaluation, one_hot

from dexcore.measures.neighbors import neighbor_accuracy
from dexcore.report.change import Change, neighbor_change, specialization_changes, variance_change
from dexcore.report.specialization import specialization


def changes(trained, before):
    return specialization_changes(trained, before, specialization(trained, 99), specialization(before, 99))


def routed(modality, follow, rng, experts=4):
    """Experts of images: that of their modality with probability ``follow``, else any."""
    return np.where(rng.random(len(modality)) < follow, modality, rng.integers(0, experts, len(modality)))


MODALITY = np.repeat([0, 1, 2], 30)


def test_a_model_that_has_not_moved_has_changed_nothing():
    gates = [one_hot(MODALITY, 3), one_hot(routed(MODALITY, 0.5, np.random.default_rng(0)), 4)]
    evaluation = make_evaluation(MODALITY, gates=gates)
    for change in changes(evaluation, evaluation):
        assert (change.value, change.low, change.high) == (0, 0, 0)
        assert not change.rose
        assert not change.fell


def test_experts_that_came_to_follow_modalities_are_found_and_so_are_those_that_ceased_to():
    rng = np.random.default_rng(0)
    little, much = (make_evaluation(MODALITY, gates=[one_hot(routed(MODALITY, p, rng), 4)]) for p in (0.4, 0.95))
    (more,), (less,) = changes(much, little), changes(little, much)
    assert more.rose
    assert less.fell
    assert more.value == pytest.approx(-less.value)
    assert more.low < more.value < more.high


def test_what_a_random_router_has_already_is_not_claimed():
    # Both follow modalities far beyond chance, and to the same degree: by other experts, with other images astray.
    claimed = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        first, second = (make_evaluation(MODALITY, gates=[one_hot(routed(MODALITY, 0.6, rng), 4)]) for _ in range(2))
        assert specialization(second, 99)[0].p_value == 0.01
        (change,) = changes(second, first)
        claimed += change.rose or change.fell
    assert claimed <= 8  # of 60, at 5 % each: 9 or more have a probability of 0.3 %


def test_slices_of_a_volume_are_one_case():
    modality = np.repeat([0, 1], 60)
    volume = [f"volume {index // 12}" for index in range(120)]  # ten of them
    rng = np.random.default_rng(0)
    gates = [np.repeat(one_hot(rng.integers(0, 2, 10), 2), 12, axis=0) for _ in range(2)]
    by_volume, by_slice = (
        changes(
            make_evaluation(modality, gates=[gates[0]], **group), make_evaluation(modality, gates=[gates[1]], **group)
        )
        for group in ({"group": volume}, {})
    )
    width = [change.high - change.low for (change,) in (by_volume, by_slice)]
    assert width[0] > 2 * width[1]


@pytest.mark.parametrize("modality", [np.repeat([0, 1, 2], 3), np.array([0, 1, 2, *[0] * 20])])
def test_too_few_files_or_single_ones_make_no_interval_and_no_verdict(modality):
    trained = make_evaluation(modality, gates=[one_hot(modality, 3)])
    before = make_evaluation(modality, gates=[np.full((len(modality), 3), 1 / 3)])
    (change,) = changes(trained, before)
    assert change.value > 0.3
    assert math.isnan(change.low)
    assert not change.rose
    assert change.told().endswith("[too few files]")


def test_intervals_that_are_read_together_are_wider():
    rng = np.random.default_rng(0)
    gates = [[one_hot(routed(MODALITY, 0.5, rng), 4)] for _ in range(2)]
    (alone,) = changes(*(make_evaluation(MODALITY, gates=one) for one in gates))
    together = changes(*(make_evaluation(MODALITY, gates=one * 12) for one in gates))
    assert together[0].high - together[0].low > 1.2 * (alone.high - alone.low)


def test_gates_that_are_not_finite_claim_nothing():
    lost = make_evaluation(gates=[np.full((8, 4), np.nan)])
    (change,) = changes(lost, make_evaluation(gates=[np.full((8, 4), 0.25)]))
    assert math.isnan(change.value)
    assert not change.rose
    assert not change.fell
    assert change.told() == ""


def test_variance_is_the_mean_over_modalities_of_the_difference():
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.05, 90)
    before = make_evaluation(MODALITY, squared_error=1.4 + noise)
    trained = make_evaluation(MODALITY, squared_error=np.where(MODALITY == 1, 0.5, 0.8) + noise)
    everything = np.ones(90, bool)
    change = variance_change(trained, before, everything)
    assert change.value == pytest.approx((0.6 + 0.9 + 0.6) / 3)
    assert change.rose
    assert change.told().startswith("+0.70 [")
    assert variance_change(before, trained, everything).fell
    shuffled = make_evaluation(MODALITY, squared_error=before.squared_error[rng.permutation(90)])
    assert not variance_change(shuffled, before, everything).rose
    one = variance_change(trained, before, MODALITY == 1)
    assert one.value == pytest.approx(0.9)
    assert math.isnan(variance_change(trained, before, np.zeros(90, bool)).value)


def test_neighbors_that_learned_the_label_are_found():
    rng = np.random.default_rng(0)
    label = np.tile([0, 1], 45)
    evaluation = make_evaluation(MODALITY)
    _, group = evaluation.groups()
    knows, guesses = np.eye(2)[label] + rng.normal(0, 0.1, (90, 2)), rng.normal(size=(90, 2))
    trained, before = (neighbor_accuracy(features, label, group) for features in (knows, guesses))
    change = neighbor_change(evaluation, label, trained, before)
    assert change.value == pytest.approx(trained.accuracy - before.accuracy)
    assert change.rose
    assert not neighbor_change(evaluation, label, before, before).rose
    lost = neighbor_accuracy(np.full((90, 2), np.nan), label, group)
    assert math.isnan(neighbor_change(evaluation, label, lost, before).value)


def test_a_difference_that_is_sure_and_tiny_is_no_verdict():
    assert not Change(0.004, 0.003, 0.005).rose
    assert Change(0.04, 0.03, 0.05).rose
    assert not Change(0.04, -0.01, 0.09).rose
    assert Change(0.04, -0.01, 0.09).told(percent=True) == "+4 [-1, 9]"
