"""What of an image a model is shown."""

import numpy as np
import pytest
import timm
import torch
from made_models import HALF, close, dex
from made_tasks import picture
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

from dexcore.evaluate.embedding import (
    FeaturesError,
    Preprocessing,
    features,
)
from dexcore.evaluate.embedding.view import declared_preprocessing


def test_one_picture_of_8_bits_16_bits_and_floats_has_the_same_features(tmp_path):
    eight = picture(3, (50, 40))
    images = [eight, eight.astype(np.uint16) * 257, eight.astype(np.float32) / 255, torch.from_numpy(eight)]
    for view in (None, Preprocessing((32, 32), HALF, HALF, "bicubic", crop_pct=0.9)):
        table = features(dex(), images, preprocessing=view, cache=tmp_path)
        assert all(close(table.mean[row], table.mean[0]) for row in range(4))


def test_values_outside_the_range_are_refused(tmp_path):
    with pytest.raises(FeaturesError, match=r"item 1 .*must lie in"):
        features(dex(), [picture(0), picture(1).astype(np.float32)], cache=tmp_path)


@pytest.mark.parametrize("shape", [(50, 70, 3), (33, 31, 3)])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224.augreg_in21k", "resnet18.tv_in1k"])
def test_the_view_of_timms_models_is_timms(name, shape):
    model = timm.create_model(name, num_classes=0)
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    pixels = 64 + picture(1, shape) // 2  # Pillow cuts what overshoots 8 bits between its two passes
    ours, theirs = declared_preprocessing(model)(pixels), transform(Image.fromarray(pixels))
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() < 2 / 255 / 0.22  # timm's is rounded to 8 bits


def test_the_whole_image_can_be_asked_for(tmp_path):
    image = np.zeros((32, 64), np.uint8)
    image[:, :8] = 255  # outside the centre square
    blank = np.zeros((32, 64), np.uint8)
    model = dex()
    centre, whole = (features(model, [image, blank], crop=crop, cache=tmp_path) for crop in ("center", "whole"))
    assert close(centre.mean[0], centre.mean[1])
    assert not close(whole.mean[0], whole.mean[1])
