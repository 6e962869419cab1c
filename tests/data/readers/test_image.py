"""PNG, JPEG, TIFF and BMP: every mode that medical images come in, and broken files."""

import numpy as np
import pytest
from made_files import png_claiming
from PIL import Image

from dexcore.data.readers import UnreadableFileError, read_file

_RNG = np.random.default_rng(0)
_GRAY = _RNG.integers(0, 256, (30, 40), dtype=np.uint8)
_RGB = _RNG.integers(0, 256, (30, 40, 3), dtype=np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
@pytest.mark.parametrize("pixels", [_GRAY, _RGB], ids=["gray", "RGB"])
def test_lossless_files_give_their_pixels(tmp_path, suffix, pixels):
    Image.fromarray(pixels).save(tmp_path / f"a{suffix}")
    scan = read_file(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(scan.pixels[0], pixels)
    assert scan.levels == (0.0, 255.0)
    assert scan.layout == "frames"


def test_jpeg_is_read_nearly_as_it_was(tmp_path):
    smooth = np.linspace(0, 255, 64 * 64).reshape(64, 64).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=95)
    assert np.abs(read_file(tmp_path / "a.jpg").pixels[0].astype(int) - smooth).max() < 8


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_stay_sixteen_bits(tmp_path, suffix):
    pixels = _RNG.integers(0, 65536, (20, 30), dtype=np.uint16)
    Image.fromarray(pixels).save(tmp_path / f"a{suffix}")
    scan = read_file(tmp_path / f"a{suffix}")
    assert scan.pixels.dtype == np.uint16
    np.testing.assert_array_equal(scan.pixels[0], pixels)
    assert scan.levels == (0.0, 65535.0)


def test_float_tiff_keeps_its_values_and_does_not_say_what_is_white(tmp_path):
    pixels = _RNG.normal(size=(20, 30)).astype(np.float32)
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    scan = read_file(tmp_path / "a.tif")
    np.testing.assert_array_equal(scan.pixels[0], pixels)
    assert scan.levels is None


def test_exif_rotation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it a quarter turn clockwise
    Image.fromarray(_RGB).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_file(tmp_path / "a.png").pixels[0], np.rot90(_RGB, -1))


def test_transparent_pixels_are_black(tmp_path):
    rgba = np.dstack([_RGB, np.zeros((30, 40), np.uint8)])
    rgba[:, 20:, 3] = 255
    Image.fromarray(rgba).save(tmp_path / "a.png")
    pixels = read_file(tmp_path / "a.png").pixels[0]
    assert (pixels[:, :20] == 0).all()
    np.testing.assert_array_equal(pixels[:, 20:], _RGB[:, 20:])


def test_a_palette_becomes_its_colours(tmp_path):
    image = Image.fromarray(_GRAY // 128).convert("P")
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.save(tmp_path / "a.png")
    pixels = read_file(tmp_path / "a.png").pixels[0]
    expected = np.where((_GRAY < 128)[..., None], [255, 0, 0], [0, 0, 255])
    np.testing.assert_array_equal(pixels, expected)


def test_cmyk_becomes_rgb(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_file(tmp_path / "a.tif").pixels[0, 0, 0], [255, 0, 0])


def test_one_bit_becomes_black_and_white(tmp_path):
    Image.fromarray(_GRAY > 127).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_file(tmp_path / "a.png").pixels[0], np.where(_GRAY > 127, 255, 0))


def test_pages_of_a_tiff_are_frames(tmp_path):
    pages = [Image.fromarray(_GRAY + np.uint8(i)) for i in range(5)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    scan = read_file(tmp_path / "a.tif", every=2)
    assert scan.frames == (0, 2, 4)
    np.testing.assert_array_equal(scan.pixels, [_GRAY + np.uint8(i) for i in (0, 2, 4)])


def test_pages_of_different_sizes_are_refused(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "a.tif", save_all=True, append_images=[Image.new("L", (8, 9))])
    with pytest.raises(UnreadableFileError, match="expected one size"):
        read_file(tmp_path / "a.tif")


def test_a_pixel_bomb_is_refused_by_its_header(tmp_path):
    # 80 megapixels: Pillow itself would let them pass.
    with pytest.raises(UnreadableFileError, match="expected at most 67108864"):
        read_file(png_claiming(tmp_path / "a.png", 10_000, 8_000))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif", ".npy"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
def test_a_truncated_file_is_refused(tmp_path, suffix, share):
    path = tmp_path / f"a{suffix}"
    if suffix == ".npy":
        np.save(path, _RGB)
    else:
        Image.fromarray(_RGB).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(UnreadableFileError, match=path.name):
        read_file(path)
