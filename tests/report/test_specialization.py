import math

import numpy as np
import pytest
from made_runs import make_evaluation, one_hot

from dexcore.measures.information import normalized_mutual_information
from dexcore.report.specialization import specialization


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
