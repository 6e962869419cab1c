"""Logits are resized, and decided after, at the image's own size."""

import numpy as np
import pytest
import torch

from dexcore.evaluate.prediction.native import at_size, decided


@pytest.mark.parametrize("size", [(7, 9), (4, 6), (3, 5), (64, 61)])
def test_logits_are_enlarged_as_torch_does(size):
    logits = torch.randn(2, 3, 4, 6)
    expected = torch.nn.functional.interpolate(logits, size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(at_size(logits, *size), expected)


def test_a_class_between_two_others_does_not_appear_where_they_meet():
    """As it would if the indices of classes were interpolated: 0 and 2 have 1 between them."""
    logits = torch.full((3, 1, 2), -5.0)
    logits[0, 0, 0] = logits[2, 0, 1] = 5
    mask = decided("segmentation", at_size(logits[None], 4, 20)[0])
    assert mask.shape == (4, 20)
    assert set(np.unique(mask)) == {0, 2}


def test_channels_of_a_multilabel_segmentation_may_cover_each_other():
    mask = decided("multilabel_segmentation", torch.tensor([[[1.0, -1.0]], [[2.0, 0.0]]]))
    assert mask.dtype == bool
    assert mask.tolist() == [[[True, False]], [[True, False]]]
