"""PNG, JPEG and BMP: every mode that medical images come in, and broken files."""

import struct

import imagecodecs
import numpy as np
import pytest
from made_files import png_claiming, write_png
from PIL import Image

from dexcore.data.readers import UnreadableFileError, read_file

_RNG = np.random.default_rng(0)
_GRAY = _RNG.integers(0, 256, (30, 40), dtype=np.uint8)
_RGB = _RNG.integers(0, 256, (30, 40, 3), dtype=np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".bmp"])
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


def test_sixteen_bits_stay_sixteen_bits(tmp_path):
    pixels = _RNG.integers(0, 65536, (20, 30), dtype=np.uint16)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    scan = read_file(tmp_path / "a.png")
    assert scan.pixels.dtype == np.uint16
    np.testing.assert_array_equal(scan.pixels[0], pixels)
    assert scan.levels == (0.0, 65535.0)


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


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("channels", [2, 3, 4])
def test_png_keeps_its_depth_and_is_laid_over_black(tmp_path, depth, channels):
    opaque = (1 << depth) - 1
    pixels = _RNG.integers(0, opaque + 1, (30, 40, channels), dtype=np.uint16)
    alpha = pixels[..., -1:] / opaque if channels != 3 else 1
    expected = pixels[..., 0] * alpha[..., 0] if channels == 2 else pixels[..., :3] * alpha
    scan = read_file(write_png(tmp_path / "a.png", pixels, depth))
    assert scan.pixels.dtype == (np.uint8 if depth == 8 else np.uint16)
    assert scan.levels == (0.0, float(opaque))
    assert scan.pixels.shape == (1, *expected.shape)
    np.testing.assert_allclose(scan.pixels[0], expected, atol=0.51)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_the_gray_that_a_png_names_transparent_is_black(tmp_path, depth):
    top = (1 << depth) - 1
    pixels = _RNG.integers(0, top + 1, (30, 40), dtype=np.uint16)
    pixels[0, :3] = top
    expected = np.where(pixels == top, 0, pixels.astype(np.uint32) * (255 if depth < 8 else top) // top)
    scan = read_file(write_png(tmp_path / "a.png", pixels, depth, [top]))
    assert scan.pixels.dtype == (np.uint16 if depth == 16 else np.uint8)
    np.testing.assert_array_equal(scan.pixels[0], expected)


@pytest.mark.parametrize("depth", [8, 16])
def test_the_colour_that_a_png_names_transparent_is_black(tmp_path, depth):
    pixels = _RNG.integers(1, 1 << depth, (30, 40, 3), dtype=np.uint16)
    pixels[4, 5] = 7, 8, 9
    expected = pixels.copy()
    expected[4, 5] = 0
    np.testing.assert_array_equal(
        read_file(write_png(tmp_path / "a.png", pixels, depth, [7, 8, 9])).pixels[0], expected
    )


def test_a_palette_with_transparent_colours_is_laid_over_black(tmp_path):
    image = Image.fromarray(_GRAY // 128).convert("P")
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.save(tmp_path / "a.png", transparency=bytes([255, 127]))
    expected = np.where((_GRAY < 128)[..., None], [255, 0, 0], [0, 0, 127])
    np.testing.assert_array_equal(read_file(tmp_path / "a.png").pixels[0], expected)


@pytest.mark.parametrize("every", [1, 30])
def test_of_a_phones_photograph_the_first_picture_is_read(tmp_path, every):
    photograph = Image.fromarray(_RGB).resize((400, 300))
    photograph.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[photograph.resize((40, 30))])
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.n_frames == 2
        expected = np.asarray(image)
    scan = read_file(tmp_path / "a.jpg", every=every)
    np.testing.assert_array_equal(scan.pixels, expected[None])
    assert scan.frames == (0,)


@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.parametrize("samples", [1, 3])
def test_a_jpeg_of_more_than_eight_bits_keeps_its_depth(tmp_path, bits, samples):
    pixels = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint16) * np.uint16(30 if bits == 12 else 480)
    pixels = np.dstack([pixels] * 3) if samples == 3 else pixels
    options = {"bitspersample": bits, "level": 95, "lossless": bits == 16}
    (tmp_path / "a.jpg").write_bytes(imagecodecs.jpeg_encode(pixels, **options))
    scan = read_file(tmp_path / "a.jpg")
    assert scan.levels == (0.0, (1 << bits) - 1)
    assert np.abs(scan.pixels[0].astype(int) - pixels).max() < 60
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:-200])
    with pytest.raises(UnreadableFileError, match="cut short"):
        read_file(tmp_path / "a.jpg")


