"""The picture of a prediction: what is where, readable with many experts and classes."""

import io

import numpy as np
from PIL import Image

from dexcore.report.prediction import Overlay, _listed, prediction_picture

SHOWN = np.tile(np.linspace(0, 1, 32, dtype=np.float32), (32, 1))
ATTENTION = np.eye(4, dtype=np.float32) / 4


def gates(blocks, experts, chosen=2):
    made = np.zeros((blocks, experts), np.float32)
    for block in range(blocks):
        made[block, (block * 5 + np.arange(chosen) * 3) % experts] = 1 / chosen
    return made


def drawn(**kwargs):
    given = {"title": "a.png: ill", "shown": SHOWN, "attention": ATTENTION, "asking": "patches, block 2", "gates": None}
    given |= kwargs
    return np.asarray(Image.open(io.BytesIO(prediction_picture(**given))).convert("RGB")).astype(int)


def test_the_experts_that_took_the_image_are_told_whatever_their_number():
    one, other = gates(12, 64), gates(12, 64)
    other[7] = np.roll(other[7], 1)
    pictures = [drawn(gates=made) for made in (one, other)]
    assert pictures[0].shape == pictures[1].shape
    assert np.array_equal(drawn(gates=one), pictures[0])
    changed = np.flatnonzero((pictures[0] != pictures[1]).any(axis=(0, 2)))
    assert changed.min() > pictures[0].shape[1] / 2  # in their panel alone, on the right


def test_the_largest_weights_are_listed_first_and_the_rest_are_counted():
    weights = np.array([0, 0.38, np.nan, 0.5, 0.1, 0.02], np.float32)
    assert _listed(weights) == "#4 .50  #2 .38  #5 .10  +1"
    assert _listed(np.array([0, 1.0])) == "#2 1.00"


def test_a_mask_is_drawn_on_the_image_at_its_own_size():
    masks = np.zeros((1, 60, 40), bool)
    image = np.full((60, 40), 0.5, np.float32)
    plain = drawn(overlay=Overlay(image, masks[:0], ()))
    masks[0, 20:40, 10:30] = True
    covered = drawn(overlay=Overlay(image, masks, ("nerve",)))
    left = covered.shape[1] // 2
    red, none = (one[:, :left, 0] - one[:, :left, 1] > 40 for one in (covered, plain))
    assert red.mean() > 0.05
    assert none.mean() == 0


def test_many_classes_and_long_names_make_a_picture_of_the_same_size():
    few = drawn(bars=[("sound", 0.9), ("ill", 0.1)])
    many = drawn(bars=[(f"a class with a very long name, number {number}", 0.01) for number in range(100)])
    assert few.shape == many.shape
