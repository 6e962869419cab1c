import math

import pytest
from made_runs import make_evaluation

from dexcore.report.variance import variance_explained


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
