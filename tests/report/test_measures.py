import math

import numpy as np
import pytest
from made_runs import make_evaluation, one_hot

from dexcore.report.measures import normalized_mutual_information, specialization, variance_explained


def test_variance_explained_is_one_minus_the_ratio_of_sums():
    # CT: images of different weight, so that a mean of ratios (0.55) differs from the ratio of sums.
    evaluation = make_evaluation(
        modality=[0, 0, 1, 2, 2],
        heldout=[False] * 5,
        squared_error=[1.0, 9.0, 5.0, 0.0, 1.0],
        total=[10.0, 10.0, 20.0, 2.0, 2.0],
    )
    split = variance_explained(evaluation, heldout=False)
    values = {(row.modality, row.synthetic): row.variance.value for row in split.rows}
    assert values == pytest.approx({("CT", False): 0.5, ("MR", False): 0.75, ("Photo", True): 0.75})
    assert split.mean.value == pytest.approx((0.5 + 0.75 + 0.75) / 3)
    assert (split.mean.images, split.mean.modalities) == (5, 3)
    assert split.mean_real.value == pytest.approx((0.5 + 0.75) / 2)
    assert (split.mean_real.images, split.mean_real.modalities) == (3, 2)
    assert split.pooled_real.value == pytest.approx(1 - 15 / 40)


def test_training_and_held_out_images_are_apart():
    evaluation = make_evaluation(
        modality=[0, 0, 1], heldout=[False, True, False], squared_error=[0.1, 0.6, 0.2], total=[1.0, 1.0, 1.0]
    )
    training, heldout = (variance_explained(evaluation, heldout=flag) for flag in (False, True))
    assert [row.modality for row in training.rows] == ["CT", "MR"]
    assert [row.variance.value for row in training.rows] == pytest.approx([0.9, 0.8])
    assert [(row.modality, row.variance.images) for row in heldout.rows] == [("CT", 1)]
    assert heldout.mean.value == pytest.approx(0.4)


def test_real_and_synthetic_images_of_one_modality_are_apart():
    evaluation = make_evaluation(
        modality=[0, 0],
        heldout=[False] * 2,
        synthetic=[False, True],
        squared_error=[0.4, 0.0],
        total=[1.0, 1.0],
    )
    split = variance_explained(evaluation, heldout=False)
    assert [(row.synthetic, row.variance.value) for row in split.rows] == [(False, 0.6), (True, 1.0)]
    assert (split.mean.value, split.mean.modalities) == (0.8, 1)
    assert split.mean_real.value == 0.6


def test_predicting_the_mean_explains_nothing_and_worse_is_negative():
    evaluation = make_evaluation(modality=[0, 1], heldout=[False] * 2, squared_error=[1.0, 3.0])
    assert [row.variance.value for row in variance_explained(evaluation, heldout=False).rows] == [0.0, -2.0]


def test_without_images_or_variance_there_is_no_share():
    evaluation = make_evaluation(modality=[0], heldout=[False], squared_error=[0.0], total=[0.0])
    assert math.isnan(variance_explained(evaluation, heldout=False).mean.value)
    empty = variance_explained(evaluation, heldout=True)
    assert empty.rows == ()
    assert math.isnan(empty.mean.value)
    assert empty.mean.images == 0


@pytest.mark.parametrize("shares", [np.eye(4), np.kron(np.eye(4), [0.5, 0.5]), np.kron(np.eye(2), [[1.0], [1.0]])])
def test_perfect_specialization_has_information_one(shares):
    assert normalized_mutual_information(shares) == pytest.approx(1.0)


def test_independence_and_collapse_have_information_zero():
    assert normalized_mutual_information(np.tile([0.1, 0.2, 0.7], (5, 1))) == pytest.approx(0.0, abs=1e-12)
    assert normalized_mutual_information(np.tile([1.0, 0.0, 0.0], (5, 1))) == pytest.approx(0.0, abs=1e-12)


def test_information_of_a_hand_made_case():
    # P(e) = (3/4, 1/4); I = H(E) - H(E | M) = H(3/4, 1/4) - (H(1/2, 1/2) + 0) / 2, over log 2.
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    expected = (entropy - math.log(2) / 2) / math.log(2)
    assert normalized_mutual_information(np.array([[0.5, 0.5], [1.0, 0.0]])) == pytest.approx(expected)


def test_even_gates_over_k_experts_reach_the_stated_bound():
    shares = np.kron(np.eye(4), [0.5, 0.5])  # 4 modalities, 8 experts, 2 an image
    six = np.concatenate([shares, shares[:2]])
    assert normalized_mutual_information(six) <= math.log(8 / 2) / math.log(6)
    assert normalized_mutual_information(six) > 0.9 * math.log(8 / 2) / math.log(6)


def test_a_single_modality_or_expert_has_no_information():
    assert math.isnan(normalized_mutual_information(np.array([[0.5, 0.5]])))
    assert math.isnan(normalized_mutual_information(np.ones((3, 1))))


