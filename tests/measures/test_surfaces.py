"""Distances of outlines by hand and against MONAI."""

import math

import numpy as np
import pytest
import torch

from dexcore.measures.surfaces import hausdorff_95, surface_dice, surface_distances

pytest.importorskip("scipy")


def square(top, left, size=8, side=32):
    mask = np.zeros((side, side), bool)
    mask[top : top + size, left : left + size] = True
    return mask


def test_a_square_that_was_moved_is_as_far_away_as_it_was_moved_in_mm():
    one, other = square(8, 8), square(8, 11)
    assert surface_distances(one, other, (1.0, 2.0))[0].max() == 6
    assert hausdorff_95(one, other, (1.0, 2.0)) == 6
    assert surface_dice(one, other, (1.0, 2.0), 6.0) == 1
    assert 0 < surface_dice(one, other, (1.0, 2.0), 5.9) < 1
    assert surface_dice(one, one, (1.0, 2.0), 0.0) == 1


def test_one_empty_mask_is_as_wrong_as_can_be_and_two_are_no_case():
    empty, full = np.zeros((30, 40), bool), np.ones((30, 40), bool)
    assert surface_dice(empty, full, (1, 1), 3.0) == surface_dice(full, empty, (1, 1), 3.0) == 0
    assert hausdorff_95(full, empty, (0.5, 0.5)) == 25
    assert math.isnan(hausdorff_95(empty, empty, (1, 1)))
    assert math.isnan(surface_dice(empty, empty, (1, 1), 1.0))


def test_they_are_monais():
    metrics = pytest.importorskip("monai.metrics")
    random = np.random.default_rng(0)
    for _ in range(3):
        one = square(*random.integers(2, 12, 2), size=9)
        other = square(*random.integers(2, 12, 2), size=12)
        tensors = [torch.from_numpy(mask)[None, None].float() for mask in (other, one)]
        spacing = (0.7, 1.3)
        expected = metrics.compute_hausdorff_distance(*tensors, include_background=True, percentile=95, spacing=spacing)
        assert hausdorff_95(one, other, spacing) == pytest.approx(expected.item(), rel=1e-5)
        expected = metrics.compute_surface_dice(*tensors, [1.5], include_background=True, spacing=spacing)
        assert surface_dice(one, other, spacing, 1.5) == pytest.approx(expected.item(), rel=1e-5)
