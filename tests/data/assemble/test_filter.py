"""Which images are dropped, and the words that say why."""

import numpy as np
import pytest

from dexcore.data import Modality
from dexcore.data.assemble.filter import foreground_ratio, reject_reason


def _with_foreground(share: float, side: int = 100) -> np.ndarray:
    image = np.full(side * side, 0.05, np.float32)
    image[: round(share * side * side)] = 0.06
    return image.reshape(side, side)


def test_foreground_is_what_is_brighter_than_a_twentieth():
    assert foreground_ratio(_with_foreground(0.123)) == pytest.approx(0.123)


def test_colour_is_foreground_where_any_channel_is_bright():
    image = np.zeros((10, 10, 3), np.float32)
    image[:3, :, 2] = 1
    assert foreground_ratio(image) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("modality", "share", "kept"),
    [
        (Modality.CT, 0.05, True),
        (Modality.CT, 0.049, False),
        (Modality.PET, 0.01, True),
        (Modality.PET, 0.009, False),
    ],
)
def test_images_with_little_foreground_are_dropped(modality, share, kept):
    reason = reject_reason(_with_foreground(share), modality)
    assert reason is None if kept else "foreground ratio" in reason


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.random.default_rng(0).random((63, 500)), "shorter side of 63 px"),
        (np.ones((1, 1)), "shorter side of 1 px"),
        (np.full((64, 64), 0.7), "constant, all pixels are 0.7"),
        (np.where(np.eye(64) > 0, np.nan, 0.5), "non-finite"),
        (np.where(np.eye(64) > 0, np.inf, 0.5), "non-finite"),
    ],
)
def test_small_constant_and_broken_images_are_dropped(image, words):
    assert words in reject_reason(image, Modality.MR)


@pytest.mark.parametrize("shape", [(64, 64), (64, 90, 3)])
def test_good_images_are_kept(shape):
    assert reject_reason(np.random.default_rng(0).random(shape), Modality.MR) is None


def test_a_modality_s_name_has_its_limit_too():
    image = np.zeros((100, 100), np.float32)
    image[:2] = 1.0  # 2 %: enough for PET alone
    assert reject_reason(image, "PET") is None
    assert reject_reason(image, "CT") is not None
    with pytest.raises(ValueError, match="'Pet' is not a valid Modality"):
        reject_reason(image, "Pet")


def test_what_is_no_image_is_named():
    with pytest.raises(TypeError, match="image must be a numpy array"):
        reject_reason([[0.5]], Modality.CT)
    with pytest.raises(ValueError, match=r"image has shape \(90,\)"):
        reject_reason(np.zeros(90, np.float32), Modality.CT)
