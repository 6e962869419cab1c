"""Scores of masks against tables by hand, nnU-Net's formula, MONAI and torchmetrics."""

import math

import numpy as np
import pytest
import torch

from dexcore.measures.overlap import (
    count_channels,
    count_classes,
    dice,
    dice_kaggle,
    dice_present,
    false_alarm,
    iou,
)

RANDOM = np.random.default_rng(0)
NAN = math.nan


def pixel(reference, predicted):
    """The counts of a class that one mask of one pixel has, or has not."""
    return count_channels(np.array([[[reference]]], bool), np.array([[[predicted]]], bool))[0]


@pytest.mark.parametrize(
    ("reference", "predicted", "expected"),
    [  # dice, iou, dice_present, dice_kaggle, false_alarm
        (0, 0, (NAN, NAN, NAN, 1.0, 0.0)),
        (0, 1, (0.0, 0.0, NAN, 0.0, 1.0)),
        (1, 0, (0.0, 0.0, 0.0, 0.0, NAN)),
        (1, 1, (1.0, 1.0, 1.0, 1.0, NAN)),
    ],
)
def test_every_rule_on_empty_and_full_masks(reference, predicted, expected):
    counts = pixel(reference, predicted)
    found = [float(rule(counts)) for rule in (dice, iou, dice_present, dice_kaggle, false_alarm)]
    np.testing.assert_equal(found, expected)


def test_a_predictor_of_nothing_is_worth_the_share_of_empty_masks_by_the_kaggle_rule_alone():
    counts = np.array([pixel(case >= 6, 0) for case in range(10)])
    assert np.mean(dice_kaggle(counts)) == pytest.approx(0.6)
    assert np.nanmean(dice(counts)) == 0
    assert np.nanmean(dice_present(counts)) == 0
    assert np.nanmean(false_alarm(counts)) == 0


def random_masks(classes, cases=6):
    reference, predicted = RANDOM.integers(0, classes, (2, cases, 9, 7))
    reference[0], predicted[0] = 0, 0
    predicted[1] = np.where(predicted[1] == 1, 0, predicted[1])
    return reference, predicted


def test_counts_are_those_of_pixels_and_dice_is_nnunets():
    reference, predicted = random_masks(4)
    for one, other in zip(reference, predicted, strict=True):
        counts = count_classes(one, other, 4)
        for label in range(4):
            mask_ref, mask_pred = one == label, other == label
            tp, fp = (mask_ref & mask_pred).sum(), (~mask_ref & mask_pred).sum()
            fn = (mask_ref & ~mask_pred).sum()
            assert counts[label].tolist() == [tp, fp, fn, mask_ref.sum(), mask_pred.sum()]
            expected = NAN if tp + fp + fn == 0 else 2 * tp / (2 * tp + fp + fn)  # nnunetv2, compute_metrics
            np.testing.assert_equal(float(dice(counts[label])), float(expected))
        channels = count_channels(*(np.stack([mask == label for label in range(4)]) for mask in (one, other)))
        np.testing.assert_array_equal(channels, counts)


def test_both_of_monais_rules_for_empty_references_are_reproduced():
    compute_dice = pytest.importorskip("monai.metrics").compute_dice
    reference, predicted = random_masks(3)
    hot = [torch.nn.functional.one_hot(torch.from_numpy(x), 3).movedim(-1, 1) for x in (predicted, reference)]
    counts = np.stack([count_classes(a, b, 3) for a, b in zip(reference, predicted, strict=True)])
    # ignore_empty: an empty reference is nan, whatever is predicted; else: 1 where both are empty, and 0.
    np.testing.assert_allclose(compute_dice(*hot, ignore_empty=True), dice_present(counts), rtol=1e-6)
    np.testing.assert_allclose(compute_dice(*hot, ignore_empty=False), dice_kaggle(counts), rtol=1e-6)
    compute_iou = pytest.importorskip("monai.metrics").compute_iou
    found = np.where(counts[..., 3] > 0, iou(counts), NAN)
    np.testing.assert_allclose(compute_iou(*hot, ignore_empty=True), found, rtol=1e-6)


def test_torchmetrics_agrees_where_no_class_is_absent():
    functional = pytest.importorskip("torchmetrics.functional.segmentation")
    reference, predicted = (torch.from_numpy(RANDOM.integers(0, 3, (5, 8, 8))) for _ in range(2))
    counts = [count_classes(a, b, 3) for a, b in zip(reference.numpy(), predicted.numpy(), strict=True)]
    found = functional.dice_score(predicted, reference, 3, average=None, input_format="index")
    np.testing.assert_allclose(found, dice(np.stack(counts)), rtol=1e-6)
    found = functional.mean_iou(predicted, reference, 3, per_class=True, input_format="index")
    np.testing.assert_allclose(found, iou(np.stack(counts)), rtol=1e-6)


def test_ignored_pixels_count_nowhere():
    reference = np.array([[0, 1, 255], [1, 255, 255]], np.uint8)
    predicted = np.array([[0, 1, 1], [0, 1, 0]], np.uint8)
    assert count_classes(reference, predicted, 2, ignore=255).tolist() == [[1, 1, 0, 1, 2], [1, 0, 1, 2, 1]]


def test_a_volumes_counts_are_the_sums_of_its_slices_in_any_order():
    reference, predicted = random_masks(3)
    whole = count_classes(reference, predicted, 3)
    slices = [count_classes(a, b, 3) for a, b in zip(reference, predicted, strict=True)]
    assert np.array_equal(np.sum(slices[::-1], axis=0), whole)


@pytest.mark.parametrize(
    ("reference", "predicted", "told"),
    [
        (np.zeros((2, 2), int), np.zeros((2, 3), int), r"has shape \(2, 3\), the reference has \(2, 2\)"),
        (np.zeros((2, 2), int), np.full((2, 2), 3), "the prediction holds 3, expected indices of 3 classes"),
        (np.full((2, 2), 7), np.zeros((2, 2), int), "the reference holds 7, expected indices of 3 classes"),
        (np.zeros((1, 1), int), np.full((1, 1), -1), "the prediction holds -1"),
    ],
)
def test_masks_that_do_not_fit_are_refused(reference, predicted, told):
    with pytest.raises(ValueError, match=told):
        count_classes(reference, predicted, 3)