def test_specialized_experts_stand_out_of_the_null():
    modality = np.repeat([0, 1, 2], 20)
    (block,) = specialization(make_evaluation(modality, gates=[one_hot(modality, 3)]))
    np.testing.assert_array_equal(block.shares_mr, np.eye(3))
    assert block.nmi == pytest.approx(1.0)
    assert block.null_mean < block.null_95 < 0.2
    assert block.p_value == pytest.approx(1 / 1001)
    assert block.synthetic == (False, False, True)


def test_experts_that_ignore_modality_lie_inside_the_null():
    modality = np.repeat([0, 1, 2], 200)
    experts = np.random.default_rng(0).integers(0, 4, len(modality))
    (block,) = specialization(make_evaluation(modality, gates=[one_hot(experts, 4)]))
    assert block.nmi < 0.02
    assert block.nmi < block.null_95
    assert block.p_value > 0.05


def test_p_values_are_uniform_when_nothing_is_there():
    values = []
    for seed in range(60):
        experts = np.random.default_rng(seed).integers(0, 4, 60)
        evaluation = make_evaluation(np.repeat([0, 1, 2], 20), gates=[one_hot(experts, 4)])
        values.append(specialization(evaluation, permutations=99)[0].p_value)
    assert 0.35 < np.mean(values) < 0.65
    assert np.mean(np.array(values) < 0.2) < 0.4


def test_alike_slices_of_few_volumes_do_not_fake_significance():
    # Two volumes a modality, 50 slices each, all slices of a volume to the same expert at random.
    volume = np.repeat(np.arange(6), 50)
    gates = one_hot(np.array([0, 1, 2, 3, 4, 5])[volume], 6)
    by_volume = make_evaluation(volume // 2, gates=[gates], group=[f"volume {v}" for v in volume])
    by_slice = make_evaluation(volume // 2, gates=[gates])
    assert specialization(by_slice)[0].p_value < 0.01  # what permuting slices would claim
    assert specialization(by_volume)[0].p_value > 0.5


def test_one_file_a_modality_can_never_be_significant():
    modality = np.repeat([0, 1, 2], 10)
    evaluation = make_evaluation(modality, gates=[one_hot(modality, 3)], group=[f"file {m}" for m in modality])
    (block,) = specialization(evaluation)
    assert block.nmi == block.null_mean == pytest.approx(1.0)
    assert block.p_value == 1.0


def test_equal_group_names_of_two_modalities_are_two_groups():
    modality = np.repeat([0, 1, 2], 20)
    numbered = make_evaluation(modality, gates=[one_hot(modality, 3)], group=[f"patient {i % 20}" for i in range(60)])
    assert specialization(numbered)[0].p_value < 0.01


def test_modalities_weigh_the_same_whatever_their_number_of_images():
    few = make_evaluation([0, 1], gates=[one_hot([0, 1], 2)])
    many = make_evaluation([0] * 50 + [1], gates=[one_hot([0] * 50 + [1], 2)])
    assert specialization(few)[0].nmi == specialization(many)[0].nmi == pytest.approx(1.0)


def test_the_null_is_the_same_each_time_and_changes_with_the_seed():
    rng = np.random.default_rng(0)
    evaluation = make_evaluation(np.repeat([0, 1, 2], 9), gates=[rng.dirichlet(np.ones(4), 27)])
    first, again, other = (specialization(evaluation, seed=seed)[0] for seed in (0, 0, 1))
    assert (first.null_mean, first.p_value) == (again.null_mean, again.p_value)
    assert first.null_mean != other.null_mean


def test_the_drawn_null_is_a_typical_one():
    rng = np.random.default_rng(0)
    evaluation = make_evaluation(np.repeat([0, 1, 2], 9), gates=[rng.dirichlet(np.ones(4), 27)])
    (block,) = specialization(evaluation)
    np.testing.assert_allclose(block.null_shares_mr.sum(axis=1), 1)
    drawn = float(normalized_mutual_information(block.null_shares_mr))
    assert drawn == pytest.approx(block.null_mean, rel=0.05)


def test_blocks_may_differ_in_experts_and_absent_modalities_are_left_out():
    rng = np.random.default_rng(0)
    gates = [rng.dirichlet(np.ones(experts), 6) for experts in (8, 3)]
    blocks = specialization(make_evaluation([0, 0, 0, 2, 2, 2], gates=gates))
    assert [block.shares_mr.shape for block in blocks] == [(2, 8), (2, 3)]
    assert blocks[0].modalities == ("CT", "Photo")


def test_gates_that_are_not_finite_have_no_information():
    (block,) = specialization(make_evaluation(gates=[np.full((8, 4), np.nan)]))
    assert math.isnan(block.nmi)
    assert math.isnan(block.p_value)


def test_a_dense_model_has_no_blocks():
    assert specialization(make_evaluation()) == ()
