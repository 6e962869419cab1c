import io
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor

import imagecodecs
import numpy as np
import PIL.Image
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from dexcore.data.store import codec
from dexcore.data.store.codec import decode, encode, quantize

_rng = np.random.default_rng(0)
KINDS = [
    _rng.integers(0, 255, (23, 32), np.uint8, endpoint=True),
    _rng.integers(0, 65535, (23, 32), np.uint16, endpoint=True),
    _rng.integers(0, 255, (23, 32, 3), np.uint8, endpoint=True),
]


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


@pytest.mark.parametrize("pixels", KINDS, ids=["gray", "16 bit", "RGB"])
def test_other_programs_open_the_bytes(pixels):
    data = encode(pixels)
    with PIL.Image.open(io.BytesIO(data)) as image:
        assert image.format == "TIFF"
        assert np.array_equal(np.asarray(image), pixels)
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        assert len(file.pages) == 1
        assert len(file.pages[0].dataoffsets) == 1
        assert np.array_equal(file.asarray(), pixels)


@pytest.mark.parametrize("pixels", KINDS, ids=["gray", "16 bit", "RGB"])
def test_pillow_reads_where_imagecodecs_is_missing(monkeypatch, pixels):
    data = encode(pixels)
    monkeypatch.setitem(sys.modules, "imagecodecs", None)  # as where it is not installed
    decoded = decode(data, pixels.shape[:2], 8 * pixels.itemsize)
    assert decoded.dtype == pixels.dtype
    assert np.array_equal(decoded, pixels)
    damaged = bytearray(data)
    damaged[-9] ^= 4
    with pytest.raises(ValueError, match="is no readable TIFF: its header or its checksum is damaged"):
        decode(damaged, pixels.shape[:2], 8 * pixels.itemsize)


def test_the_same_pixels_give_the_same_bytes_in_any_layout():
    for pixels in KINDS:
        data = encode(pixels)
        assert data == encode(np.asfortranarray(pixels)) == encode(pixels[::-1, ::-1][::-1, ::-1].copy())
        assert data == encode(pixels.astype(pixels.dtype.newbyteorder(">")))


@pytest.mark.parametrize("pixels", KINDS, ids=["gray", "16 bit", "RGB"])
def test_broken_bytes_are_an_error_and_never_wrong_pixels(pixels):
    """Every bit of the header, and bits all over the strip."""
    shape, depth = pixels.shape[:2], 8 * pixels.itemsize
    data = encode(pixels)
    broken = [data[:cut] for cut in range(0, len(data), 41)] + [data[:-1], data + b"\0", data + data]
    broken += [b"", bytes(300), data[::-1], data[8:], data[:168]]
    rng = np.random.default_rng(1)
    places = [*range(8 * 168), *rng.integers(8 * 168, 8 * len(data), 500)]
    for place in places:
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        broken.append(bytes(flipped))
    for image in broken:
        with pytest.raises(ValueError, match=r"is no readable|pixels, expected"):
            decode(image, shape, depth)


@pytest.mark.parametrize("strip", ["short", "long", "none", "garbage"])
def test_a_strip_that_is_not_as_its_header_says_is_refused(strip):
    """Sound checksums do not help what decompresses to another size."""
    pixels = KINDS[0]
    strips = {
        "short": imagecodecs.zstd_encode(bytes(pixels.size - 1)),
        "long": imagecodecs.zstd_encode(bytes(pixels.size + 1)),
        "none": imagecodecs.zstd_encode(b""),
        "garbage": bytes(range(90)),
    }
    header = codec._header(pixels.shape, 1, 8, len(strips[strip]), zlib.crc32(strips[strip]))
    with pytest.raises(ValueError, match="is no readable TIFF"):
        decode(header + strips[strip], pixels.shape, 8)


def test_a_png_of_an_older_store_is_decoded_and_a_broken_one_refused():
    for pixels in KINDS:
        file = io.BytesIO()
        PIL.Image.fromarray(pixels).save(file, "PNG")
        data, shape, depth = file.getvalue(), pixels.shape[:2], 8 * pixels.itemsize
        assert np.array_equal(decode(data, shape, depth), pixels)
        for image in (data[: len(data) // 2], data[::-1], data[8:]):
            with pytest.raises(ValueError, match="is no readable PNG"):
                decode(image, shape, depth)
        with pytest.raises(ValueError, match=r"23 x 32 pixels, expected 32 x 23"):
            decode(data, shape[::-1], depth)
        with pytest.raises(ValueError, match="pixels, expected"):
            decode(data, shape, 24 - depth)


def test_decoded_images_share_no_memory_among_themselves_or_with_other_threads():
    pixels = [rng.integers(0, 65535, (64, 80), np.uint16) for rng in map(np.random.default_rng, range(40))]
    data = list(map(encode, pixels))
    with ThreadPoolExecutor(8) as threads:
        for _ in range(5):
            decoded = list(threads.map(lambda each: decode(each, (64, 80), 16), data))
            assert all(map(np.array_equal, decoded, pixels))


def test_another_size_or_depth_is_refused():
    data = encode(np.zeros((8, 9), np.uint8))
    with pytest.raises(ValueError, match="8 x 9 pixels, expected 9 x 8"):
        decode(data, (9, 8), 8)
    with pytest.raises(ValueError, match="holds 8 bit pixels, expected 16 bit"):
        decode(data, (8, 9), 16)
    with pytest.raises(ValueError, match="a bit depth of 12, expected 8 or 16"):
        decode(data, (8, 9), 12)


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
