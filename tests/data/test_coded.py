"""Codes of float32 numbers do what the build asks of an array, and hold the same numbers."""

import numpy as np
import pytest

from dexcore.data import normalize
from dexcore.data.assemble.masks import looks_like_labels
from dexcore.data.assemble.slices import slices
from dexcore.data.coded import Coded, Table
from dexcore.data.normalize import limits

SHAPE = (7, 6, 5)


def coded(tables=2, shape=SHAPE):
    """Some codes, and the same numbers as an array: each table gives a third of a code, and more for each table."""
    rng = np.random.default_rng(0)
    table_of = rng.integers(0, tables, shape[0])
    codes = rng.integers(40, 90, shape, dtype=np.uint16)
    made = []
    for number in range(tables):
        table = Table()
        assert table.enter(np.arange(40, 90, dtype=np.uint16), np.arange(50, dtype=np.float32) / 3 + number)
        table.shrink()
        made.append(table)
    values = np.stack([made[number].decode(part) for number, part in zip(table_of, codes, strict=True)])
    wide = np.empty(shape, np.float32)
    pixels = Coded(wide, made, table_of)
    wide.reshape(-1).view(np.uint16)[: codes.size] = codes.ravel()
    return pixels, values


@pytest.mark.parametrize("tables", [1, 2, 7])
def test_an_array_of_codes_is_the_array_of_its_values(tables):
    pixels, values = coded(tables)
    assert (pixels.shape, pixels.ndim, pixels.size, len(pixels), pixels.dtype) == (SHAPE, 3, values.size, 7, np.float32)
    assert (pixels.min(), pixels.max()) == (values.min(), values.max())
    np.testing.assert_array_equal(pixels, values)
    np.testing.assert_array_equal(np.asarray(pixels, np.float64), values.astype(np.float64))
    for axis in range(3):
        for plane, expected in zip(slices(pixels, axis), slices(values, axis), strict=True):
            np.testing.assert_array_equal(np.ascontiguousarray(plane), expected)


@pytest.mark.parametrize("method", sorted(normalize.NORMALIZATIONS))
def test_the_limits_of_codes_are_those_of_the_values(method, monkeypatch):
    monkeypatch.setattr(normalize, "_SORTED_WHOLE", 16)
    monkeypatch.setattr(normalize, "_CHUNK", 20)
    pixels, values = coded()
    for axes in ((0, 1, 2), (2, 0, 1)):
        turned = pixels.transpose(axes)[:, ::-1]
        assert limits(turned, method) == limits(values.transpose(axes)[:, ::-1], method)


def test_label_maps_are_told_by_their_values():
    pixels, values = coded()
    assert looks_like_labels(pixels, True) is looks_like_labels(values, True) is None
    for table in pixels._tables:
        table.values[:] = np.repeat(np.arange(5, dtype=np.float32), 10)
    assert (
        looks_like_labels(pixels, False)
        == looks_like_labels(np.asarray(pixels), False)
        == "a label map: it has 5 values"
    )


def test_a_table_refuses_a_code_that_would_stand_for_two_values():
    table, codes = Table(), np.array([[3, 4]], np.uint16)
    assert table.enter(codes, np.array([[0.5, np.nan]], np.float32))
    assert table.enter(codes + 1, np.array([[np.nan, 7]], np.float32))
    assert not table.enter(codes, np.array([[0.25, np.nan]], np.float32))
    assert not table.enter(np.array([[9, 9]], np.uint16), np.array([[1, 2]], np.float32))
    np.testing.assert_array_equal(table.decode(np.array([3, 4, 5], np.uint16)), np.array([0.5, np.nan, 7], np.float32))
