"""Frames put into a stack come back as they were, in half the memory where 16 bits tell their values apart."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dexcore.data.coded import Coded
from dexcore.data.readers.gray_stack import GrayStack
from dexcore.data.readers.scan import RefusedError

FRAMES, ROWS, COLUMNS = 5, 4, 6
STORED = {  # integers, and what they stand for
    "signed": (np.int16, -32768, 32767),
    "few": (np.int16, -2, 3),
    "bytes": (np.uint8, 0, 255),
    "unsigned": (np.uint16, 0, 65535),
    "swapped": (np.dtype(">i2"), -9, 9),
    "wide": (np.int32, -40000, 40000),
    "small in wide": (np.uint32, 0, 9),
    "floats": (np.float32, -1, 1),
}
MEANINGS = {
    "themselves": lambda stored: stored,
    "halves": lambda stored: stored * np.float32(0.5),
    "tenths": lambda stored: stored * np.float32(0.1) - 3,
    "padded": lambda stored: np.where(stored == 2, np.float32(np.nan), stored * np.float32(0.3)),
    "bent": lambda stored: 1 / (1 + np.exp(-stored / 100)),
    "infinite": lambda stored: np.where(stored > 1, np.inf, stored),
}


def put(stack, index, stored, meaning):
    with np.errstate(all="ignore"):
        values = MEANINGS[meaning](stored.astype(np.float32)).astype(np.float32)
    stack.put(index, values, stored)
    return values


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_frames_put_in_any_order_come_back_bit_for_bit(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 30)))
    kinds = data.draw(st.lists(st.sampled_from(sorted(STORED)), min_size=1, max_size=2))
    meanings = data.draw(st.lists(st.sampled_from(sorted(MEANINGS)), min_size=1, max_size=2))
    stack, frames = GrayStack(FRAMES, ROWS, COLUMNS), np.empty((FRAMES, ROWS, COLUMNS), np.float32)
    for index in data.draw(st.permutations(range(FRAMES))):
        dtype, low, high = STORED[data.draw(st.sampled_from(kinds))]
        stored = rng.integers(low, high, (ROWS, COLUMNS), endpoint=True).astype(dtype)
        frames[index] = put(stack, index, stored, data.draw(st.sampled_from(meanings)))
    pixels = stack.pixels()
    np.testing.assert_array_equal(pixels, frames)
    for view in (np.s_[1:], np.s_[::-1, 1], np.s_[:, :, 2], np.s_[3:1:-1, :, ::2]):
        np.testing.assert_array_equal(np.asarray(pixels[view]), frames[view])
    turned, expected = pixels.transpose(2, 0, 1)[:, ::-1], frames.transpose(2, 0, 1)[:, ::-1]
    np.testing.assert_array_equal(np.asarray(turned), expected)
    for part, values in zip(turned, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(part.T), values.T)
    if isinstance(pixels, Coded):
        np.testing.assert_array_equal(pixels.widened(), frames)
        np.testing.assert_array_equal(np.asarray(turned), expected)  # made before


@pytest.mark.parametrize(
    ("meanings", "dtype"),
    [
        (["themselves"], np.int16),
        (["themselves", "halves"], np.float32),
        (["halves", "tenths"], np.float32),
    ],
)
def test_whole_numbers_of_16_bits_become_such(meanings, dtype):
    stack, stored = GrayStack(2, 8, 8), np.arange(-32, 32, dtype=np.int16).reshape(8, 8)
    frames = [put(stack, index, stored, meaning) for index, meaning in enumerate(meanings * 2) if index < 2]
    pixels = stack.whole_pixels()
    assert pixels.dtype == dtype
    np.testing.assert_array_equal(pixels, frames)


@pytest.mark.parametrize("stored", [np.float32, np.uint16])
def test_whole_numbers_above_int16_become_uint16(stored):
    stack = GrayStack(3, 2, 3)
    frames = np.array([[[0, 1, 65535], [2, 3, 40000 + index]] for index in range(3)], np.float32)
    for index, frame in enumerate(frames):
        stack.put(index, frame, frame.astype(stored))
    pixels = stack.whole_pixels()
    assert pixels.dtype == np.uint16
    np.testing.assert_array_equal(pixels, frames)


@pytest.mark.parametrize("stored", [np.float64, np.int16])
def test_what_is_not_finite_becomes_the_smallest_or_the_largest_value(stored):
    stack = GrayStack(2, 1, 4)
    values = np.array([[np.nan, 0.5, np.inf, -np.inf]], np.float32)
    stack.put(0, values, np.array([[1, 2, 3, 4]]).astype(stored))
    stack.put(1, np.array([[7.5, 8, 9, 10]], np.float32), np.array([[5, 6, 7, 8]]).astype(stored))
    stack.make_finite()
    assert np.asarray(stack.pixels()).tolist() == [[[0.5, 0.5, 10, 0.5]], [[7.5, 8, 9, 10]]]
    nothing = GrayStack(1, 1, 1)
    nothing.put(0, np.array([[np.nan]], np.float32), np.zeros((1, 1), stored))
    with pytest.raises(RefusedError, match="no pixel is finite"):
        nothing.make_finite()


def test_fractions_take_half_the_memory_whatever_each_frame_makes_of_its_integers():
    """All but the array itself, of which the second half is never touched."""
    frames, side = 64, 256
    stored = np.random.default_rng(0).integers(-1024, 1024, (side, side), dtype=np.int16)
    tracemalloc.start()
    try:
        stack = GrayStack(frames, side, side)
        for index in range(frames):
            stack.put(index, stored * np.float32(0.5 + index), stored)
        pixels = stack.pixels()
        for plane in pixels.transpose(2, 1, 0):
            np.asarray(plane)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert isinstance(pixels, Coded)
    assert peak < 4 * pixels.size + (4 << 20)
