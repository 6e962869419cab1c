"""The normalizations of method section 6, against their formulas."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dexcore.data import SOURCES
from dexcore.data.normalize import NORMALIZATIONS, normalize

_RNG = np.random.default_rng(0)


def test_hu_window_is_its_formula():
    hu = np.array([-3024, -201, -200, 0, 100, 400, 401, 3000], np.float32)
    np.testing.assert_allclose(normalize(hu, "hu_window"), (np.clip(hu, -200, 400) + 200) / 600, atol=1e-7)


def test_suv_window_is_its_formula():
    suv = np.array([0, 0.5, 5, 20, 35], np.float32)
    np.testing.assert_allclose(normalize(suv, "suv_window"), np.clip(suv, 0, 20) / 20, atol=1e-7)


def test_percentile_minmax_is_its_formula():
    volume = _RNG.gamma(2, 100, (11, 12, 13)).astype(np.float32)
    low, high = np.percentile(volume, [1, 99])
    expected = (np.clip(volume, low, high) - low) / (high - low)
    np.testing.assert_allclose(normalize(volume, "percentile_minmax"), expected, atol=1e-6)


def test_percentile_zscore_minmax_is_its_formula():
    volume = _RNG.gamma(2, 100, (11, 12, 13))
    clipped = np.clip(volume, *np.percentile(volume, [1, 99]))
    z = (clipped - clipped.mean()) / clipped.std()
    expected = (z - z.min()) / (z.max() - z.min())
    np.testing.assert_allclose(normalize(volume, "percentile_zscore_minmax"), expected, atol=1e-6)


def test_div255_divides_eight_bits_by_255():
    pixels = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(normalize(pixels, "div255"), pixels / np.float32(255))
    np.testing.assert_array_equal(normalize(pixels, "div255", (0.0, 255.0)), pixels / np.float32(255))


def test_div255_brings_other_depths_to_their_levels():
    pixels = np.array([0, 1000, 2000, 4095], np.uint16)
    np.testing.assert_allclose(normalize(pixels, "div255", (0.0, 4095.0)), pixels / 4095, atol=1e-7)
    np.testing.assert_allclose(normalize(pixels, "div255", (1000.0, 2000.0)), [0, 0, 1, 1], atol=1e-7)


def test_div255_of_floats_without_levels_takes_their_own_range():
    np.testing.assert_allclose(normalize(np.array([-2.0, 0.0, 2.0]), "div255"), [0, 0.5, 1])


@given(
    pixels=hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=8), elements=st.floats(-1e6, 1e6, width=32)),
    method=st.sampled_from(sorted(NORMALIZATIONS)),
)
def test_every_result_lies_in_0_to_1_and_keeps_the_order(pixels, method):
    before = pixels.copy()
    result = normalize(pixels, method)
    assert result.dtype == np.float32
    assert result.shape == pixels.shape
    assert result.min() >= 0
    assert result.max() <= 1
    assert (np.diff(result.ravel()[np.argsort(pixels, axis=None)]) >= 0).all()
    np.testing.assert_array_equal(pixels, before)


@pytest.mark.parametrize("method", ["percentile_minmax", "percentile_zscore_minmax", "div255"])
def test_a_constant_becomes_zeros(method):
    np.testing.assert_array_equal(normalize(np.full((3, 4), 7.5), method), np.zeros((3, 4)))


def test_the_table_has_every_method_of_the_sources():
    assert {source.normalization for source in SOURCES} == set(NORMALIZATIONS)


def test_an_unknown_method_and_an_empty_array_are_refused():
    with pytest.raises(ValueError, match="method is 'minmax', expected one of hu_window"):
        normalize(np.zeros(3), "minmax")
    with pytest.raises(ValueError, match="pixels has shape"):
        normalize(np.zeros((0, 4)), "hu_window")


@pytest.mark.parametrize(
    ("pixels", "method", "levels", "error", "message"),
    [
        ([[1, 2]], "div255", None, TypeError, "pixels must be a numpy array"),
        (np.array(["1"]), "div255", None, ValueError, "pixels has dtype <U1, expected integers or floats"),
        (np.zeros(3, complex), "hu_window", None, ValueError, "pixels has dtype complex128"),
        (np.zeros(3), ["div255"], None, ValueError, r"method is \['div255'\], expected one of"),
        (np.zeros(3), "div255", 255, TypeError, "levels must be a pair of numbers, black and white, got 255"),
        (np.zeros(3), "div255", (0, 1, 2), TypeError, "levels must be a pair of numbers"),
        (np.zeros(3), "div255", ("0", 1), TypeError, "levels must be a number"),
        (np.zeros(3), "div255", (0, math.nan), ValueError, "levels must be finite, got nan"),
    ],
)
def test_what_cannot_be_normalized_is_named(pixels, method, levels, error, message):
    with pytest.raises(error, match=message):
        normalize(pixels, method, levels)