def segment(number, content):
    return bytes([0xFF, number]) + (len(content) + 2).to_bytes(2, "big") + content


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_jpegs_that_pillow_does_not_know_are_turned_by_their_exif_too(tmp_path, bits):
    pixels = np.add.outer(np.arange(40), np.arange(64)).astype(np.uint8 if bits == 8 else np.uint16)
    if bits == 12:
        data = imagecodecs.jpeg_encode(pixels * np.uint16(30), bitspersample=12, level=100)
    else:
        data = imagecodecs.jpegls_encode(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6
    note = exif.tobytes()
    note = note if note.startswith(b"Exif") else b"Exif\0\0" + note
    data = data[:2] + segment(0xE1, note) + data[2:]
    (tmp_path / "a.jpg").write_bytes(data)
    scan = read_file(tmp_path / "a.jpg")
    assert scan.levels == (0, (1 << bits) - 1)
    np.testing.assert_allclose(scan.pixels[0], np.rot90(pixels, -1) * (30 if bits == 12 else 1), atol=20)


@pytest.mark.parametrize("content", [b"\xff\xf7", bytes(5000), b"\xff\xf7" + bytes(5000)])
def test_a_jpeg_is_told_by_its_frame_header_wherever_that_is(tmp_path, content):
    pixels = np.add.outer(np.arange(40), np.arange(64)).astype(np.uint8)
    lossless, deep = imagecodecs.jpegls_encode(pixels), pixels.astype(np.uint16) * np.uint16(30)
    lossy = imagecodecs.jpeg_encode(deep, bitspersample=12, level=100)
    for data, expected in ((lossless, pixels), (lossy, deep)):
        (tmp_path / "a.jpg").write_bytes(data[:2] + segment(0xE4, content) + data[2:])
        np.testing.assert_allclose(read_file(tmp_path / "a.jpg").pixels[0], expected, atol=20)


def test_bytes_that_fill_up_before_an_exif_segment_are_passed_over(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3
    pixels = np.add.outer(np.arange(40), np.arange(64)).astype(np.uint16) * np.uint16(30)
    data = imagecodecs.jpeg_encode(pixels, bitspersample=12, level=100)
    note = segment(0xE1, b"Exif\0\0" + exif.tobytes().removeprefix(b"Exif\0\0"))
    (tmp_path / "a.jpg").write_bytes(data[:2] + b"\xff\xff" + note + data[2:])
    np.testing.assert_allclose(read_file(tmp_path / "a.jpg").pixels[0], pixels[::-1, ::-1], atol=20)


def test_a_bitmap_whose_alpha_is_empty_is_opaque(tmp_path):
    for alpha, expected in ((0, [30, 20, 10]), (51, [6, 4, 2])):
        pixels = np.full((4, 4, 4), (10, 20, 30, alpha), np.uint8)
        pixels[0, 0, 3] = 0
        masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
        head = struct.pack("<IiiHHIIiiII", 124, 4, 4, 1, 32, 3, 64, 2835, 2835, 0, 0) + masks
        file = b"BM" + struct.pack("<IHHI", 202, 0, 0, 138) + head.ljust(124, b"\0") + pixels.tobytes()
        (tmp_path / "a.bmp").write_bytes(file)
        np.testing.assert_array_equal(read_file(tmp_path / "a.bmp").pixels[0, 0, 0], expected)


def test_a_photographs_density_is_no_spacing(tmp_path):
    Image.fromarray(_RGB).save(tmp_path / "a.jpg", dpi=(300, 300))
    assert read_file(tmp_path / "a.jpg").spacing is None


def test_a_broken_note_about_the_orientation_leaves_the_picture(tmp_path):
    Image.fromarray(_RGB).save(tmp_path / "a.png", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01")
    np.testing.assert_array_equal(read_file(tmp_path / "a.png").pixels[0], _RGB)


def test_a_sixteen_bit_png_is_turned_too(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 7
    pixels = _RNG.integers(0, 65536, (20, 30), dtype=np.uint16)
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_file(tmp_path / "a.png").pixels[0], pixels[::-1, ::-1].T)


def test_cmyk_photographs_become_rgb(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    np.testing.assert_allclose(read_file(tmp_path / "a.jpg").pixels[0, 0, 0], [255, 0, 0], atol=3)


def test_a_palette_becomes_its_colours(tmp_path):
    image = Image.fromarray(_GRAY // 128).convert("P")
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.save(tmp_path / "a.png")
    pixels = read_file(tmp_path / "a.png").pixels[0]
    expected = np.where((_GRAY < 128)[..., None], [255, 0, 0], [0, 0, 255])
    np.testing.assert_array_equal(pixels, expected)


def test_one_bit_becomes_black_and_white(tmp_path):
    Image.fromarray(_GRAY > 127).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_file(tmp_path / "a.png").pixels[0], np.where(_GRAY > 127, 255, 0))


def test_pages_of_a_tiff_are_frames(tmp_path):
    pages = [Image.fromarray(_GRAY + np.uint8(i)) for i in range(5)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    scan = read_file(tmp_path / "a.tif", every=2)
    assert scan.frames == (0, 2, 4)
    np.testing.assert_array_equal(scan.pixels, [_GRAY + np.uint8(i) for i in (0, 2, 4)])


def test_a_pixel_bomb_is_refused_by_its_header(tmp_path):
    # 80 megapixels: Pillow itself would let them pass.
    with pytest.raises(UnreadableFileError, match="expected at most 67108864"):
        read_file(png_claiming(tmp_path / "a.png", 10_000, 8_000))
    Image.new("RGB", (8000, 3000)).save(tmp_path / "b.png")
    with pytest.raises(UnreadableFileError, match="bytes that inflate to 72000000"):
        read_file(tmp_path / "b.png")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
def test_a_truncated_file_is_refused(tmp_path, suffix, share):
    path = tmp_path / f"a{suffix}"
    Image.fromarray(_RGB).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(UnreadableFileError, match=path.name):
        read_file(path)
