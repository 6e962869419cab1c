import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dexcore.data.store.codec import decode, encode, quantize


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from([(np.uint8, ()), (np.uint8, (3,)), (np.uint16, ())]),
)
def test_pixels_come_back_as_they_were(height, width, kind):
    dtype, channels = kind
    rng = np.random.default_rng(height * 41 + width)
    pixels = rng.integers(0, np.iinfo(dtype).max, (height, width, *channels), dtype=dtype, endpoint=True)
    decoded = decode(encode(pixels), (height, width), 8 * pixels.itemsize)
    assert decoded.dtype == dtype
    assert np.array_equal(decoded, pixels)


@pytest.mark.parametrize("bit_depth", [8, 16])
def test_quantizing_rounds_to_the_nearest_integer(bit_depth):
    image = np.random.default_rng(0).random((30, 20), dtype=np.float32)
    image[0, :2] = (0, 1)
    largest = 2**bit_depth - 1
    pixels = quantize(image, bit_depth, max_side=100)
    assert pixels[0, :2].tolist() == [0, largest]
    assert np.abs(pixels.astype(np.float64) - image.astype(np.float64) * largest).max() <= 0.51


def test_scaling_down_averages_areas_and_keeps_the_aspect():
    image = np.random.default_rng(0).random((64, 96, 3), dtype=np.float32)
    pixels = quantize(image, 8, max_side=16)
    averages = image.reshape(16, 4, 24, 4, 3).mean(axis=(1, 3))
    assert np.abs(pixels / 255 - averages).max() < 0.5 / 255 + 1e-5


@pytest.mark.parametrize(
    ("shape", "expected"), [((1000, 333), (901, 300)), ((300, 800), (300, 800)), ((301, 301), (300, 300))]
)
def test_the_shorter_side_is_at_most_the_largest_side(shape, expected):
    assert quantize(np.zeros(shape, np.float32), 8, max_side=300).shape == expected


def test_broken_bytes_are_an_error_and_never_a_crash():
    pixels = np.random.default_rng(0).integers(0, 65535, (32, 32)).astype(np.uint16)
    data = encode(pixels)
    rng = np.random.default_rng(1)
    broken = [data[:cut] for cut in range(0, len(data) - 30, 41)]
    broken += [b"", bytes(100), data[::-1], data[8:]]
    for image in broken:
        with pytest.raises(ValueError, match="is no readable PNG"):
            decode(image, (32, 32), 16)
    noticed = 0
    for place in rng.integers(0, len(data), 200):
        flipped = bytearray(data)
        flipped[place] ^= 1 << rng.integers(8)
        try:
            decode(bytes(flipped), (32, 32), 16)
        except ValueError:
            noticed += 1
    assert noticed > 180


def test_another_size_or_depth_is_refused():
    data = encode(np.zeros((8, 9), np.uint8))
    with pytest.raises(ValueError, match="8 x 9 pixels, expected 9 x 8"):
        decode(data, (9, 8), 8)
    with pytest.raises(ValueError, match="holds uint8 pixels, expected 16 bit"):
        decode(data, (8, 9), 16)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"image": [[0.5]]}, TypeError, "image must be a numpy array"),
        ({"image": np.zeros(9, np.float32)}, ValueError, r"image has shape \(9,\)"),
        ({"bit_depth": 12}, ValueError, "bit_depth is 12, expected 8 or 16"),
        ({"max_side": 0}, ValueError, "max_side must be at least 1"),
        ({"max_side": 4.5}, TypeError, "max_side must be a whole number"),
    ],
)
def test_what_cannot_be_quantized_is_named(change, error, message):
    with pytest.raises(error, match=message):
        quantize(**{"image": np.zeros((8, 9), np.float32), "bit_depth": 8, "max_side": 5, **change})
