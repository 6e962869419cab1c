"""The normalizations of method section 6, against their formulas."""

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dexcore.data import SOURCES
from dexcore.data import normalize as module
from dexcore.data.normalize import NORMALIZATIONS, limits, normalize, window

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


_THIRDS = [0, 1 / 3, 2 / 3, 1]


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (1e9 + np.arange(4.0), _THIRDS),
        (np.array([1e-30, 2e-30, 4e-30]), [0, 1 / 3, 1]),
        (np.array([-3e38, 0, 3e38], np.float32), [0, 0.5, 1]),
        (np.array([-1.7e308, 0, 1.7e308]), [0, 0.5, 1]),
        (np.array([-60000, 0, 60000], np.float16), [0, 0.5, 1]),
        (2**31 - 4 + np.arange(4, dtype=np.int32), _THIRDS),
        (2**62 + np.arange(4), _THIRDS),
        (-(2**63) + np.arange(4), _THIRDS),
        (np.array([-(2**63), 0, 2**63 - 1]), [0, 0.5, 1]),
        (np.array([2**64 - 4, 2**64 - 3, 2**64 - 2, 2**64 - 1], np.uint64), _THIRDS),
    ],
)
def test_the_edges_of_every_type_keep_their_distances(pixels, expected):
    np.testing.assert_allclose(normalize(pixels, "div255"), expected, atol=1e-7)
    cut = normalize(pixels, "percentile_minmax")
    np.testing.assert_allclose(cut[[0, -1]], [0, 1])
    np.testing.assert_allclose(cut, expected, atol=0.02)
    assert (np.diff(cut) > 0).all()


@pytest.mark.parametrize("kind", ["i1", "u1", "i2", ">u2", "i4", "u4", "i8", "u8", "f2", "f4", ">f4", "f8"])
def test_percentiles_of_large_arrays_are_exact(monkeypatch, kind):
    pixels = _RNG.normal(0, 60, (30, 40, 50))
    pixels = (np.abs(pixels) if kind[-2] == "u" else pixels).astype(kind)
    turned = pixels.transpose(2, 0, 1)[::-1, :, 1::2]
    expected = [limits(part, "percentile_minmax") for part in (pixels, turned)]
    np.testing.assert_allclose(expected[0], np.percentile(pixels.astype(np.float64), [1, 99]), rtol=1e-12)
    monkeypatch.setattr(module, "_SORTED_WHOLE", 0)
    monkeypatch.setattr(module, "_CHUNK", 1000)
    assert [limits(part, "percentile_minmax") for part in (pixels, turned)] == expected
    np.testing.assert_array_equal(window(turned, expected[1]), normalize(turned, "percentile_minmax"))


@pytest.mark.parametrize("whole", [0, 1 << 30])
def test_whole_numbers_are_scaled_alike_as_integers_and_as_floats(monkeypatch, whole):
    monkeypatch.setattr(module, "_SORTED_WHOLE", whole)
    for seed in range(20):
        volume = np.random.default_rng(seed).gamma(2, 700, (7, 30, 41)).astype(np.int16) - 1000
        expected = limits(volume.astype(np.float32), "percentile_minmax")
        assert limits(volume, "percentile_minmax") == expected
        np.testing.assert_array_equal(window(volume, expected), window(volume.astype(np.float32), expected))


@pytest.mark.parametrize("kind", [np.int16, np.float32])
def test_percentiles_take_no_copy_of_a_large_volume(kind):
    volume = np.arange(1 << 24).reshape(256, 256, 256).astype(kind).T
    tracemalloc.start()
    try:
        limits(volume, "percentile_minmax")
        assert tracemalloc.get_traced_memory()[1] < 25 << 20
    finally:
        tracemalloc.stop()


def test_slices_of_a_volume_are_scaled_one_by_one_as_the_whole():
    volume = _RNG.gamma(2, 100, (5, 12, 13)).astype(np.float32)
    for method in NORMALIZATIONS:
        found = limits(volume, method)
        whole = normalize(volume, method)
        for part, expected in zip(volume, whole, strict=True):
            np.testing.assert_array_equal(window(part, found), expected)


def test_limits_are_the_windows_and_the_files_levels():
    pixels = np.array([-5.0, 7.0])
    assert limits(pixels, "hu_window") == (-200, 400)
    assert limits(pixels, "suv_window", (1.0, 2.0)) == (0, 20)
    assert limits(pixels, "div255", (1.0, 2.0)) == (1, 2)
    assert limits(pixels, "div255") == (-5, 7)
    assert limits(pixels.astype(np.int8).view(np.uint8), "div255") == (0, 255)


def test_the_table_has_every_method_of_the_sources():
    assert {source.normalization for source in SOURCES} == set(NORMALIZATIONS)


def test_an_unknown_method_and_an_empty_array_are_refused():
    with pytest.raises(ValueError, match="method is 'minmax', expected one of hu_window"):
        normalize(np.zeros(3), "minmax")
    with pytest.raises(ValueError, match="pixels has shape"):
        normalize(np.zeros((0, 4)), "hu_window")


@pytest.mark.parametrize("method", ["div255", "percentile_minmax"])
def test_long_doubles_are_read_as_doubles(method):
    pixels = np.array([0, 1, 2], np.longdouble)
    np.testing.assert_allclose(normalize(pixels, method), [0, 0.5, 1])


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
        (np.array([0, math.nan]), "div255", None, ValueError, "pixels holds NaN or infinity"),
        (np.array([0, math.inf]), "percentile_minmax", None, ValueError, "pixels holds NaN or infinity"),
    ],
)
def test_what_cannot_be_normalized_is_named(pixels, method, levels, error, message):
    with pytest.raises(error, match=message):
        normalize(pixels, method, levels)
