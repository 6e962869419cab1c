"""Frames put into a stack come back as they were, in half the memory where whole numbers allow it."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dexcore.data.readers.gray_stack import GrayStack

WHOLE = np.array([[-3, 0, 5], [32767, -32768, 7]], np.float32)
UNSIGNED = np.array([[0, 1, 65535], [2, 3, 40000]], np.float32)
FRACTION = np.array([[0.5, 1, 2], [3, 4, 5]], np.float32)
LARGE = np.array([[1e6, 1, 2], [3, 4, np.inf]], np.float32)
PADDED = np.array([[np.nan, 1, 2], [3, np.nan, 5]], np.float32)


@pytest.mark.parametrize(
    ("frames", "dtype"),
    [
        ([WHOLE, WHOLE], np.int16),
        ([WHOLE, PADDED], np.int16),
        ([PADDED, UNSIGNED], np.uint16),
        ([UNSIGNED, WHOLE], np.float32),
        ([WHOLE, UNSIGNED], np.float32),
        ([WHOLE, PADDED, FRACTION], np.float32),
        ([PADDED, UNSIGNED, LARGE], np.float32),
    ],
)
def test_frames_are_kept_in_the_smallest_type_that_holds_all(frames, dtype):
    stack = GrayStack(len(frames), 2, 3)
    for index, frame in enumerate(frames):
        stack[index] = frame
    assert stack.pixels.dtype == dtype
    for index, frame in enumerate(frames):
        np.testing.assert_array_equal(stack[index], frame)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_frames_put_in_any_order_and_again_come_back(data):
    stack, count = GrayStack(5, 2, 3), 5
    kinds = [WHOLE, UNSIGNED, FRACTION, LARGE, PADDED]
    order = data.draw(st.permutations(range(count))) + data.draw(st.lists(st.integers(0, count - 1), max_size=4))
    kept = {}
    for index in order:
        kept[index] = data.draw(st.sampled_from(kinds))
        stack[index] = kept[index]
    for index, frame in kept.items():
        np.testing.assert_array_equal(stack[index], frame)


def test_a_late_fraction_takes_no_second_copy():
    frames = 64
    tracemalloc.start()
    try:
        stack = GrayStack(frames, 128, 128)
        for index in range(frames):
            stack[index] = np.full((128, 128), index + (index == frames - 1) / 2, np.float32)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert stack.pixels.dtype == np.float32
    assert peak < 1.1 * stack.pixels.nbytes + (1 << 18)
